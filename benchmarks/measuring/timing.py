"""How long functions take, compared fairly: interleaved, in one run, by medians."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

LEAST = 7
"""Repetitions that a median and its interval need."""


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
    timers = {
        name: lambda function=function: _seconds(function)
        for name, function in functions.items()
    }
    times = rounds(timers, repeats=repeats, warm_up=warm_up)
    return {name: Timing(first[name], tuple(times[name])) for name in functions}


def rounds(
    timers: Mapping[str, Callable[[], float]],
    *,
    repeats: int,
    warm_up: int,
    seconds: float | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, list[float]]:
    """Lets each take its turn, round after round; returns what they measured.

    Args:
        timers: by name; each does one repetition and returns its seconds.
        repeats: rounds that count.
        warm_up: rounds before them.
        seconds: no new round is begun when those that count have taken so long, if
            there were at least ``LEAST``; ``None`` for as long as they take.
        progress: told after every round how many there have been.
    """
    times: dict[str, list[float]] = {name: [] for name in timers}
    limit = math.inf if seconds is None else seconds
    start = time.perf_counter()
    for done in range(warm_up + repeats):
        if done == warm_up:
            start = time.perf_counter()
        enough = done - warm_up >= min(LEAST, repeats)
        if enough and time.perf_counter() - start > limit:
            break
        for name, timer in timers.items():
            measured = timer()
            if done >= warm_up:
                times[name].append(measured)
        progress(done + 1)
    return times


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
