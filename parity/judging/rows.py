"""The rows of a gate's result: what was measured, against its limit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from parity.judging import tolerances
from parity.judging.distance import Deviation, ratio
from parity.judging.evidence import Evidence, Phase, Run
from parity.judging.isolation import Deviations, Isolation
from parity.judging.kinks import Kink
from parity.judging.report import Row
from parity.running.taps import Quantity, call_of, path_of
from parity.weights.names import COUNTER


def side(evidence: Evidence, tap: str, found: Mapping[str, Kink], dtype: str) -> Row:
    """Returns how far from a kink were the units that went the other way."""
    size = max((kink.size for kink in found.values()), default=0.0)
    quantity = Quantity("output", call_of(tap))
    _, growth = evidence.training.reference.growth(quantity)
    limit = tolerances.ceiling(dtype, growth)
    notes = [
        f"kink, {kink.units} unit{'s' * (kink.units > 1)} in {name}"
        for name, kink in found.items()
    ]
    return Row(tap, size <= limit, "", size, limit, ", ".join(notes))


def exact(quantity: Quantity, found: Deviation, growth: float) -> Row:
    """Returns a float64 quantity against its limit, gate G1."""
    kind = quantity.kind.removesuffix(" at ties")
    kind = "output" if kind == "result" else kind
    limit = tolerances.algebra_limit(kind, growth)
    ok = found.finite and found.l2 <= limit
    return Row(
        *(quantity.name, ok, quantity.kind, found.l2, limit, _note(found)),
        figures_of(found),
    )


def symmetric(
    evidence: Evidence,
    quantity: Quantity,
    torch: Deviation,
    flax: Deviation,
    size: int,
    growth: tuple[float, float],
) -> Row:
    """Returns both errors of a quantity, each against the other: gate G2."""
    dtype = evidence.arithmetic
    k = tolerances.arithmetic_factor(dtype, size)
    floor, floor_max = (tolerances.arithmetic_floor(dtype, by) for by in growth)
    # Both ways: a twin that is wrong only in this dtype may be either.
    limits = [
        (a.l2, k * max(b.l2, floor), a.max, 2 * k * max(b.max, floor_max))
        for a, b in ((flax, torch), (torch, flax))
    ]
    uses = [(l2 / by_l2, most / by_max) for l2, by_l2, most, by_max in limits]
    use = max(map(max, uses))
    twin = 0 if max(uses[0]) == use else 1
    norm = 0 if uses[twin][0] == use else 1
    error, limit = limits[twin][2 * norm : 2 * norm + 2]
    ok = torch.finite and flax.finite and use <= 1
    where = ("", f"in torch{', its largest value' * norm}")[twin]
    return Row(
        quantity.name,
        ok=ok,
        kind=quantity.kind,
        error=error,
        limit=limit,
        note=_note(flax) or _note(torch) or ("" if ok else where),
        figures={
            "torch": figures_of(torch),
            "flax": figures_of(flax),
            "ratio": ratio(flax.l2, torch.l2),
            "use": use,
        },
    )


def in_one_dtype(row: Row, torch_run: Run, flax_run: Run) -> Row:
    """Returns the row, failed where the networks give other dtypes."""
    ours, theirs = torch_run.dtypes[row.name], flax_run.dtypes[row.name]
    if ours == theirs or "float" not in ours + theirs:  # JAX has narrower integers
        return row
    return replace(row, ok=False, note=f"is {theirs} in Flax, {ours} in torch")


def each_symmetric(
    evidence: Evidence, isolated: Isolation, tap: str, found: Mapping[str, Deviations]
) -> Iterator[Row]:
    """Yields rows for all that a module gave alone; in half types its scale, too."""
    for quantity in {**found["flax"], **found["torch"]}:
        flax, torch = (found[name].get(quantity) for name in ("flax", "torch"))
        if torch is None or flax is None:
            yield not_handed(quantity, "torch" if torch is None else "Flax")
        else:
            size, growth = isolated.size(quantity), isolated.growth(quantity, tap)
            yield symmetric(evidence, quantity, torch, flax, size, growth)
            if evidence.arithmetic in tolerances.HALVES:
                channels = isolated.reference.shapes[tap][1:2] or (1,)
                by = flax.scale - torch.scale
                limit = tolerances.scale_limit(evidence.arithmetic, *channels)
                note = f"larger in Flax by a factor of {1 + by:.4f}"
                yield Row(
                    *(quantity.name, abs(by) <= limit, quantity.kind, abs(by), limit),
                    *(note, {"scale": by}),
                )


def counted(evidence: Evidence, found: Deviations) -> Deviations:
    """Leaves out the counter of batches where one network has none."""
    if evidence.counts_batches:
        return found
    return {q: d for q, d in found.items() if q.name.rpartition(".")[2] != COUNTER}


def not_handed(quantity: Quantity, where: str) -> Row:
    """Returns a row for what one network does not give."""
    note = f"is missing, or has another shape, in {where}"
    if quantity.kind == "input":
        note = f"is handed nothing, or another shape, in {where}"
    elif quantity.kind == "state":
        note = "the run changes it in one network only"
    return Row(quantity.name, False, quantity.kind, float("inf"), note=note)


def unmatched(evidence: Evidence, phase: Phase, run: Run, quantity: Quantity) -> Row:
    """Returns a row for what only one network has; it may be no difference."""
    kind, tap = quantity
    ours = quantity in phase.reference.values
    if ours and quantity in run.deviations:
        note = "has another shape in Flax"
        return Row(tap, False, kind, float("inf"), note=note)
    where = "torch" if ours else "Flax"
    if path_of(tap) in run.uneven and kind in ("output", "gradient"):
        note = "is called another number of times in Flax, not compared"
        return Row(tap, True, kind, note=note)
    if kind == "state":
        return Row(
            tap, False, kind, float("inf"), note=f"the run changes it in {where}"
        )
    # Where both have its entries they are compared, and it may do without a call.
    holders = [
        any(name.rpartition(".")[0] == path_of(tap) for name in state)
        for state in evidence.states.values()
    ]
    learns = any(holders) and not all(holders)
    counts = evidence.counts_batches or not tap.endswith(COUNTER)
    state = kind in ("parameter gradient", "statistic") and counts
    whole = not path_of(tap) or kind in ("result", "input gradient")
    if (learns and not phase.of_function) or whole or state:
        return Row(tap, False, kind, float("inf"), note=f"is in {where} only")
    # An activation, an empty place or a container under another name, as in timm's
    # networks. What it does is judged where its result arrives: at the next layer.
    return Row(tap, True, kind, note=f"is in {where} only, not compared")


def _note(found: Deviation) -> str:
    return "" if found.finite else "not finite"


def figures_of(found: Deviation) -> dict[str, Any]:
    """Returns what a report says of a deviation."""
    return {
        "l2": found.l2,
        "max": found.max,
        "scale": found.scale,
        "p50": found.p50,
        "p99": found.p99,
        "worst": list(found.worst),
        "value": found.value,
        "expected": found.expected,
    }
