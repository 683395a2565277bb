"""What identifies a check: digests of its data, the machine and the versions."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_PACKAGES = ("resnet-twins", "torch", "jax", "jaxlib", "flax", "numpy")


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Returns the sha256 of named arrays: names, dtypes, shapes and bytes.

    The order of the names does not matter, nor how the arrays lie in memory.
    """
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = np.array(arrays[name], order="C", copy=None)
        sha.update(f"{name}\0{array.dtype.name}\0{array.shape}\0".encode())
        sha.update(array.reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def sha256_of(file: BinaryIO) -> str:
    """Returns the sha256 of what is left to read in a file."""
    sha = hashlib.sha256()
    while chunk := file.read(2**20):
        sha.update(chunk)
    return sha.hexdigest()


def environment() -> dict[str, Any]:
    """Returns versions, processor and threads, of the frameworks already imported."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "processors": os.cpu_count(),
        "versions": {package: _version(package) for package in _PACKAGES},
    }
    if (torch := sys.modules.get("torch")) is not None:
        found["torch"] = {
            "threads": torch.get_num_threads(),
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


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
