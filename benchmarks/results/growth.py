"""How time and memory grow, beside the work: slopes fitted to logarithms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.results.estimates import Estimate, slope
from benchmarks.results.figures import Record, Results, operations, sweeps

TOLERATED = 0.1
"""By which a cost's slope over the work may be above 1: caches end somewhere."""


def _depth(row: Record) -> float:
    return int(row["network"].removeprefix("resnet"))


_ALONG: dict[str, tuple[str, Callable[[Record], float]]] = {
    "batch": ("batch", lambda case: case["batch"]),
    "depth": ("depth", _depth),
    "size": ("side", lambda case: case["size"][0]),
}


@dataclass(frozen=True)
class Growth:
    """One mode along one sweep; a slope of 1 is proportional.

    Args:
        sweep: what grows: ``"batch"``, ``"depth"``, ``"size"``, ``"file"``.
        mode: which, or what was done.
        points: values of it, in order.
        times: medians at these, in seconds.
        memory: what the process took while it ran beyond its imports, in bytes.
        time_slope: of time, along the points.
        memory_slope: of memory.
        work_slope: of the floating-point operations, or of the bytes.
        by_work: of time and of memory over the work.
    """

    sweep: str
    mode: str
    points: tuple[float, ...]
    times: tuple[float, ...]
    memory: tuple[float, ...]
    time_slope: Estimate
    memory_slope: Estimate
    work_slope: float
    by_work: tuple[Estimate, Estimate]

    @property
    def ok(self) -> bool:
        """Whether neither grows faster than the work, as far as can be told."""
        return all(it.low <= 1 + TOLERATED for it in self.by_work)


def fit(results: Results) -> list[Growth]:
    """Fits every sweep of a run that has three points or more."""
    found = []
    for sweep, cases in sweeps(results).items():
        _, along = _ALONG[sweep]
        cases = sorted(cases, key=along)
        modes = {row["mode"] for case in cases for row in case["rows"]}
        for mode in sorted(modes):
            points = [
                (along(case), median(row["times"]), _memory(row), operations(case, row))
                for case in cases
                for row in case["rows"]
                if row["mode"] == mode and row["status"] == "timed"
            ]
            if len(points) > 2:
                found.append(_growth(sweep, mode, points))
    rows = results.get("conversion", [])
    if len(rows) > 2:
        points = [
            (row["bytes"], median(row["times"]), row["memory"], row["bytes"])
            for row in sorted(rows, key=lambda row: row["bytes"])
        ]
        found.append(_growth("file", "convert", points))
    made: dict[str, list[Record]] = {}
    for row in results.get("programs", []):
        made.setdefault(row["program"], []).append(row)
    for program, rows in made.items():
        points = [
            (_depth(row), row["seconds"], row["memory"], row["flops"])
            for row in sorted(rows, key=_depth)
        ]
        if len(points) > 2:
            found.append(_growth("depth", program, points))
    return found


def _growth(sweep: str, mode: str, points: list[tuple[Any, ...]]) -> Growth:
    along, times, memory, work = zip(*points, strict=True)
    return Growth(
        sweep=sweep,
        mode=mode,
        points=along,
        times=times,
        memory=memory,
        time_slope=slope(along, times),
        memory_slope=slope(along, memory),
        work_slope=slope(along, work).value,
        by_work=(slope(work, times), slope(work, memory)),
    )


def _memory(row: Record) -> float:
    return max(1.0, row["memory"]["running"] - row["memory"]["start"])
