"""How long a file takes to convert, beside copying it, and where the time goes."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.measuring.pool import apart
from benchmarks.measuring.timing import rounds
from benchmarks.measuring.worker import peak_memory

# What `parity.convert` does beside moving bytes, by module and function. Validated are
# digests, checksums, every value, names and shapes, the file read back.
_ASIDE = {
    "fsync": (("parity.files.writing", "sync"),),
    "validation": (
        ("parity.files.writing", "digest"),
        ("parity.files.writing", "_holds"),
        ("parity.files.reading", "digest"),
        ("parity.files.reading", "_check_values"),
        ("parity.files.opening", "sha256_of"),
        ("parity.files.pth", "_check_zip"),
        ("parity.files.convert", "entries_of"),
        ("parity.files.convert", "require"),
    ),
}


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

        with _watched() as aside:
            start = time.perf_counter()
            parity.convert(source, target, overwrite=True)
            seconds = time.perf_counter() - start
        for name, part in aside.items():
            parts[name].append(part)
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


@contextmanager
def _watched() -> Iterator[dict[str, float]]:
    """Adds up what the functions of ``_ASIDE`` take; calls within others count once."""
    found = dict.fromkeys(_ASIDE, 0.0)
    inside: list[str] = []

    def watch(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            inside.append(part)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                inside.pop()
                if not inside:
                    found[part] += time.perf_counter() - start

        return watched

    with ExitStack() as stack:
        for part, places in _ASIDE.items():
            for module, name in places:
                # A name that is gone is an error: its time would count as converting.
                holder = import_module(module)
                watched = watch(part, getattr(holder, name))
                stack.enter_context(mock.patch.object(holder, name, watched))
        yield found
