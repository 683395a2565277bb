"""Where a derivative jumps, and which way each run took there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np

from parity.running.taps import Quantity

Values = Mapping[Quantity, np.ndarray]


@dataclass(frozen=True)
class Kink:
    """Units that took another way than the reference: beyond a jump of a derivative.

    Args:
        units: how many.
        size: the largest of the reference's values that decided them, over the largest
            of its map: what an error had to reach to turn them.
    """

    units: int
    size: float


class Kinks:
    """Which ways runs took at rectifiers, pools and their like.

    torch notes what each is given. Of the other network it is known where it has the
    same module, and where something that it gives, or hands to a module, is in the
    reference what goes into the rectifier or comes out of it: most others' rectifiers
    are functions that no tap shows.

    Args:
        folds: of the reference, by name, in order; see :mod:`parity.running.folds`.
        values: of the reference.
    """

    def __init__(self, folds: Mapping[str, Any], values: Values) -> None:
        self._folds = folds
        self._reference = values
        self.taps = list(folds)

    @property
    def own(self) -> dict[str, np.ndarray]:
        """The reference's ways."""
        return self.of_torch(self._reference)

    def of_torch(self, values: Values) -> dict[str, np.ndarray]:
        """Returns the ways of a run of torch."""
        quantities = {name: Quantity("way", name) for name in self.taps}
        return {name: values[q] for name, q in quantities.items() if q in values}

    def of_flax(self, values: Values, near: float) -> dict[str, np.ndarray]:
        """Returns the ways of a run of Flax, as far as they are known.

        Args:
            values: of the run.
            near: how far apart a value may be that is computed twice, over the largest
                of its map.
        """
        found: dict[str, np.ndarray] = {}
        derived: dict[str, np.ndarray] = {}
        for name, fold in self._folds.items():
            x, y = (self._at(name, kind, values) for kind in ("input", "output"))
            if x is None and y is None:
                into, out = self._prints[name]
                x, y = (
                    derived[key] if key in derived else self._like(key, values)
                    for key in (into, out)
                )
                if x is not None:
                    derived[out] = fold.output(x, fold.way(x))
            way = None if y is None else fold.way_of_output(y)
            if way is None and x is not None:
                way = fold.way(x)
            if way is not None and way.shape == self.own[name].shape:
                found[name] = self._as_gradients_say(name, way, values, near)
        return found

    def _as_gradients_say(
        self, name: str, way: np.ndarray, values: Values, near: float
    ) -> np.ndarray:
        """Returns the way, corrected where units are all but at a jump.

        A compiler may compute a value twice, to show it and to use it, and round it in
        two ways. Which one such a unit was used by, only its gradient tells.
        """
        fold = self._folds[name]
        before = Quantity("gradient", self._ahead.get(name, ""))
        after = Quantity("gradient", name)
        if before not in values or after not in values:
            return way
        x = self._reference[Quantity("kink", name)]
        gradients = values[before], values[after]
        if {x.shape, way.shape} != {gradient.shape for gradient in gradients}:
            return way
        close = near * np.abs(x).max(initial=0.0)
        return fold.way_of_gradients(x, way, *gradients, close=close)

    @cached_property
    def _ahead(self) -> dict[str, str]:
        """Of modules that are given what the one before them gives: that one."""
        found, last = {}, ""
        for kind, name in self._reference:
            if kind != "output":
                continue
            if name in self._folds and last:
                x = self._reference[Quantity("kink", name)]
                if np.array_equal(x, self._reference[Quantity(kind, last)]):
                    found[name] = last
            last = name
        return found

    def between(self, name: str, other: np.ndarray) -> Kink:
        """Compares the reference's way with another.

        Args:
            name: where.
            other: a run's, which is another.
        """
        x, ours = self._reference[Quantity("kink", name)], self.own[name]
        turned = other != ours
        decided = self._folds[name].distance(x, ours, other)
        size = decided[turned].max() / np.abs(x).max()
        return Kink(int(turned.sum()), float(size))

    def _at(self, name: str, kind: str, values: Values) -> np.ndarray | None:
        """Returns what the module of this name was given, or gave, of equal shape."""
        quantity = Quantity(kind, name)
        if quantity not in values or quantity not in self._reference:
            return None
        value = values[quantity]
        return value if value.shape == self._reference[quantity].shape else None

    def _like(self, key: str, values: Values) -> np.ndarray | None:
        """Returns what a run has where the reference has an array of this print."""
        for quantity in self._printed.get(key, ()):
            found = self._at(quantity.name, quantity.kind, values)
            if found is not None:
                return found
        return None

    @cached_property
    def _prints(self) -> dict[str, tuple[str, str]]:
        """Prints of what each was given, and gave."""
        found = {}
        for name, fold in self._folds.items():
            x = self._reference[Quantity("kink", name)]
            found[name] = _print(x), _print(fold.output(x, self.own[name]))
        return found

    @cached_property
    def _printed(self) -> dict[str, list[Quantity]]:
        found: dict[str, list[Quantity]] = {}
        for quantity in self._reference:
            if quantity.kind in ("input", "output"):
                found.setdefault(_print(self._reference[quantity]), []).append(quantity)
        return found


def _print(array: np.ndarray) -> str:
    plain = np.ascontiguousarray(array) + 0.0 if array.dtype.kind == "f" else array
    return f"{array.shape} {sha256(plain.tobytes()).hexdigest()}"
