"""The result of a check: the verdict, where the twins part, and every figure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

from parity.judging.distance import ratio
from parity.running.taps import Quantity
from parity.text import table
from parity.weights.names import Shape


@dataclass(frozen=True)
class Report:
    """What a check found.

    Args:
        gates: the verdicts, in order.
        shapes: shape of every tap of the reference, in the order of computation.
        setting: what was checked and with what: versions, threads, digests.
        hidden: what inputs and weights kept from being seen, a line each.
        quantities: by gate, the shape of all that the reference has in its mode; empty
            where there were several batches.
    """

    gates: tuple[GateResult, ...]
    shapes: Mapping[str, Shape]
    setting: Mapping[str, Any]
    hidden: tuple[str, ...] = ()
    quantities: Mapping[str, Mapping[Quantity, Shape]] = field(
        default_factory=dict, repr=False
    )

    @property
    def ok(self) -> bool:
        """Whether every gate passed, and one at least judged something."""
        judged = any(gate.rows for gate in self.gates)
        return judged and all(gate.ok for gate in self.gates)

    def __bool__(self) -> bool:
        return self.ok

    @property
    def first_divergence(self) -> str | None:
        """Name of the first tap or entry that is out of the first gate that failed."""
        for gate in self.gates:
            if gate.failures:
                return gate.failures[0].name
        return None

    @property
    def culprits(self) -> tuple[str, ...]:
        """The modules that compute something else when given the same input.

        What the isolated gates found: calls by name, in order of computation.
        """
        failed = [
            row.name for gate in self.gates if gate.isolated for row in gate.failures
        ]
        return tuple(dict.fromkeys(failed))

    def gate(self, name: str) -> GateResult:
        """Returns the verdict of one gate.

        Raises:
            KeyError: this gate was not part of the check.
        """
        for gate in self.gates:
            if gate.gate == name:
                return gate
        raise KeyError(name)

    def to_json(self) -> str:
        """Returns everything as a JSON object; what is not finite as a string."""
        return json.dumps(
            _finite(
                {
                    "ok": self.ok,
                    "first_divergence": self.first_divergence,
                    "culprits": self.culprits,
                    "setting": self.setting,
                    "hidden": self.hidden,
                    "gates": [
                        {
                            "gate": g.gate,
                            "what": g.what,
                            "ok": g.ok,
                            "skipped": g.skipped,
                        }
                        | {"rows": [asdict(row) for row in g.rows]}
                        for g in self.gates
                    ],
                }
            ),
            allow_nan=False,
        )

    def layer_table(self) -> str:
        """Returns one line per tap: shape, both twins' errors, the worst place."""
        rows: dict[str, dict[str, Row]] = {tap: {} for tap in self.shapes}
        for gate in self.gates:
            for row in gate.rows if gate.gate in ("G1", "G2") else ():
                rows.setdefault(row.name, {})[gate.gate] = row
        lines = [_layer_line(tap, self.shapes.get(tap), by) for tap, by in rows.items()]
        heads = (
            *("tap", "shape", "float64", "e torch", "e flax", "ratio"),
            *("worst at", "flax", "reference", ""),
        )
        return table(heads, lines)

    def gate_table(self) -> str:
        """Returns one line per gate: what it judged, its worst figure, its verdict."""
        lines = []
        for gate in self.gates:
            failed, worst = len(gate.failures), gate.worst
            verdict = "skipped" if gate.skipped else "pass" if gate.ok else "FAIL"
            figure = limit = at = ""
            if failed:
                at = f"{failed} of {len(gate.rows)} fail, first {gate.failures[0].name}"
            elif worst is not None and worst.limit:
                figure, limit = f"{worst.error:.1e}", f"{worst.limit:.1e}"
                judged = [row for row in gate.rows if row.limit]
                at = f"{len(judged)} within, closest {worst.name}"
                if len(judged) < len(gate.rows):
                    at += f"; {len(gate.rows) - len(judged)} not compared"
            elif worst is not None:
                noted = [row for row in gate.rows if row.note]
                at = f"{len(gate.rows)} equal" + "".join(
                    f"; {row.name} {row.note}" for row in noted
                )
            lines.append((gate.gate, gate.what, verdict, figure, limit, at))
        return table(("gate", "what", "verdict", "error", "limit", ""), lines)

    def verdict(self) -> str:
        """Returns the verdict in one line."""
        if self.ok:
            return f"PASS: both compute the same network{self._wishes()}"
        gate = next((gate for gate in self.gates if not gate.ok), None)
        if gate is None:
            return "FAIL: no gate had anything to judge"
        if not gate.failures:
            return f"FAIL: {gate.gate} ({gate.what}) had nothing to judge"
        row = gate.failures[0]
        plain = row.kind in ("", "output") or (row.note and not row.limit)
        kind = "" if plain else f", {row.kind}"
        where = f"{row.name or 'loss'}{kind} {row.note}".rstrip()
        line = f"FAIL: {gate.gate} ({gate.what}): first divergence at {where}"
        culprits = self.culprits
        if not culprits:
            return line
        more = f" and {len(culprits) - 3} more" if len(culprits) > 3 else ""
        return f"{line}; wrong by itself: {', '.join(culprits[:3])}{more}"

    def _wishes(self) -> str:
        """Says what it took for granted that was asked for."""
        rtol, skip = (self.setting.get(name) for name in ("rtol", "skip"))
        said = [f"{name} skipped" for name in skip or ()]
        said += [f"{name} granted {limit:g}" for name, limit in (rtol or {}).items()]
        return f", but for what was asked: {', '.join(said)}" if said else ""

    def __str__(self) -> str:
        return f"{self.layer_table()}\n\n{self.brief()}"

    def brief(self) -> str:
        """Returns the gates, the verdict, and what could not be seen."""
        hidden = [f"not seen: {line}" for line in self.hidden]
        return "\n".join([self.gate_table(), "", self.verdict(), *hidden])


