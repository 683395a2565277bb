"""What JAX's arrays are called in torch, and how they lie there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from parity.running.layouts import Layouts
from parity.running.taps import NESTED, Quantity
from parity.weights import names

Weights = Mapping[str, Callable[[Mapping[str, np.ndarray]], np.ndarray]]
"""Entry in torch → what makes it of JAX's entries; see :func:`compare_modules`."""

ENTRIES = ("parameter gradient", "statistic", "state")
"""Kinds of quantities that are entries of a state."""


@dataclass(frozen=True)
class Names:
    """From JAX's names and layouts to torch's.

    Args:
        aliases: path in JAX → path in torch, for all that differ.
        weights: what is made of several entries, or of parts of one.
        layouts: of maps.
        said: whether an entry counts only if a path or ``weights`` speak of it.
    """

    aliases: Mapping[str, str] = field(default_factory=dict)
    weights: Weights = field(default_factory=dict)
    layouts: Layouts = field(default_factory=Layouts)
    said: bool = False

    def tap(self, name: str) -> str:
        """Returns torch's name of a tap; a module has its alias already."""
        call, nested, part = name.partition(NESTED)
        path, at, count = call.partition("@")
        found = self.aliases.get(f"{path}{nested}{part}")
        if found is None:
            return name
        path, nested, part = found.partition(NESTED)
        return f"{path}{at}{count}{nested}{part}"

    def entries(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns entries of a state, or their gradients, as torch has them.

        What is made of entries that are not there is left out; an entry that something
        is made of does not stand for itself.
        """
        found, used = {}, set()
        for name, function in self.weights.items():
            asked = _Asked(arrays)
            try:
                found[name] = np.array(function(asked), order="C")
            except KeyError:
                continue
            used |= asked.names
        for own, array in arrays.items():
            place, _, leaf = own.rpartition(".")
            if own not in used and (place in self.aliases or not self.said):
                found[names.torch_name(own, self.aliases)] = names.to_torch(leaf, array)
        return found

    def in_torch(
        self, found: Iterator[tuple[Quantity, np.ndarray]]
    ) -> Iterator[tuple[Quantity, np.ndarray]]:
        """Yields what a run gave under torch's names, in torch's layouts."""
        states: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in ENTRIES}
        for (kind, name), array in found:
            if kind in states:
                states[kind][name] = array
            else:
                quantity = Quantity(kind, self.tap(name))
                yield quantity, self.layouts.to_torch(quantity, array)
        for kind, arrays in states.items():
            for name, array in self.entries(arrays).items():
                yield Quantity(kind, name), array


class _Asked(dict[str, np.ndarray]):
    """A mapping that remembers what it has been asked for."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        super().__init__(arrays)
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        value = super().__getitem__(name)
        self.names.add(name)
        return value


NAMES = Names()
"""The same names, and the usual layouts."""
