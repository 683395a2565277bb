"""A state made to fit: another dtype, other channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from parity.weights.state import DTYPES, as_array, require_mapping


def adapt_in_channels(
    mapping: Mapping[str, Any], in_channels: int, *, key: str | None = None
) -> dict[str, Any]:
    """Fits the first convolution to another number of channels, as timm does.

    One channel gets the sum of the kernels, so that a gray image gives what it gave as
    RGB. More channels repeat the kernels, scaled so that the sum stays. (timm,
    ``adapt_input_conv``.)

    Args:
        mapping: a state whose first convolution takes three channels.
        in_channels: how many it shall take.
        key: its weight; by default that of the stem.

    Raises:
        TypeError: it is no mapping.
        ValueError: there is no such kernel of three channels, or no such number.
    """
    require_mapping(mapping)
    if in_channels < 1:
        raise ValueError(f"in_channels is {in_channels}; it must be a positive integer")
    if key is None:
        key = "conv1.weight" if "conv1.weight" in mapping else "conv1.0.weight"
    kernel: np.ndarray = as_array(mapping[key]) if key in mapping else np.empty(0)
    if kernel.ndim != 4 or kernel.shape[1:2] != (3,):
        raise ValueError(
            f"{key} has shape {kernel.shape}; it must be a kernel of 3 input channels"
        )
    wide = kernel.astype(np.promote_types(kernel.dtype, np.float32))
    if in_channels == 1:
        adapted = wide.sum(1, keepdims=True)
    elif in_channels == 3:
        adapted = wide
    else:
        repeats = -(-in_channels // 3)
        adapted = np.tile(wide, (1, repeats, 1, 1))[:, :in_channels]
        adapted = adapted * wide.dtype.type(3 / in_channels)
    return {**mapping, key: adapted.astype(kernel.dtype)}


def cast(mapping: Mapping[str, Any], dtype: str) -> dict[str, np.ndarray]:
    """Returns a copy with every floating-point entry converted; integers stay.

    Args:
        mapping: as :func:`state_dict` returns it; tensors of torch and arrays of JAX
            are taken too.
        dtype: ``"float16"``, ``"bfloat16"``, ``"float32"`` or ``"float64"``.

    Raises:
        TypeError: it is no mapping of names to arrays.
        ValueError: there is no such dtype.
    """
    floats = [name for name in DTYPES if name != "int64"]
    if dtype not in floats:
        raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(floats)}")
    require_mapping(mapping)
    arrays = {name: as_array(value) for name, value in mapping.items()}
    return {
        name: array.copy() if array.dtype.kind in "iu" else array.astype(DTYPES[dtype])
        for name, array in arrays.items()
    }
