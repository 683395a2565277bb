"""How a Flax parameter is called and laid out in torch: one rule, no table per model.

The paths of both twins are the same, so only the leaf's name and the order of its axes
differ. torch has (out, in, *space), Flax (*space, in, out).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

TORCH_LEAF: Mapping[str, str] = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
    "num_batches_tracked": "num_batches_tracked",
}
"""Name of a leaf in Flax → name of the same leaf in torch."""

COUNTER = "num_batches_tracked"


def torch_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape that a Flax leaf has in torch."""
    if leaf == COUNTER:
        return ()
    return tuple(shape[axis] for axis in _to_torch(len(shape)))


def to_torch(leaf: str, array: np.ndarray) -> np.ndarray:
    """Returns a Flax leaf's value as torch lays it out, in memory of its own."""
    if leaf == COUNTER:  # two words, low first; see resnet_flax.layers.BatchNorm2d
        low, high = array.tolist()
        return np.array(high << 32 | low, np.uint64).view(np.int64)
    return np.array(array.transpose(_to_torch(array.ndim)), order="C")


def to_flax(leaf: str, array: np.ndarray) -> np.ndarray:
    """Returns a torch leaf's value as Flax lays it out, in memory of its own."""
    if leaf == COUNTER:
        count = int(array.view(np.uint64))
        return np.array([count & 0xFFFFFFFF, count >> 32], np.uint32)
    axes = np.argsort(_to_torch(array.ndim))
    return np.array(array.transpose(axes), order="C")


def _to_torch(rank: int) -> tuple[int, ...]:
    if rank < 2:
        return tuple(range(rank))
    return (rank - 1, rank - 2, *range(rank - 2))