def _layer_line(
    tap: str, shape: Shape | None, rows: Mapping[str, Row]
) -> tuple[str, ...]:
    size = "x".join(map(str, shape)) if shape else "-"
    g1, g2 = rows.get("G1"), rows.get("G2")
    float64 = f"{g1.error:.1e}" if g1 else ""
    line = (tap, size, float64)
    if g2 is not None and g2.figures:
        torch, flax = g2.figures["torch"], g2.figures["flax"]
        line += (
            f"{torch['l2']:.1e}",
            f"{flax['l2']:.1e}",
            f"{g2.figures['ratio']:.2f}",
        )
        line += (",".join(map(str, flax["worst"])),)
        line += (f"{flax['value']:.6g}", f"{flax['expected']:.6g}")
    else:
        line += ("",) * 6
    bad = [row for row in rows.values() if not row.ok]
    return (*line, " ".join(f"< FAIL {row.note}".rstrip() for row in bad[:1]))


def _finite(value: Any) -> Any:
    """Returns a value without what JSON does not know."""
    if isinstance(value, float) and not isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


@dataclass(frozen=True)
class Row:
    """One thing judged.

    Args:
        name: a tap, an entry of the state, or an image.
        kind: which of its quantities; see :class:`parity.running.taps.Quantity`.
        ok: whether it is within the gate.
        error: its figure, where it has one.
        limit: what the figure may be.
        note: what is wrong, or why it is not judged.
        figures: all that was measured, for the report.
    """

    name: str
    ok: bool
    kind: str = ""
    error: float = 0.0
    limit: float = 0.0
    note: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GateResult:
    """A gate's verdict.

    Args:
        gate: its name, as ``"G2 training"``.
        what: what it judges, in words.
        rows: everything judged, in order.
        skipped: why nothing was judged; empty if something was.
        isolated: whether it judged each module alone.
    """

    gate: str
    what: str
    rows: tuple[Row, ...]
    skipped: str = ""
    isolated: bool = False

    @property
    def ok(self) -> bool:
        """Whether every row is; a gate that judged nothing for no reason is not."""
        return bool(self.skipped) or (bool(self.rows) and all(r.ok for r in self.rows))

    @property
    def failures(self) -> list[Row]:
        """The rows out of the gate, first one first."""
        return [row for row in self.rows if not row.ok]

    @property
    def worst(self) -> Row | None:
        """The row that used most of its limit."""
        return max(self.rows, key=share_used, default=None)


def share_used(row: Row) -> float:
    """Returns how much of its limit a row used; infinite where it failed."""
    if not row.ok:
        return float("inf")
    return row.figures.get("use", ratio(row.error, row.limit))
