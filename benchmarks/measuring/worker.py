"""A process that holds one mode, ready, and does a repetition when it is told to.

Each mode has a process of its own: XLA reads its flags once, peers cannot disturb each
other, and the peak of a process's memory is that of its mode. Only one works at a time.
"""

from __future__ import annotations

import gc
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.plans.cases import Case, Device
from benchmarks.plans.modes import Mode
from parity.machine import float32_precision


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker is to hold.

    Args:
        mode: how to compute.
        case: what to compute.
        folder: with the case's inputs; see ``benchmarks.measuring.inputs``.
        threads: that the mode may use.
    """

    mode: Mode
    case: Case
    folder: Path
    threads: int


CALLS: Mapping[Device, int] = {"cpu": 1, "cuda": 5}
"""Calls in a repetition, of which the mean is noted. An accelerator has the next one
waiting while it computes, as where people train and serve."""


@dataclass(frozen=True)
class Runner:
    """A network, ready to run.

    Args:
        call: computes once; it need not return only when all of it is done.
        results: what the last call gave, or in training what the calls have changed:
            by name, what the gate compares.
        flops: of one call, where it is not the network's work.
        facts: what else is to be known, as JSON has it; ``"prepared"``: seconds that
            compiling took before the first call.
        wait: returns when the last call's work is done.
    """

    call: Callable[[], object]
    results: Callable[[], dict[str, np.ndarray]]
    flops: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    wait: Callable[[], object] = lambda: None

    def __call__(self, calls: int = 1) -> None:
        """Computes so many times, and returns when that is done."""
        for _ in range(calls):
            self.call()
        if calls:
            self.wait()


def serve(job: Job, connection: Connection) -> None:
    """Answers questions about a mode until the other end is closed."""
    _silence()
    os.environ.update(_environment(job))
    try:
        _bind(job.threads)
        if "fast" in job.mode.options:
            import_module("resnet_flax.xla").use_fast_cpu(job.case.task)
        with ExitStack() as stack:
            runner = job.mode.runner
            place = runner if "." in runner else f"benchmarks.runners.{runner}"
            runners = import_module(place)
            # On a CPU, and for bfloat16, whatever the frameworks' users have.
            if job.case.device != "cpu" and job.mode.arithmetic != "bfloat16":
                precision = "tf32" if job.mode.arithmetic == "tf32" else "strict"
                stack.enter_context(float32_precision(precision))
            connection.send(("ready", peak_memory()))
            _answer(job, runners.build, connection)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass
    except Exception as error:
        traceback.print_exc()
        connection.send(("error", one_line(error)))


def one_line(error: Exception) -> str:
    """Says what an error is and says, short enough for a table."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}"


def _answer(job: Job, build: Callable[[Job], Runner], connection: Connection) -> None:
    runner: Runner | None = None
    peak = 0
    while True:
        question, argument = connection.recv()
        if question == "build":
            runner = build(job)
            first = _timed(runner)
            path = job.folder / f"{job.mode.name}.npz"
            np.savez(path, allow_pickle=False, **runner.results())
            second = _timed(runner)
            gc.collect()
            peak = peak_memory()
            _forget_peak()
            facts = runner.facts | {"flops": runner.flops, "settings": _settings()}
            answer: Any = (first, second, path, facts)
        elif question == "time":
            assert runner is not None
            calls = CALLS[job.case.device]
            runner(argument)
            start, seconds = _timed(partial(runner, calls))
            answer = start, seconds / calls
        else:
            running = peak_memory()
            answer = {"peak": max(peak, running), "running": running}
        connection.send((question, answer))


def _timed(function: Callable[[], object]) -> tuple[float, float]:
    """Returns when a call began, by a clock that all processes share, and its time."""
    start = time.perf_counter()
    function()
    return start, time.perf_counter() - start


def peak_memory() -> int:
    """Returns the most memory that this process has had, in bytes.

    Linux's ru_maxrss would be at least its parent's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _bind(threads: int) -> None:
    """Leaves this process so many cores: XLA asks for no number of threads."""
    if sys.platform == "linux":
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[:threads])


def _forget_peak() -> None:
    """Lets the peak start anew, where the system can: what compiling took is past."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _environment(job: Job) -> dict[str, str]:
    threads = str(job.threads)
    # Minutes of an accelerator cost too much: there, like graphs are compiled once.
    on_cpu = job.case.device == "cpu"
    return {
        "OMP_NUM_THREADS": threads,
        "JAX_PLATFORMS": job.case.device,
        # Compile times are to be those of compiling.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        **({"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"} if on_cpu else {}),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "XLA_FLAGS": "",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        **job.mode.environment,
    }


def _settings() -> dict[str, Any]:
    """What the frameworks of this process are set to."""
    from parity.machine import environment

    found = environment()
    shown = {name: found[name] for name in ("torch", "jax") if name in found}
    shown["affinity"] = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 0
    return shown


def _silence() -> None:
    """Sends what libraries print to a file of their own, for whoever looks for it."""
    if os.environ.get("RESNET_TWINS_BENCH_LOUD"):
        return
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(null, stream)
