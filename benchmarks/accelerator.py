"""Everything that is to be known of an accelerator, in one command of minutes.

``make accelerator OUT=dir`` runs it from a checkout on a bare machine: with whatever
Python has the frameworks there, without installing and without fetching. What has been
found when the time is over stays. ``SMALL=1`` runs the same on a CPU, in small.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

SECONDS = 480.0
"""Of the whole; the tests and the ceilings share the machine for the first part."""

TESTING = 240.0
"""Seconds after which tests that still run are ended, and say so."""

UNTRIED = "--xla_gpu_autotune_level=0"
"""XLA's flag for what is not timed: no algorithm is chosen by trying all, which takes
each of the processes that share the device as long as it takes all of them. With it XLA
computes in float32 where TF32 is allowed (seen on an H200), so what is asked of TF32
goes without."""

TESTS = {
    "tests": (UNTRIED, ("tests/judging/test_gpu.py", "-k", "not tf32")),
    "tests-tf32": ("", ("tests/judging/test_gpu.py", "-k", "tf32")),
    "training": (UNTRIED, ("tests/training", "-m", "not exhaustive", "-k",
                           "one_trajectory or other_framework")),
}  # fmt: skip
"""What is asked there, and by which flags: the twins' gates; and runs of both engines,
each on the device that it finds. Elsewhere the last is asked with all other tests."""

_TWINS = ("torch", "jax", "flax", "optax", "safetensors", "jaxtyping")
NEEDS = {
    "tests": (*_TWINS, "pytest", "hypothesis", "matplotlib", "torchvision", "rich"),
    "ceilings": _TWINS,
    "bench": (*_TWINS, "rich", "scipy"),
}
"""What each stage imports, of what a machine may lack."""

CEILINGS = ("float32", "tf32", "bfloat16")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all stages; returns 0 if each did what it should."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accelerator", description=__doc__
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for results")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all of it")
    parser.add_argument(
        "--testing", type=float, default=TESTING, help="seconds for tests and ceilings"
    )
    parser.add_argument(
        "--only", choices=("tests", "ceilings", "bench"), action="append", default=None
    )
    parser.add_argument("--ceilings-of", choices=CEILINGS, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    small = os.environ.get("SMALL", "") not in ("", "0")
    if chosen.ceilings_of:
        for found in measure(chosen.ceilings_of, small=small):
            print(json.dumps(found), flush=True)
        return 0
    stages = chosen.only or [*NEEDS]
    needed = dict.fromkeys(name for stage in stages for name in NEEDS[stage])
    if lacking := [name for name in needed if find_spec(name) is None]:
        print(
            f"error: {sys.executable} lacks {', '.join(lacking)}; install them, or "
            "leave a stage out with --only",
            file=sys.stderr,
        )
        return 2
    chosen.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + chosen.seconds
    watched: dict[str, subprocess.Popen[bytes]] = {}
    if "tests" in stages:
        for name, (flags, tests) in TESTS.items():
            if name != "training" or not small:
                out = chosen.out / f"{name}.txt"
                watched[name] = _start(_tests(tests, small), out, flags)
    if "ceilings" in stages:
        for arithmetic in CEILINGS[:1] if small else CEILINGS:
            command = ["-m", "benchmarks.accelerator", "--out", str(chosen.out)]
            watched[f"ceilings-{arithmetic}"] = _start(
                [*command, "--ceilings-of", arithmetic],
                chosen.out / f"ceilings-{arithmetic}.txt",
                "" if arithmetic == "tf32" else UNTRIED,
            )
    codes = _wait(watched, min(chosen.testing, chosen.seconds))
    if "bench" in stages:
        bench = _start(_bench(chosen.out, end, small), chosen.out / "bench.txt")
        codes |= _wait({"bench": bench}, end - time.monotonic())
    for name, code in codes.items():
        print(f"== {name}: {'done' if code == 0 else f'ended with {code}'}")
    for path in sorted(chosen.out.glob("*.txt")):
        print(f"== {path.name}\n{path.read_text('utf-8', 'replace')[-6000:]}")
    return int(any(codes.values()))


def measure(arithmetic: str, *, small: bool) -> Iterator[dict[str, Any]]:
    """Yields networks' largest error over its growth: what a ceiling is set above.

    Args:
        arithmetic: one of ``CEILINGS``.
        small: on one network and the CPU.
    """
    import numpy as np

    import parity
    from parity.weights.twins import abstract_flax, abstract_torch, build
    from resnet_spec import get_config

    dtype: Any = "bfloat16" if arithmetic == "bfloat16" else "float32"
    start = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - start:6.1f} s: {what}", file=sys.stderr, flush=True)

    for name in ("cifar_resnet20",) if small else ("resnet18", "resnet50"):
        config = get_config(name)
        entries = parity.entries(abstract_torch(config))
        state = parity.random_state(entries, seed=0)
        model = build("torch", config, state).to("cpu" if small else "cuda")
        images = parity.random_images((2, 3, 64, 48), seed=0)
        if dtype == "bfloat16":
            model = model.bfloat16()
            images = parity.cast({"x": images}, dtype)["x"].astype(np.float32)
        twin = abstract_flax(config, param_dtype=dtype)
        parity.load_state_dict(twin, parity.cast(parity.state_dict(model), dtype))
        report = parity.check(
            *(model, twin, images),
            gates=("G3", "G3 training"),
            precision="tf32" if arithmetic == "tf32" else "strict",
            progress=say,
        )
        rows = [row for gate in report.gates for row in gate.rows]
        rows = [row for row in rows if "growth" in row.figures]
        if not rows:
            raise RuntimeError(str(report))
        worst = max(rows, key=lambda row: row.error / row.figures["growth"])
        yield {
            "network": name,
            "arithmetic": report.setting["arithmetic"],
            "over growth": worst.error / worst.figures["growth"],
            "at": worst.name,
            "ok": report.ok,
        }


def _tests(which: Sequence[str], small: bool) -> list[str]:
    options = ["-v", "-rA", "-W", "default", "-p", "no:cacheprovider", "--durations=9"]
    if not small and find_spec("xdist") is not None:
        options += ["-n", "6"]
    return ["-m", "pytest", *which, *options]


def _bench(out: Path, end: float, small: bool) -> list[str]:
    left = end - time.monotonic()
    return [
        *("-m", "benchmarks", "--profile", "accelerator"),
        *("--device", "cpu" if small else "cuda"),
        *("--budget", f"{left:.0f}", "--out", str(out / "bench.json")),
    ]


def _start(arguments: list[str], out: Path, flags: str = "") -> subprocess.Popen[bytes]:
    with out.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**_environment(os.environ), "XLA_FLAGS": flags},
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def _wait(started: Mapping[str, subprocess.Popen[bytes]], limit: float) -> dict:
    end = time.monotonic() + limit
    codes = {}
    for name, process in started.items():
        try:
            codes[name] = process.wait(max(end - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.terminate()
            codes[name] = process.wait()
    return codes


def _environment(own: Mapping[str, str]) -> dict[str, str]:
    return {
        **own,
        # Several processes share the device; one alone would take most of its memory.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "RESNET_TWINS_TESTS": "all",  # its compiler shall optimise as users' does
        "PYTHONPATH": str(ROOT),
    }


if __name__ == "__main__":
    raise SystemExit(main())
