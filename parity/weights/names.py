"""How a Flax parameter is called and laid out in torch: one rule, no table per model.

The paths of both twins are the same, so only the leaf's name and the order of its axes
differ. torch has (out, in, *space), Flax (*space, in, out).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

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

EMBEDDING = "embedding"
"""A leaf of Flax that torch calls ``weight``, and lays out alike."""


def torch_name(own: str, aliases: Mapping[str, str]) -> str:
    """Returns torch's name of a Flax variable; unknown leaves keep theirs.

    Args:
        own: its path and leaf.
        aliases: path in Flax → path in torch, where they differ.
    """
    place, _, leaf = own.rpartition(".")
    place = aliases.get(place, place)
    leaf = "weight" if leaf == EMBEDDING else TORCH_LEAF.get(leaf, leaf)
    return f"{place}.{leaf}" if place else leaf


def in_torch_order(children: Iterable[str], declared: Sequence[str] = ()) -> list[str]:
    """Sorts the names of a module's children as torchvision's modules register them.

    Numbers come in order; in a block ``conv1 bn1 conv2 bn2 … relu se downsample``, in a
    split attention ``conv bn0 fc1 bn1 fc2``.

    Args:
        children: the names.
        declared: those of them whose order the module knows itself.
    """

    def rank(name: str) -> tuple[int, int, int]:
        if name in declared:
            return (0, declared.index(name), 0)
        word = name.rstrip("0123456789")
        number = int(name[len(word) :] or -1)
        if word in ("", "conv", "bn") or (word == "fc" and number > 0):
            return (1, number, word == "bn")
        return (2, _LAST.index(word) if word in _LAST else len(_LAST), number)

    return sorted(children, key=rank)


_LAST = ("relu", "se", "downsample")


def torch_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape that a Flax leaf has in torch."""
    if leaf == COUNTER:
        return ()
    return tuple(shape[axis] for axis in _to_torch(len(shape)))


def to_torch(leaf: str, array: np.ndarray) -> np.ndarray:
    """Returns a Flax leaf's value as torch lays it out, in memory of its own."""
    if leaf == COUNTER and array.shape == (2,):  # words; see resnet_flax.norm
        low, high = array.tolist()
        return np.array(high << 32 | low, np.uint64).view(np.int64)
    if leaf not in TORCH_LEAF:  # one of others, or an embedding: alike in both
        return np.array(array, order="C")
    return np.array(array.transpose(_to_torch(array.ndim)), order="C")


def to_flax(leaf: str, array: np.ndarray) -> np.ndarray:
    """Returns a torch leaf's value as Flax lays it out, in memory of its own."""
    if leaf == COUNTER:
        count = int(array.view(np.uint64))
        return np.array([count & 0xFFFFFFFF, count >> 32], np.uint32)
    if leaf not in TORCH_LEAF:
        return np.array(array, order="C")
    axes = np.argsort(_to_torch(array.ndim))
    return np.array(array.transpose(axes), order="C")


def _to_torch(rank: int) -> tuple[int, ...]:
    if rank < 2:
        return tuple(range(rank))
    return (rank - 1, rank - 2, *range(rank - 2))


Shape = tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """Shape and dtype of one entry of a state, as torch has it."""

    shape: Shape
    dtype: str
