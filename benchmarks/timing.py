"""How long functions take, compared fairly: interleaved, in one run, by medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """One function's times.

    Args:
        first: of the first call, with whatever it compiles, in seconds.
        times: of the measured calls, in order, in seconds.
    """

    first: float
    times: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median time of a call, in seconds."""
        return statistics.median(self.times)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles over the median."""
        low, _, high = statistics.quantiles(self.times, n=4)
        return (high - low) / 2 / self.median


def interleaved(
    functions: Mapping[str, Callable[[], object]], *, repeats: int, warm_up: int = 3
) -> dict[str, Timing]:
    """Times functions in turn, A B C A B C …, so that the machine's drift hits all.

    Args:
        functions: by name; each must return only when its work is done.
        repeats: measured calls of each, at least two.
        warm_up: calls of each after the first one, not measured.
    """
    first = {name: _seconds(function) for name, function in functions.items()}
    times: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(warm_up + repeats):
        for name, function in functions.items():
            seconds = _seconds(function)
            if repeat >= warm_up:
                times[name].append(seconds)
    return {name: Timing(first[name], tuple(times[name])) for name in functions}


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
