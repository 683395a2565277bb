"""Where JAX has the axes of a map, and torch has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np

from parity.running.taps import Quantity
from parity.weights.names import Shape

Axes = tuple[int, ...]
"""Of each axis in torch, which one it is in JAX."""


@dataclass(frozen=True)
class Layouts:
    """Turns arrays of JAX into torch's layout, and back.

    Maps of four and five axes have their channels last in JAX and second in torch;
    others are alike. Where the shapes tell otherwise, they are followed.

    Args:
        given: pattern of taps → both layouts, as ``"nlc->ncl"``: JAX's and torch's.
        shapes: of torch's quantities, as far as they are known.
    """

    given: Mapping[str, str] = field(default_factory=dict)
    shapes: Mapping[Quantity, Shape] = field(default_factory=dict)

    def to_torch(self, quantity: Quantity, array: np.ndarray) -> np.ndarray:
        """Returns an array of JAX as torch has it."""
        return array.transpose(self.axes(quantity, array.shape))

    def to_jax(self, name: str, array: np.ndarray, shape: Shape | None) -> np.ndarray:
        """Returns an array of torch as JAX has it.

        Args:
            name: of the tap, or of the input.
            array: what torch has.
            shape: that it has in JAX, if it is known.
        """
        choices = self._choices(name, array.ndim)
        axes = choices[0] if shape is None else _fitting(choices, shape, array.shape)
        return array.transpose(np.argsort(axes))

    def axes(self, quantity: Quantity, shape: Shape) -> Axes:
        """Returns which axes of JAX torch's are.

        Args:
            quantity: what has this shape in JAX.
            shape: that shape.
        """
        choices = self._choices(quantity.name, len(shape))
        expected = self.shapes.get(_like(quantity))
        return choices[0] if expected is None else _fitting(choices, shape, expected)

    def other(self, tap: str, shape: Shape) -> tuple[Axes, str] | None:
        """Returns the layout that fits a tap's shape as well as the one it is taken in.

        Args:
            tap: its name.
            shape: in torch.

        Returns:
            Which axes of what was laid out as torch has it are those that torch would
            have in the other layout, and that layout; ``None`` if there is none.
        """
        choices = self._choices(tap, len(shape))
        known = len(choices) > 1 and len(shape) in (3, 4, 5)
        if not known or len(set(shape[1:])) > 1 or shape[1] == 1:
            return None
        usual, other = choices
        letters = {3: "nlc", 4: "nchw", 5: "ncdhw"}[len(shape)]
        torchs = "".join(letters[axis] for axis in other)
        return tuple(usual.index(axis) for axis in other), f"{letters}->{torchs}"

    def _choices(self, name: str, rank: int) -> list[Axes]:
        for pattern, layout in self.given.items():
            ours, _, torchs = layout.replace(" ", "").partition("->")
            if fnmatchcase(name, pattern) and len(ours) == rank:
                return [tuple(ours.index(axis) for axis in torchs)]
        same = tuple(range(rank))
        if rank < 3:
            return [same]
        channels_last = (0, rank - 1, *range(1, rank - 1))
        return [channels_last, same] if rank in (4, 5) else [same, channels_last]


def require(given: Mapping[str, str]) -> None:
    """Sees to it that layouts are such.

    Raises:
        ValueError: one is not.
    """
    for pattern, layout in given.items():
        ours, arrow, torchs = layout.replace(" ", "").partition("->")
        if not arrow or sorted(ours) != sorted(torchs) or len(set(ours)) < len(ours):
            raise ValueError(
                f"the layout of {pattern} is {layout!r}; expected the same axes twice, "
                'JAX\'s first, as "nhwc->nchw"'
            )


def _fitting(choices: list[Axes], ours: Shape, torchs: Shape) -> Axes:
    """Returns the first choice that makes one shape of the other, or the first.

    Where the channels fit, height and width that do not are a fault, and no layout.
    """
    first, *others = choices
    if len(ours) == len(torchs) > 3 and ours[first[1]] == torchs[1]:
        others = []
    for axes in (first, *others):
        if tuple(ours[i] for i in axes) == torchs:
            return axes
    return first


def _like(quantity: Quantity) -> Quantity:
    """Returns a quantity of the same shape that a run notes."""
    kind, name = quantity
    alike = {"gradient": "output", "input gradient": "input"}
    return Quantity(alike.get(kind, kind), name)
