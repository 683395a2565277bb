"""Whether a mode computes what it should: asked before it is timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from parity.judging.distance import deviation
from parity.judging.tolerances import ceiling, gradient_ceiling, growth_of_product


@dataclass(frozen=True)
class Verdict:
    """What the gate says of a mode.

    Args:
        error: the largest distance from the reference over its limit decides; this is
            that distance, relative, in the 2-norm.
        limit: that it may have.
        quantity: of which.
    """

    error: float
    limit: float
    quantity: str

    @property
    def ok(self) -> bool:
        """Whether it may be timed. What is not a number may not."""
        return self.error <= self.limit

    def __str__(self) -> str:
        sign = "within" if self.ok else "beyond"
        return f"{self.quantity} {self.error:.1e}, {sign} {self.limit:.1e}"


def judge(
    found: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
    arithmetic: str,
    growth: float,
    layers: int,
) -> Verdict:
    """Compares a mode's results with the float64 reference's.

    Args:
        found: by name.
        reference: by name; the mode must have each, in the same shape.
        arithmetic: what the mode computes in.
        growth: of rounding errors in this network.
        layers: that it has, about.
    """
    verdicts = []
    for name, expected in reference.items():
        limit = ceiling(arithmetic, growth)
        if name == "step":
            limit = gradient_ceiling(arithmetic, growth, layers)
        value = found.get(name)
        if value is None or value.shape != expected.shape:
            return Verdict(float("inf"), limit, f"{name} of another shape")
        moved = deviation(value, expected)
        error = moved.l2 if moved.finite else float("inf")
        verdicts.append(Verdict(error, limit, name))
    return max(verdicts, key=lambda verdict: verdict.error / verdict.limit)


def judge_product(found: Mapping[str, np.ndarray], arithmetic: str) -> Verdict:
    """Compares a row of a matrix product with the same in float64."""
    limit = ceiling(arithmetic, growth_of_product(len(found["row"])))
    return Verdict(deviation(found["row"], found["expected"]).l2, limit, "product")
