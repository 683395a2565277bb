"""How far one array is from another, with the place where it is farthest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from parity.weights.names import Shape

SAMPLE = 2**14
"""Values from which quantiles are taken, at most about so many."""


@dataclass(frozen=True)
class Deviation:
    """Distance of an array from its reference.

    Args:
        l2: 2-norm of the difference over the 2-norm of the reference.
        max: maximum norm of the difference over the maximum norm of the reference.
        scale: how much of the reference the difference has in it: the sum of both's
            products over the reference's of squares. Rounding's averages out; that of
            a factor of 1.01 is 0.01.
        p50: median of the difference over the same norm; of large arrays from a sample.
        p99: what 99 % of them do not exceed, likewise.
        worst: index of the largest difference, (n, c, h, w) for a map.
        value: what stands there.
        expected: what the reference has there.
        finite: whether both arrays are finite throughout.
    """

    l2: float
    max: float
    scale: float
    p50: float
    p99: float
    worst: Shape
    value: float
    expected: float
    finite: bool


def deviation(
    value: np.ndarray, reference: np.ndarray, *, terms: np.ndarray | None = None
) -> Deviation:
    """Measures in float64 how far an array is from its reference.

    Args:
        value: the array.
        reference: what it is measured against.
        terms: what the difference is divided by, where the reference is nothing but
            the rounding errors of larger terms that cancel.

    Raises:
        ValueError: the shapes differ. Nothing is ever broadcast.
    """
    if value.shape != reference.shape:
        raise ValueError(f"shapes differ: {value.shape} and {reference.shape}")
    finite = bool(np.isfinite(value).all() and np.isfinite(reference).all())
    with np.errstate(invalid="ignore"):  # inf - inf: reported as not finite
        error = np.subtract(value, reference, dtype=np.float64)
    norms = reference if terms is None else terms
    with np.errstate(invalid="ignore", over="ignore"):
        squares = product(norms, norms)
        scale = ratio(product(error, reference), squares)
    error = np.abs(error)
    worst = np.unravel_index(int(error.argmax()), error.shape) if error.size else ()
    largest = np.abs(norms).max(initial=0.0)
    sample = error.ravel()[:: error.size // SAMPLE + 1] if error.size else np.zeros(1)
    p50, p99 = np.quantile(sample, (0.5, 0.99))
    return Deviation(
        l2=ratio(l2(error), squares**0.5),
        max=ratio(error.max(initial=0.0), largest),
        scale=scale,
        p50=ratio(p50, largest),
        p99=ratio(p99, largest),
        worst=tuple(int(i) for i in worst),
        value=float(value[worst]) if error.size else 0.0,
        expected=float(reference[worst]) if error.size else 0.0,
        finite=finite,
    )


def product(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the sum of all products, in float64 and always in the same order.

    A BLAS would sum on several threads: what it gives depends on their number, and on a
    busy machine they wait for each other a thousand times as long as this takes.
    """
    one, other = one.ravel(), other.ravel()
    return float(np.einsum("i,i->", one, other, dtype=np.float64, casting="unsafe"))


def l2(values: np.ndarray) -> float:
    """Returns the 2-norm of all values."""
    with np.errstate(over="ignore", invalid="ignore"):
        return product(values, values) ** 0.5


def ratio(error: float | np.floating, norm: float | np.floating) -> float:
    """Returns an error over what it is measured by; zero over zero is zero."""
    if error == 0:
        return 0.0
    return float(error / norm) if norm > 0 else float("inf")
