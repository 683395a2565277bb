"""What changed from one run to another, beyond the noise of both."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median as middle
from typing import Any

from benchmarks.results.estimates import Estimate, change
from benchmarks.results.figures import Results

MARGIN = 0.03
"""Part of a time below which a change is none, however sure."""


@dataclass(frozen=True)
class Change:
    """One row in two runs.

    Args:
        case: its key, and what it is a point of.
        mode: its name.
        time: the new median over the old one, with its interval of 99 %, less what the
            machine's drift explains.
        verdict: ``"slower"``, ``"faster"`` or ``"same"``; or what it is now.
    """

    case: str
    mode: str
    time: Estimate | None
    verdict: str


def compare(old: Results, new: Results) -> list[Change]:
    """Compares the rows that either run has timed, in the new one's order."""
    before, after = _rows(old), _rows(new)
    machine = drift(old, new)
    found = []
    for key in [*after, *(key for key in before if key not in after)]:
        first, second = before.get(key), after.get(key)
        if first is None or second is None:
            row = first or second
            if row is not None and row["status"] == "timed":
                found.append(Change(*key, None, "gone" if second is None else "new"))
        elif first["status"] == second["status"] == "timed":
            time = change([t * machine for t in first["times"]], second["times"])
            found.append(Change(*key, time, verdict(time)))
        elif "timed" in (first["status"], second["status"]):
            text = f"{first['status']} before, {second['status']} now"
            found.append(Change(*key, None, text))
    return found


def drift(old: Results, new: Results) -> float:
    """Returns by what the machine's times were multiplied, from its matrix products.

    The middle over all that both runs have; 1 where they have none.
    """
    before, after = _rows(old), _rows(new)
    changes = [
        middle(row["times"]) / middle(before[key]["times"])
        for key, row in after.items()
        if row.get("kind") == "ceiling"
        and row["status"] == before.get(key, {}).get("status") == "timed"
    ]
    return middle(changes) if changes else 1.0


def verdict(time: Estimate) -> str:
    """Says whether a time has changed: its whole interval lies beyond the margin."""
    if time.low > 1 + MARGIN:
        return "slower"
    if time.high < 1 / (1 + MARGIN):
        return "faster"
    return "same"


def other_settings(old: Results, new: Results) -> list[str]:
    """Names settings in which the runs differ, whose times are then no wonder."""
    pairs = [(run["environment"], run["environment"]["versions"]) for run in (old, new)]
    keys = (
        *("device", "processors", "threads", "commit", "changed", "python"),
        *("platform", "profile", "repeats"),
    )
    found = [
        f"{key}: {pairs[0][0].get(key)} before, {pairs[1][0].get(key)} now"
        for key in keys
        if pairs[0][0].get(key) != pairs[1][0].get(key)
    ]
    for package in sorted(pairs[0][1].keys() | pairs[1][1].keys()):
        first, second = (versions.get(package) for _, versions in pairs)
        if first != second:
            found.append(f"{package}: {first} before, {second} now")
    flags = [_flags(run) for run in (old, new)]
    for mode in sorted(flags[0].keys() & flags[1].keys()):
        if flags[0][mode] != flags[1][mode]:
            found.append(f"{mode}: {flags[0][mode]} before, {flags[1][mode]} now")
    return found


def _flags(results: Results) -> dict[str, str]:
    """What the modes that were timed told XLA."""
    return {
        f"XLA_FLAGS of {row['mode']}, {case['task']}": told["xla_flags"] or "none"
        for case in results["cases"]
        for row in case["rows"]
        if (told := row.get("settings", {}).get("jax"))
    }


def _rows(results: Results) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (" ".join([case["key"], *case["sweeps"]]), row["mode"]): row
        for case in results["cases"]
        for row in case["rows"]
    }
