"""What a run's JSON says of each row: figures derived from times, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median as middle
from typing import Any

from benchmarks.results.estimates import Estimate, median, quartiles, ratio

_LIBRARIES = ("torchvision", "timm", "keras", "jax-resnet", "flaxmodels")

Results = Mapping[str, Any]
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Figures:
    """A timed row's figures.

    Args:
        time: median of a repetition, in seconds.
        quartiles: of the times.
        rate: images a second, by the median.
        share: of the fastest measured matrix product in the same arithmetic; ``None``
            where none was measured.
        speed: how many times as fast as the case's first timed mode, round by round.
        compiling: the first call's seconds beyond a median one's.
        memory: peak of the process in bytes: over all, and after it was built.
    """

    time: Estimate
    quartiles: tuple[float, float]
    rate: float
    share: float | None
    speed: Estimate
    compiling: float
    memory: tuple[int, int]


def timed(case: Record, *kinds: str) -> list[Record]:
    """Returns a case's timed rows, of these kinds or of all but the ceilings."""
    wanted = kinds or ("twin", "peer")
    return [
        row
        for row in case["rows"]
        if row["status"] == "timed" and row["kind"] in wanted
    ]


def figures(case: Record) -> Iterator[tuple[Record, Figures]]:
    """Yields a case's timed rows with their figures; the first one is the measure."""
    rows = timed(case)
    ceilings = ceilings_of(case)
    for row in rows:
        time = median(row["times"])
        ceiling = ceilings.get(row["arithmetic"])
        share = operations(case, row) / time.value / ceiling if ceiling else None
        memory = row["memory"]
        yield (
            row,
            Figures(
                time=time,
                quartiles=quartiles(row["times"]),
                rate=case["batch"] / time.value,
                share=share,
                speed=ratio(row["times"], rows[0]["times"]),
                compiling=max(0.0, row["first"] - time.value),
                memory=(memory["peak"], memory["running"]),
            ),
        )


def ours_of(case: Record) -> dict[str, str]:
    """Returns each twin's fastest float32 mode: ``"torch"`` and ``"flax"``."""
    fastest = _fastest(case, "twin", lambda row: row["framework"])
    return {name: row["mode"] for name, row in fastest.items()}


def bests(case: Record) -> dict[str, dict[str, Estimate]]:
    """Compares fastest float32 modes: by a library's mode, each twin's speed over it.

    A library is a mode's name up to what it is told to do; one that is told to use
    XLA's faster settings counts apart from itself without them.
    """
    ours = _fastest(case, "twin", lambda row: row["framework"])
    theirs = _fastest(case, "peer", _library)
    return {
        row["mode"]: {
            name: ratio(mine["times"], row["times"]) for name, mine in ours.items()
        }
        for row in theirs.values()
    }


def _library(row: Record) -> tuple[str, bool]:
    name = row["mode"]
    first = next((it for it in _LIBRARIES if name.startswith(it)), name)
    return first, name.endswith("-fast")


def _fastest(
    case: Record, kind: str, group: Callable[[Record], Any]
) -> dict[Any, Record]:
    found: dict[Any, Record] = {}
    rows = [row for row in timed(case, kind) if row["arithmetic"] == "float32"]
    for row in sorted(rows, key=lambda row: middle(row["times"])):
        found.setdefault(group(row), row)
    return found


def operations(case: Record, row: Record) -> int:
    """Returns the floating-point operations of a row's repetition."""
    return row.get("flops") or case["flops"]


def ceilings_of(case: Record) -> dict[str, float]:
    """Returns operations a second of the fastest matrix product, by arithmetic."""
    found: dict[str, float] = {}
    for row in timed(case, "ceiling"):
        rate = row["flops"] / middle(row["times"])
        arithmetic = row["arithmetic"]
        found[arithmetic] = max(rate, found.get(arithmetic, 0.0))
    return found


def sweeps(results: Results) -> dict[str, list[Record]]:
    """Returns the cases that are points of a sweep, by sweep."""
    found: dict[str, list[Record]] = {}
    for case in results["cases"]:
        for sweep in case["sweeps"]:
            found.setdefault(sweep, []).append(case)
    return found


def single(results: Results) -> list[Record]:
    """Returns the cases that are no points of a sweep."""
    return [case for case in results["cases"] if not case["sweeps"]]
