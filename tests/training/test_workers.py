"""The processes of a loader: their errors are told, and none stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from resnet_training.folders import ImageFolder
from resnet_training.loader import Loader
from resnet_training.sources import Data, Source
from tests.support.batches import digests, recipe_of

ROOT = Path(__file__).parent.parent.parent


def gone(pids: Sequence[int], seconds: float = 10) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        states = [psutil.Process(p).status() for p in pids if psutil.pid_exists(p)]
        if all(state == psutil.STATUS_ZOMBIE for state in states):
            return True
        time.sleep(0.02)
    return False


def test_a_worker_that_is_killed_is_one_clear_error(folder: Source):
    loader = Loader(folder, recipe_of(), workers=2)
    batches, pids = loader.batches(0, 10_000), loader.processes
    next(batches)
    os.kill(pids[0], signal.SIGKILL)
    with pytest.raises(RuntimeError, match=f"process {pids[0]} .* ended .signal 9.:"):
        list(batches)
    loader.close()
    assert gone(pids)


def test_closing_early_ends_all_processes(folder: Source):
    with Loader(folder, recipe_of(), workers=2, ahead=50) as loader:
        batches, pids = loader.batches(0, 10_000), loader.processes
        next(batches)
    assert gone(pids)
    with pytest.raises(RuntimeError, match="the loader is closed"):
        list(batches)
    with pytest.raises(RuntimeError, match="the loader is closed"):
        next(loader.batches(0, 1))
    loader.close()


def test_ctrl_c_is_for_the_program_alone(folder: Source):
    with Loader(folder, recipe_of(), workers=1) as loader:
        expected, (pid,) = digests(loader.batches(0, 2)), loader.processes
        assert os.getpgid(pid) == pid
        os.kill(pid, signal.SIGINT)
        assert digests(loader.batches(0, 2)) == expected
        assert loader.processes == [pid]


def test_an_error_of_ours_in_a_worker_is_told_with_its_traceback(arrays: Data):
    class Strange(Source):
        labels, classes, fingerprint = arrays.train.labels, arrays.train.classes, ""

        def items(self, indices: np.ndarray) -> Any:
            return [17] * len(indices)

        def name(self, index: int) -> str:
            return "strange"

    with (
        Loader(Strange(), recipe_of(), workers=1) as loader,
        pytest.raises(RuntimeError, match=r"(?s)a process .* failed:.*Traceback"),
    ):
        next(loader.batches(0, 1))


LONG = """
import signal, sys, time

signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup and & ignore it
from resnet_spec import get_recipe
from resnet_training.folders import ImageFolder
from resnet_training.loader import Loader

recipe = get_recipe("reference", size=32, batch=12)
with Loader(ImageFolder(sys.argv[1]), recipe, workers=1) as loader:
    for batch in loader.batches(0, int(sys.argv[2])):
        print(*loader.processes, flush=True)
    time.sleep(100)
"""


@contextmanager
def long_run(
    folder: Source, steps: int = 2**24
) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A program with a worker, and their processes; at the end it is no more."""
    assert isinstance(folder, ImageFolder)
    with subprocess.Popen(
        [sys.executable, "-c", LONG, folder.root, str(steps)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process, [int(pid) for pid in process.stdout.readline().split()]
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_ctrl_c_leaves_no_process_and_one_traceback(folder: Source):
    with long_run(folder) as (process, pids):
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, errors = process.communicate(timeout=120)
        assert len(pids) == 1
        assert gone(pids)
    assert errors.count("KeyboardInterrupt") == errors.count("Traceback") == 1
    assert process.returncode != 0


@pytest.mark.parametrize("steps", [1, 2**24], ids=["waiting", "busy"])
def test_a_program_that_is_killed_leaves_no_process(folder: Source, steps: int):
    with long_run(folder, steps) as (process, pids):
        process.kill()
        process.communicate(timeout=120)
        assert len(pids) == 1
        assert gone(pids)


ALONE = """
import sys
import resnet_training.data, resnet_training.loader
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_data_and_their_processes_need_no_framework():
    found = subprocess.run(
        [sys.executable, "-c", ALONE],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout.split()
    assert {"numpy", "PIL"} <= set(found)
    frameworks = {"torch", "jax", "flax", "torchvision", "matplotlib", "scipy"}
    assert not frameworks & set(found)


def test_a_process_of_the_loader_imports_no_framework_though_the_program_has(
    folder: Source,
):
    """Here torch and jax are imported: their libraries are in the memory's map."""
    with Loader(folder, recipe_of(), workers=1) as loader:
        next(loader.batches(0, 1))
        maps = [m.path for m in psutil.Process(loader.processes[0]).memory_maps()]
    assert any("numpy" in path for path in maps)
    assert not [p for p in maps if "torch" in p or "jax" in p]
    assert any("torch" in m.path for m in psutil.Process().memory_maps())
