"""How long a file takes to convert, beside copying it, and where the time goes."""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.measuring.pool import apart
from benchmarks.measuring.timing import rounds
from benchmarks.measuring.worker import peak_memory

_ASIDE = ("fsync", "validation")


def measure(network: str, *, repeats: int) -> dict[str, Any]:
    """Converts a network's .pth to .safetensors in turn with copying it.

    Args:
        network: its name; the file is as torchvision saves it.
        repeats: of both.

    Returns:
        Times in seconds of the whole conversion, of its fsync and its validation, and
        of copying; bytes of the file; what the conversion's process took in memory.
    """
    with tempfile.TemporaryDirectory(prefix="resnet-twins-bench-") as name:
        folder = Path(name)
        found = apart(_convert, network, folder, repeats)
        found["memory"] = apart(_memory, folder)
        return {"network": network, **found}


def _write(network: str, path: Path) -> None:
    import torch

    import parity
    from parity.weights.twins import abstract_torch
    from resnet_spec import get_config

    model = abstract_torch(get_config(network))
    parity.load_state_dict(model, parity.random_state(parity.entries(model), seed=0))
    torch.save(model.state_dict(), path)


def _convert(network: str, folder: Path, repeats: int) -> dict[str, Any]:
    source, target, copied = (
        folder / name for name in ("source.pth", "target.safetensors", "copy.pth")
    )
    _write(network, source)
    parts: dict[str, list[float]] = {name: [] for name in _ASIDE}

    def convert() -> float:
        import parity

        start = time.perf_counter()
        done = parity.convert(source, target, overwrite=True)
        seconds = time.perf_counter() - start
        for name, part in parts.items():
            part.append(done.seconds[name])
        return seconds

    def copy() -> float:
        start = time.perf_counter()
        shutil.copyfile(source, copied)
        return time.perf_counter() - start

    warm_up = 2
    times = rounds({"convert": convert, "copy": copy}, repeats=repeats, warm_up=warm_up)
    return {
        "bytes": source.stat().st_size,
        "times": times["convert"],
        "copy": times["copy"],
        **{name: part[warm_up:] for name, part in parts.items()},
    }


def _memory(folder: Path) -> int:
    """What one conversion takes beyond what is imported before it."""
    with suppress(ImportError):  # what converting imports, if it is there
        import jax  # noqa: F401
    import torch  # noqa: F401

    import parity

    before = peak_memory()
    parity.convert(folder / "source.pth", folder / "target.safetensors", overwrite=True)
    return peak_memory() - before
