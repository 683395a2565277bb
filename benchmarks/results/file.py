"""What a run leaves: one JSON file that tables and pictures are made from."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.plans.cases import Plan
from parity.errors import InputError, OutputError
from parity.files.atomic import replacing
from parity.inputs import read_text
from parity.machine import processor, version_of

FORMAT = 2
_MOST_BYTES = 2**26

PACKAGES = (
    *("resnet-twins", "numpy", "torch", "jax", "jaxlib", "flax", "optax"),
    *("torchvision", "timm", "keras", "jax-resnet", "flaxmodels"),
    *("onnxruntime", "openvino"),
)

ROOT = Path(__file__).parents[2]


def environment(plan: Plan, threads: int) -> dict[str, Any]:
    """Returns what a run depends on: versions, machine, commit, settings."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: v for name in PACKAGES if (v := version_of(name))},
        "device": _device(plan),
        "processors": os.cpu_count(),
        "threads": threads,
        "profile": plan.name,
        "repeats": plan.repeats,
        "warm_up": plan.warm_up,
        "seconds": plan.seconds,
    }


def write(results: Mapping[str, Any], path: Path) -> None:
    """Writes a run's results; the file is complete, or as it was.

    Raises:
        OutputError: it cannot be written.
    """
    with replacing(path, overwrite=True) as temporary:
        temporary.write_text(_compact(results), "utf-8")


def read(path: Path) -> dict[str, Any]:
    """Reads what :func:`write` wrote.

    Raises:
        ValueError: it cannot be read, or is nothing of the kind.
    """
    try:
        found = json.loads(read_text(path, _MOST_BYTES))
        if found["format"] != FORMAT:
            raise ValueError(f"has format {found['format']}, not {FORMAT}")
        for case in found["cases"]:
            for row in case["rows"]:
                if not {"mode", "status"} <= row.keys():
                    raise ValueError("a row has no mode")
        if "versions" not in found["environment"] or "took" not in found:
            raise ValueError("it names no versions, or no time")
        return found
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: is no file of results ({error!s:.80})") from error


def require_place(path: Path) -> None:
    """Checks that a file can be written there, before minutes are spent for it."""
    if not path.absolute().parent.is_dir():
        raise OutputError(path, f"there is no folder {path.parent}", "Make it first")
    if path.is_dir():
        raise OutputError(path, "is a directory", "Name a file in it")


def _compact(results: Mapping[str, Any]) -> str:
    """JSON with a line for each row: it is kept in the repository."""

    def shorten(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.10g}")
        if isinstance(value, Mapping):
            return {key: shorten(each) for key, each in value.items()}
        return [shorten(each) for each in value] if isinstance(value, list) else value

    text = json.dumps(shorten(results), allow_nan=False)
    starts = ('{"mode":', '{"network":', '"environment":', '"conversion":')
    for start in (*starts, '"programs":'):
        text = text.replace(start, f"\n{start}")
    return f"{text}\n"


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _device(plan: Plan) -> str:
    if any(case.device == "cuda" for case in plan.cases):
        code = "import torch; print(torch.cuda.get_device_name())"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True
        )
        return done.stdout.strip() or "none"
    return processor()
