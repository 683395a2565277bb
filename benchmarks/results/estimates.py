"""What repeated times say, and how surely: medians, their intervals, ratios, slopes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure and the interval that it lies in, with 95 % confidence.

    Args:
        value: the figure.
        low: the interval's lower end.
        high: its upper end.
    """

    value: float
    low: float
    high: float


def median(times: Sequence[float]) -> Estimate:
    """Returns the median with the interval that ranks give, whatever the distribution.

    It may be off by k of n values on either side as a fair coin is by k of n throws.
    """
    ordered = np.sort(times)
    n = len(ordered)
    rank = int(stats.binom.ppf((1 - CONFIDENCE) / 2, n, 0.5))
    rank = min(max(rank - 1, 0), (n - 1) // 2)
    return Estimate(
        float(np.median(ordered)), float(ordered[rank]), float(ordered[n - 1 - rank])
    )


def quartiles(times: Sequence[float]) -> tuple[float, float]:
    """Returns the first and the third quartile."""
    low, high = np.quantile(times, [0.25, 0.75])
    return float(low), float(high)


def ratio(times: Sequence[float], others: Sequence[float]) -> Estimate:
    """Returns how many times as fast the first are as the others, round by round.

    Both are from the same rounds, so that what slowed the machine hit both.
    """
    rounds = min(len(times), len(others))
    return median([b / a for a, b in zip(times[:rounds], others[:rounds], strict=True)])


def change(old: Sequence[float], new: Sequence[float], *, seed: int = 0) -> Estimate:
    """Returns by what the median time was multiplied from one run to another.

    The interval has 99 %: many rows are looked at at once.
    """
    rng = np.random.default_rng(seed)

    def medians(times: Sequence[float]) -> np.ndarray:
        drawn = rng.choice(np.asarray(times), (4000, len(times)))
        return np.median(drawn, axis=1)

    low, high = np.quantile(medians(new) / medians(old), [0.005, 0.995])
    return Estimate(float(np.median(new) / np.median(old)), float(low), float(high))


def slope(x: Sequence[float], y: Sequence[float]) -> Estimate:
    """Returns b of y ~ x^b by least squares on logarithms; 1 is proportional."""
    fit: Any = stats.linregress(np.log(x), np.log(y))
    # Of values that are all the same, it has no standard error.
    error = float(np.nan_to_num(fit.stderr)) if len(x) > 2 else 0.0
    around = error * float(stats.t.ppf((1 + CONFIDENCE) / 2, max(1, len(x) - 2)))
    middle = float(fit.slope)
    return Estimate(middle, middle - around, middle + around)
