"""What others' names and layouts cost: `python -m benchmarks.dialects [NAME]`.

Each conversion in turn with copying its source, in one process: medians by the clock
and of CPU time, in all and without what validation and fsync take, over those of the
copy. What it takes in memory beyond what was imported, over the bytes of the file, in a
process of its own.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.measuring.pool import apart
from benchmarks.measuring.timing import rounds
from benchmarks.measuring.worker import peak_memory
from parity.text import table

OURS = "ours.safetensors"


class Way(NamedTuple):
    """One conversion: from a file, or a folder, to another, under whose names."""

    source: str
    target: str
    to: str


WAYS = {
    ".pth to ours": Way("theirs.pth", "new.safetensors", "torchvision"),
    "ours to Hugging Face": Way(OURS, "new", "huggingface"),
    "Hugging Face to ours": Way("huggingface", "new.safetensors", "torchvision"),
    "ours to jaxnn": Way(OURS, "new.safetensors", "jaxnn"),
    "jaxnn to ours": Way("jaxnn.safetensors", "new.safetensors", "torchvision"),
    "ours to nnx": Way(OURS, "new.safetensors", "nnx"),
    "nnx to ours": Way("nnx.safetensors", "new.safetensors", "torchvision"),
}


class Times(NamedTuple):
    """Seconds of one conversion or copy."""

    wall: float
    cpu: float
    checks: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", default="resnet50")
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="resnet-twins-dialects-") as name:
        folder = Path(name)
        apart(_write, asked.name, folder)
        rows = []
        for what, way in WAYS.items():
            memory = apart(_memory, folder, way)
            size = _weights(folder / way.source).stat().st_size
            ratios = apart(_ratios, folder, way, asked.rounds)
            rows.append((what, *ratios, f"{memory / size:.2f}"))
    heads = (
        *(f"{asked.name}, over copying", "copy, ms", "time", "without checks"),
        *("CPU", "memory / file"),
    )
    print(table(heads, rows))


def _write(network: str, folder: Path) -> None:
    import torch

    import parity
    from parity.weights.twins import abstract_torch
    from resnet_spec import get_config

    model = abstract_torch(get_config(network))
    parity.load_state_dict(model, parity.random_state(parity.entries(model), seed=0))
    torch.save(model.state_dict(), folder / "theirs.pth")
    parity.save(folder / OURS, model)
    parity.save(folder / "huggingface", model, format="huggingface")
    for dialect in ("jaxnn", "nnx"):
        parity.save(folder / f"{dialect}.safetensors", model, dialect=dialect)


def _weights(source: Path) -> Path:
    return source / "model.safetensors" if source.is_dir() else source


def _ratios(folder: Path, way: Way, repeats: int) -> list[str]:
    source = _weights(folder / way.source)
    found: dict[str, list[Times]] = {"convert": [], "copy": []}

    def timed(name: str, run: Callable[[], float]) -> Callable[[], float]:
        def one() -> float:
            wall, cpu = time.perf_counter(), time.process_time()
            checks = run()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            found[name].append(Times(wall, cpu, checks))
            return wall

        return one

    def copy() -> float:
        shutil.copyfile(source, folder / "copy")
        return 0.0

    timers = {
        "convert": timed("convert", lambda: _convert(folder, way)),
        "copy": timed("copy", copy),
    }
    warm_up = 2
    rounds(timers, repeats=repeats, warm_up=warm_up)
    done, copied = (times[warm_up:] for times in found.values())

    def over(values: list[float], others: list[float]) -> str:
        return f"{statistics.median(values) / statistics.median(others):.2f}"

    walls = [it.wall for it in copied]
    return [
        f"{1e3 * statistics.median(walls):.0f}",
        over([it.wall for it in done], walls),
        over([it.wall - it.checks for it in done], walls),
        over([it.cpu for it in done], [it.cpu for it in copied]),
    ]


def _convert(folder: Path, way: Way) -> float:
    """Converts once; returns the seconds of validation and fsync."""
    import parity

    target = folder / way.target
    done = parity.convert(folder / way.source, target, to=way.to, overwrite=True)
    return sum(done.seconds[name] for name in ("validation", "fsync"))


def _memory(folder: Path, way: Way) -> int:
    import jax  # noqa: F401
    import torch  # noqa: F401

    import parity  # noqa: F401

    before = peak_memory()
    _convert(folder, way)
    return peak_memory() - before


if __name__ == "__main__":
    main()
