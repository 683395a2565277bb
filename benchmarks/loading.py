"""How fast batches are made: `python -m benchmarks.loading [DATA]`.

Decoding and augmenting alone, in one process, against the loader, per worker; and
against as many threads. By the clock, which wants idle cores; and by microseconds of
CPU for each image: a worker's, and of the process that asks, which bounds how many
workers it can have. The best of some rounds.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import deque
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


class Way(NamedTuple):
    """How images are made: by so many at once, by which processes besides this one."""

    workers: int
    processes: list[int]
    run: Callable[[], object]


class Cost(NamedTuple):
    """Microseconds an image: by the clock, of CPU to make it and to hand it over."""

    wall: float
    making: float
    handing: float


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
        print(f"{decoder()}; {asked.recipe}, batch {asked.batch}; CPU in µs an image")
        print(_compared(source, recipe, asked.steps, asked.rounds))


def _compared(source: Source, recipe: TrainingRecipe, steps: int, rounds: int) -> str:
    cores = len(os.sched_getaffinity(0))
    pieces = [_piece(source, recipe, step) for step in range(steps)]
    loaders = {count: Loader(source, recipe, workers=count) for count in (0, 1, cores)}
    for loader in loaders.values():  # all of its processes have started
        _steps(loader, 2)
    with ThreadPoolExecutor(cores) as threads:
        ways = {
            "make alone": Way(1, [], lambda: _alone(pieces)),
            f"{cores} threads": Way(
                cores, [], lambda: deque(threads.map(_make, pieces), 0)
            ),
            **{
                f"loader, {count} workers": Way(
                    max(count, 1),
                    loader.processes,
                    lambda loader=loader: _steps(loader, steps),
                )
                for count, loader in loaders.items()
            },
        }
        best: dict[str, list[Cost]] = {name: [] for name in ways}
        for _ in range(rounds):  # side by side, as the machine's load comes and goes
            for name, way in ways.items():
                best[name].append(_cost(way, steps * recipe.batch))
    for loader in loaders.values():
        loader.close()
    found = {name: Cost(*map(min, *costs)) for name, costs in best.items()}
    alone = found["make alone"]
    return table(
        ["", "images/s", "per worker, of alone", "its CPU", "of alone", "this process"],
        [
            [
                name,
                round(1e6 / cost.wall),
                round(alone.wall / cost.wall / ways[name].workers, 2),
                round(cost.making),
                round(alone.making / cost.making, 2),
                round(cost.handing),
            ]
            for name, cost in found.items()
        ],
    )


def _cost(way: Way, images: int) -> Cost:
    wall, own, others = time.perf_counter(), _cpu([os.getpid()]), _cpu(way.processes)
    way.run()
    wall, own = time.perf_counter() - wall, _cpu([os.getpid()]) - own
    others = _cpu(way.processes) - others
    costs = (wall, others, own) if way.processes else (wall, own, 0.0)
    return Cost(*(1e6 * cost / images for cost in costs))


def _cpu(processes: list[int]) -> float:
    times = (psutil.Process(process).cpu_times() for process in processes)
    return sum(one.user + one.system for one in times)


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
