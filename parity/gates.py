"""The gates: each a rule that two equal networks pass and a wrong one does not.

A gate is a function from the evidence to a result with one row for each thing judged.
A new gate is one more function, and one more line in the table of gates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from parity import tolerances
from parity.compare import Deviation, deviation, differing_bits
from parity.evidence import Evidence, Run
from parity.taps import OUTPUT, ModuleError


@dataclass(frozen=True)
class Row:
    """One thing judged.

    Args:
        name: a tap, an entry of the state, or an image.
        ok: whether it is within the gate.
        error: its figure, where it has one.
        limit: what the figure may be.
        note: what is wrong, or why it is not judged.
        figures: all that was measured, for the report.
    """

    name: str
    ok: bool
    error: float = 0.0
    limit: float = 0.0
    note: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GateResult:
    """A gate's verdict.

    Args:
        gate: its name, ``G0`` and so on.
        what: what it judges, in words.
        rows: everything judged, in order.
        skipped: why nothing was judged; empty if something was.
    """

    gate: str
    what: str
    rows: tuple[Row, ...]
    skipped: str = ""

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
        return max(self.rows, key=_use, default=None)


Gate = Callable[[Evidence], GateResult]


def weights(evidence: Evidence) -> GateResult:
    """G0: the states are identical, compared as integers."""
    torch_state, flax_state = evidence.states["torch"], evidence.states["flax"]
    differences = differing_bits(torch_state, flax_state)
    rows = [
        Row(name, name not in differences, note=differences.get(name, ""))
        for name in [*torch_state, *(n for n in flax_state if n not in torch_state)]
    ]
    return GateResult("G0", "weights, bit for bit", tuple(rows))


def algebra(evidence: Evidence) -> GateResult:
    """G1: in float64 both compute the same function, at every tap."""
    run = evidence.flax_run_float64
    rows = []
    for tap, found in _every_tap(evidence, run):
        if found is None:
            rows.append(_unmatched(evidence, run, tap))
            continue
        limit = tolerances.G1_FORWARD
        ok = found.finite and found.l2 <= limit
        rows.append(Row(tap, ok, found.l2, limit, _note(found), _figures(found)))
    return GateResult("G1", "float64, every tap", tuple(rows))


def arithmetic(evidence: Evidence) -> GateResult:
    """G2: in the working dtype neither is much farther from float64 than the other."""
    dtype = evidence.dtype
    run = evidence.flax_run
    rows = []
    for tap, flax in _every_tap(evidence, run):
        torch = evidence.torch_run.deviations.get(tap)
        if torch is None or flax is None:
            rows.append(_unmatched(evidence, run, tap))
            continue
        size = int(np.prod(evidence.shapes[tap]))
        k = tolerances.arithmetic_factor(dtype, size)
        floor = tolerances.arithmetic_floor(dtype, evidence.depths[tap])
        # Both ways: a twin that is wrong only in this dtype may be either.
        uses = [
            (a.l2 / (k * max(b.l2, floor)), a.max / (2 * k * max(b.max, floor)))
            for a, b in ((flax, torch), (torch, flax))
        ]
        rows.append(
            Row(
                tap,
                ok=torch.finite and flax.finite and max(map(max, uses)) <= 1,
                error=flax.l2,
                limit=k * max(torch.l2, floor),
                note=_note(flax) or _note(torch),
                figures={
                    "torch": _figures(torch),
                    "flax": _figures(flax),
                    "ratio": _ratio(flax.l2, torch.l2),
                    "use": max(map(max, uses)),
                },
            )
        )
    return GateResult("G2", f"{dtype}, every tap", tuple(rows))


def decisions(evidence: Evidence) -> GateResult:
    """G5: both choose the class that float64 chooses, wherever rounding lets them."""
    what = "top-1 class"
    reference = evidence.reference[OUTPUT]
    if reference.ndim == 4 and reference.shape[1:3] == (1, 1):  # a signal of scores
        reference = reference[:, 0, 0]
    if reference.ndim != 2 or reference.shape[1] < 2:
        return GateResult("G5", what, (), "the network has no classes to choose from")
    runs = evidence.torch_run, evidence.flax_run
    outputs = [run.output for run in runs]
    if all(output.size == reference.size for output in outputs):
        outputs = [output.reshape(reference.shape) for output in outputs]
    else:
        return GateResult("G5", what, (Row(OUTPUT, False, note="other shape"),))
    # What G2 grants a logit, from the better twin: a twin's own error, however large,
    # must not excuse its decision. Two logits may be off, in opposite directions.
    size = int(np.prod(reference.shape))
    k = tolerances.arithmetic_factor(evidence.dtype, size)
    floor = tolerances.arithmetic_floor(evidence.dtype, evidence.depths[OUTPUT])
    best = min(deviation(output, reference).max for output in outputs)
    error = 2 * (2 * k * max(best, floor)) * np.abs(reference).max()
    rows = []
    for image, scores in enumerate(reference):
        torch, flax = (output[image].astype(np.float64) for output in outputs)
        second, first = np.sort(scores)[-2:]
        chosen = [int(s.argmax()) for s in (scores, torch, flax)]
        finite = bool(np.isfinite([*torch, *flax, *scores]).all())
        decidable = bool(first - second > error)
        rows.append(
            Row(
                f"image {image}",
                ok=finite and (not decidable or len(set(chosen)) == 1),
                note=""
                if decidable
                else f"undecidable: margin {first - second:.1e} of {error:.1e}",
                figures=dict(zip(("float64", "torch", "flax"), chosen, strict=True)),
            )
        )
    return GateResult("G5", what, tuple(rows))


_GATES: Mapping[str, Gate] = {
    "G0": weights,
    "G1": algebra,
    "G2": arithmetic,
    "G5": decisions,
}


GATES = tuple(_GATES)
"""The names of all gates, in the order of a check."""


def judge(gate: str, evidence: Evidence) -> GateResult:
    """Goes through one gate; a network that raises has failed it."""
    try:
        return _GATES[gate](evidence)
    except ModuleError as failure:
        row = Row(failure.path, False, note=failure.what)
        return GateResult(gate, "both networks run", (row,))


def _every_tap(evidence: Evidence, run: Run) -> list[tuple[str, Deviation | None]]:
    taps = [
        *evidence.reference,
        *(t for t in run.deviations if t not in evidence.shapes),
    ]
    return [(tap, run.deviations.get(tap)) for tap in taps]


def _unmatched(evidence: Evidence, run: Run, tap: str) -> Row:
    if tap in evidence.shapes and tap in run.deviations:
        return Row(tap, False, float("inf"), note="has another shape in Flax")
    where = "torch" if tap in evidence.shapes else "Flax"
    path = tap.partition("@")[0]
    learns = any(
        name.startswith(f"{path}.")
        for state in evidence.states.values()
        for name in state
    )
    if learns or tap == OUTPUT:
        return Row(tap, False, float("inf"), note=f"is in {where} only")
    # An activation or an empty place under another name, as in timm's networks. What it
    # does is judged where its result arrives: at the next layer, and at the output.
    return Row(tap, True, note=f"is in {where} only, not compared")


def _note(found: Deviation) -> str:
    return "" if found.finite else "not finite"


def _figures(found: Deviation) -> dict[str, Any]:
    return {
        "l2": found.l2,
        "max": found.max,
        "worst": list(found.worst),
        "value": found.value,
        "expected": found.expected,
    }


def _use(row: Row) -> float:
    if not row.ok:
        return float("inf")
    return row.figures.get("use", _ratio(row.error, row.limit))


def _ratio(a: float, b: float) -> float:
    if a == 0:
        return 0.0
    return a / b if b > 0 else float("inf")
