"""What whoever asks for a check wants otherwise than the gates have it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from parity.judging.report import GateResult, Row, share_used

SKIPPED = "skipped, as asked"

GRANTED = "limit as asked"


@dataclass(frozen=True)
class Wish:
    """Names that are not judged, and errors that are granted.

    Args:
        rtol: pattern → relative error.
        skip: patterns.
    """

    rtol: Mapping[str, float]
    skip: Sequence[str]

    def granted(self, result: GateResult) -> GateResult:
        """Returns a gate's result with them, and with notes that say so."""
        return replace(result, rows=tuple(map(self._row, result.rows)))

    def _row(self, row: Row) -> Row:
        if any(fnmatchcase(row.name, pattern) for pattern in self.skip):
            return Row(row.name, True, row.kind, note=SKIPPED)
        for pattern, limit in self.rtol.items():
            measured = row.limit > 0 and not row.note.endswith("finite")
            if measured and fnmatchcase(row.name, pattern):
                pair = [row.figures[n] for n in ("torch", "flax") if n in row.figures]
                error = max([row.error, *(figures["l2"] for figures in pair)])
                figures = {**row.figures, "use": error / limit}
                return replace(
                    row,
                    ok=error <= limit,
                    error=error,
                    limit=limit,
                    note=GRANTED,
                    figures=figures,
                )
        return row

    def vain(self, results: Iterable[GateResult]) -> list[str]:
        """Lists in a line each what was asked for and concerns nothing."""
        names = {row.name for result in results for row in result.rows}
        return [
            f"{pattern!r}, as asked for by {what}, is no name here: it changes nothing"
            for what, patterns in (("rtol", self.rtol), ("skip", self.skip))
            for pattern in patterns
            if not any(fnmatchcase(name, pattern) for name in names)
        ]

    def setting(self) -> dict[str, Any]:
        """Returns them for the report, if there are any."""
        wishes = {"rtol": dict(self.rtol), "skip": list(self.skip)}
        return {name: wish for name, wish in wishes.items() if wish}


def together(results: Sequence[GateResult]) -> GateResult:
    """Returns a gate's results on several batches as one: the worst of each row."""
    first = results[0]
    if len(results) == 1:
        return first
    worst: dict[tuple[str, str], Row] = {}
    for number, result in enumerate(results, start=1):
        for row in result.rows:
            # Of a module alone a row says the worst, which may be of another kind.
            key = (row.name, "" if result.isolated else row.kind)
            note = f"{row.note} in batch {number}".strip() if not row.ok else row.note
            said = replace(row, note=note)
            worst[key] = max(worst.get(key, said), said, key=share_used)
    skipped = "; ".join(dict.fromkeys(r.skipped for r in results if r.skipped))
    rows = tuple(worst.values())
    return replace(first, rows=rows, skipped="" if rows else skipped)
