"""How fast batches are made: `python -m benchmarks.loading [DATA]`.

Decoding and augmenting alone, in one process, against the loader, per worker; and
against as many threads. By wall clock, and by CPU time, which others' load on the
machine does not touch: what the loader adds, it adds to both.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
from PIL import Image

from parity.text import table
from resnet_spec import TrainingRecipe, get_recipe
from resnet_training.data import open_data
from resnet_training.loader import Loader
from resnet_training.making import Piece, make
from resnet_training.pictures import decoder
from resnet_training.sources import Source


class Speed(NamedTuple):
    wall: float
    cpu: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="?", help="as of `train`; photographs if none")
    parser.add_argument("--recipe", default="imagenet-v1")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--val-split", type=float)
    asked = parser.parse_args()
    recipe = get_recipe(asked.recipe, batch=asked.batch)
    with tempfile.TemporaryDirectory() as folder:
        if asked.data is None:
            _photographs(Path(folder), 192)
            source = open_data(folder, val_split=0.1).train
        else:
            source = open_data(asked.data, val_split=asked.val_split).train
        print(f"{decoder()}; {asked.recipe}, batch {asked.batch}; images/s")
        print(_compared(source, recipe, asked.steps, asked.rounds))


def _compared(source: Source, recipe: TrainingRecipe, steps: int, rounds: int) -> str:
    cores = len(os.sched_getaffinity(0))
    pieces = [_piece(source, recipe, step) for step in range(steps)]
    ways: dict[str, tuple[int, Callable[[], object], Callable[[], float]]] = {
        "make alone": (1, lambda: _alone(pieces), _own_cpu),
    }
    with ThreadPoolExecutor(cores) as threads:
        ways[f"{cores} threads"] = (
            cores,
            lambda: list(threads.map(_make, pieces)),
            _own_cpu,
        )
        loaders = {count: Loader(source, recipe, workers=count) for count in (1, cores)}
        for count, loader in {0: Loader(source, recipe), **loaders}.items():
            ways[f"loader, {count} workers"] = (
                max(count, 1),
                lambda loader=loader: _steps(loader, steps),
                lambda loader=loader: _cpu(loader),
            )
        for loader in loaders.values():  # all of its processes have started
            _steps(loader, 2)
        best = {name: Speed(0, 0) for name in ways}
        for _ in range(rounds):  # side by side, as the machine's load comes and goes
            for name, (_, run, cpu) in ways.items():
                wall, before = time.perf_counter(), cpu()
                run()
                images = steps * recipe.batch
                now = Speed(
                    images / (time.perf_counter() - wall), images / (cpu() - before)
                )
                best[name] = Speed(*map(max, best[name], now))
        for loader in loaders.values():
            loader.close()
    alone = best["make alone"]
    return table(
        ["", "wall", "wall per worker", "of alone", "CPU second", "of alone"],
        [
            [
                name,
                round(speed.wall),
                round(speed.wall / ways[name][0]),
                round(speed.wall / ways[name][0] / alone.wall, 3),
                round(speed.cpu),
                round(speed.cpu / alone.cpu, 3),
            ]
            for name, speed in best.items()
        ],
    )


def _piece(source: Source, recipe: TrainingRecipe, step: int) -> Piece:
    rows = (step * recipe.batch + np.arange(recipe.batch)) % len(source)
    keys = np.stack([np.full_like(rows, step), rows], 1).astype(np.uint64)
    return Piece(recipe, source.items(rows), keys)


def _make(piece: Piece) -> int:
    images = np.empty(piece.shape, np.uint8)
    return len(make(piece, images, np.empty((len(images), 4), np.int32)))


def _alone(pieces: list[Piece]) -> None:
    for piece in pieces:
        _make(piece)


def _steps(loader: Loader, count: int) -> None:
    for _ in loader.batches(0, count):
        pass


def _own_cpu() -> float:
    times = psutil.Process().cpu_times()
    return times.user + times.system


def _cpu(loader: Loader) -> float:
    """Of this process and of the loader's."""
    others = (psutil.Process(pid).cpu_times() for pid in loader.processes)
    return _own_cpu() + sum(times.user + times.system for times in others)


def _photographs(folder: Path, count: int) -> None:
    """Cuts JPEGs of 500x375 from photographs that packages ship."""
    import matplotlib.cbook
    import sklearn.datasets

    shipped = Path(sklearn.datasets.__file__).parent / "images"
    sample = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    photographs = [Image.open(p) for p in (*shipped.glob("*.jpg"), Path(str(sample)))]
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        left, top = i % (photograph.width - 499), i % (photograph.height - 374)
        path = folder / f"class {i % 2}" / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        photograph.crop((left, top, left + 500, top + 375)).save(path, quality=92)


if __name__ == "__main__":
    main()
