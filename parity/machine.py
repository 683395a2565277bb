"""The machine that computes: its name, its memory, and how it multiplies."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

_PACKAGES = ("resnet-twins", "torch", "jax", "jaxlib", "flax", "numpy")


def environment() -> dict[str, Any]:
    """Returns versions, processor and threads, of the frameworks already imported."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "processors": os.cpu_count(),
        "versions": {package: version_of(package) for package in _PACKAGES},
    }
    if (torch := sys.modules.get("torch")) is not None:
        found["torch"] = {
            "threads": torch.get_num_threads(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
        }
    if (jax := sys.modules.get("jax")) is not None:
        found["jax"] = {
            "backend": jax.default_backend(),
            "enable_x64": jax.config.jax_enable_x64,
            "matmul_precision": jax.config.jax_default_matmul_precision,
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
        }
    return found


def processor() -> str:
    """Returns the processor's name; on Linux what the kernel calls it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def version_of(package: str) -> str | None:
    """Returns the version of what is installed; ``None`` if it is not."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def give_back() -> None:
    """Returns freed memory to the system.

    glibc keeps what lies between arrays that still live: gigabytes, after thousands of
    maps of many sizes have come and gone. Does nothing where the C library is another.
    """
    if (trim := _malloc_trim()) is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


Precision = Literal["strict", "tf32"]
"""``"strict"``: IEEE float32. ``"tf32"``: products of 11 bits, as NVIDIA's TF32.

The defaults differ: JAX uses TF32 for all float32 products, torch for convolutions.
"""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@contextmanager
def float32_precision(precision: Precision) -> Iterator[None]:
    """Sets both frameworks, those that are imported, and restores them.

    A CPU computes in IEEE float32 in either mode.

    Args:
        precision: how to multiply.

    Raises:
        ValueError: there is no such precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}"
        )
    tf32 = precision == "tf32"
    with ExitStack() as stack:
        if (torch := sys.modules.get("torch")) is not None:
            switches = torch.backends.cuda.matmul, torch.backends.cudnn
            before = [switch.allow_tf32 for switch in switches]

            def restore() -> None:
                for switch, value in zip(switches, before, strict=True):
                    switch.allow_tf32 = value

            stack.callback(restore)
            for switch in switches:
                switch.allow_tf32 = tf32
        if (jax := sys.modules.get("jax")) is not None:
            mode = "tensorfloat32" if tf32 else "highest"
            stack.enter_context(jax.default_matmul_precision(mode))
        yield
