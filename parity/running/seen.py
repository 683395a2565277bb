"""What is noted of a Flax network's calls when they are traced."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from parity.running.taps import Invocation, Quantity, parts
from parity.weights.names import Shape


@dataclass(frozen=True)
class Seen:
    """The calls of a network, by tap.

    Args:
        dtypes: of their outputs.
        shapes: of what they are given, and give, as JAX has it.
        plain: those that are given one array, and give one.
    """

    dtypes: dict[str, str] = field(default_factory=dict)
    shapes: dict[Quantity, Shape] = field(default_factory=dict)
    plain: set[str] = field(default_factory=set)

    def call(self, it: Invocation, tap: str, y: Any) -> Iterator[tuple[str, Any]]:
        """Notes a call, and yields the arrays that it gives, by name."""
        import jax

        if it.x is not None:
            self.shapes[Quantity("input", tap)] = it.x.shape
        if it.alone and isinstance(y, jax.Array):
            self.plain.add(tap)
        for name, part in parts(y, jax.Array, tap):
            self.shapes[Quantity("output", name)] = part.shape
            self.dtypes[name] = part.dtype.name
            yield name, part
