"""What a serial sum in float32 loses of its terms, measured on those of a reference."""

from __future__ import annotations

from math import sqrt

import numpy as np

from parity.judging.tolerances import SHADES, UNIT_ROUNDOFF
from parity.running.norms import Lost, Norm


def by_channel(values: np.ndarray, axis: int) -> np.ndarray:
    """Returns values as (channels, all else)."""
    return values.swapaxes(0, axis).reshape(values.shape[axis], -1)


def lost_in_series(terms: np.ndarray) -> np.ndarray:
    """Returns what a serial sum in float32 loses of terms (channels, n), by channel."""
    terms = terms.astype(np.float32)
    return terms.cumsum(1, dtype=np.float32)[:, -1] - terms.sum(1, dtype=np.float64)


def lost_at_worst(terms: np.ndarray) -> np.ndarray:
    """Does what :func:`lost_in_series` does, for the shade of which most is lost."""
    lost = np.stack([lost_in_series(terms * shade) for shade in SHADES])
    worst = np.abs(lost).argmax(0)
    return lost[worst, np.arange(len(terms))]


def lost_in_norm(
    norm: Norm, x: np.ndarray, gradient: np.ndarray | None, weight: np.ndarray
) -> Lost:
    """Returns what serial sums lose in a norm, whose variance may be E(x²) - E(x)².

    Of a batch norm's statistics nothing is granted: equal pairs pass without it.
    """
    rows = norm.rows(x)
    unit = rows.shape[1] * UNIT_ROUNDOFF["float32"]
    none = np.zeros(len(rows))
    steady = scaled = none
    if norm.groups is not None:
        divisor = np.sqrt(rows.var(1) + norm.eps)
        mean = lost_at_worst(rows) / unit
        variance = lost_at_worst(rows**2) / unit - 2 * rows.mean(1) * mean
        steady, scaled = -mean / divisor, -variance / (2 * divisor**2)
    if gradient is None:
        return Lost(norm, weight, (steady, none), (scaled, none))
    terms, normal = norm.rows(gradient * weight), norm.rows(norm.normal(x)[0])
    back = [lost_at_worst(part) / unit for part in (terms, terms * normal)]
    return Lost(norm, weight, (steady, back[0]), (scaled, back[1]))


def lost_of_products(gradient: np.ndarray, x: np.ndarray, groups: int) -> float:
    """Returns the 2-norm of what float32 loses of a sum of gradient times input's mean.

    Args:
        gradient: by the output, (n, o, ...).
        x: the input, (n, i, ...).
        groups: of channels.
    """
    lost = lost_in_series(by_channel(gradient, 1))
    means = x.mean(tuple(axis for axis in range(x.ndim) if axis != 1))
    by_group = (np.square(v).reshape(groups, -1).sum(1) for v in (lost, means))
    return float(sqrt(np.prod([*by_group], axis=0).sum()))
