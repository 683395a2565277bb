"""What identifies a check: digests of its data, the machine and the versions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np


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


def differing_bits(
    a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]
) -> dict[str, str]:
    """Compares two states as integers: NaN payloads and the sign of zero count.

    Returns:
        What differs, by name of the entry; empty if the states are identical.
    """
    differences = {}
    for name in [*a, *(name for name in b if name not in a)]:
        if name not in a or name not in b:
            differences[name] = "only in one"
        elif (a[name].dtype, a[name].shape) != (b[name].dtype, b[name].shape):
            differences[name] = (
                f"{a[name].dtype.name} {a[name].shape} and "
                f"{b[name].dtype.name} {b[name].shape}"
            )
        else:
            count = int((as_bits(a[name]) != as_bits(b[name])).sum())
            if count:
                differences[name] = f"{count} of {a[name].size} values differ"
    return differences


def as_bits(array: np.ndarray) -> np.ndarray:
    """Returns an array's values as unsigned integers of the same width."""
    return np.array(array, order="C", copy=None).view(f"u{array.dtype.itemsize}")
