"""What loading a bad file takes, in a process whose memory is nobody else's."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple


class Cost(NamedTuple):
    """What it said, the memory beyond what was there, and the CPU's seconds."""

    said: str
    bytes: int
    seconds: float


def costs_of_loading(*paths: Path) -> list[Cost]:
    """Loads files one after the other in one process; nothing may be left behind."""
    before = [sorted(path.parent.iterdir()) for path in paths]
    out = subprocess.run(
        [sys.executable, "-m", "tests.support.measured", *map(str, paths)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert [sorted(path.parent.iterdir()) for path in paths] == before
    return [Cost(*found) for found in json.loads(out)]


def require_bounded(cost: Cost, size: int) -> None:
    """Holds a refusal to three times its file and 400 MB, and to ten seconds of CPU."""
    assert cost.bytes < 3 * size + 400 * 10**6, cost
    assert cost.seconds < 10, cost


def _load(path: str) -> Cost:
    import parity
    from benchmarks.measuring.worker import _forget_peak, peak_memory

    _forget_peak()
    before, start = peak_memory(), time.process_time()
    try:
        said = str(sorted(parity.load(path)))
    except parity.CheckpointError as error:
        said = str(error)
    return Cost(said, peak_memory() - before, time.process_time() - start)


if __name__ == "__main__":
    import jax  # noqa: F401  what loading would import
    import torch  # noqa: F401

    print(json.dumps([_load(path) for path in sys.argv[1:]]))
