"""The gates: each a rule that two equal networks pass and a wrong one does not.

A gate is a function from the evidence to a result with one row for each thing judged.
A new gate is one more function, and one more line in the table of gates.

Two modes: accumulating, where each network runs on what its own modules gave, as a user
sees it; and isolated, where each module is given what the reference had there, so that
no error travels, and what fails is what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from parity.judging import tolerances
from parity.judging.distance import Deviation, deviation
from parity.judging.evidence import Evidence, Phase, Run
from parity.judging.report import GateResult, Row, share_used
from parity.judging.rows import (
    counted,
    each_symmetric,
    exact,
    figures_of,
    in_one_dtype,
    not_handed,
    side,
    symmetric,
    unmatched,
)
from parity.running.objective import has_classes
from parity.running.taps import NOTED, OUTPUT, ModuleError, Quantity
from parity.weights.digest import differing_bits
from parity.weights.names import COUNTER


@dataclass(frozen=True)
class Gate:
    """One rule.

    Args:
        name: by which it is asked for.
        rule: from the evidence, and this, to a result.
        training: judges training mode.
        isolated: judges each module alone.
        float64: judges runs in float64, where a rule is for either dtype.
        jit: judges the jitted run.
    """

    name: str
    rule: Callable[[Evidence, Gate], GateResult]
    training: bool = False
    isolated: bool = False
    float64: bool = False
    jit: bool = True

    def result(self, what: str, rows: Iterable[Row], skipped: str = "") -> GateResult:
        """Returns what it found."""
        return GateResult(self.name, what, tuple(rows), skipped, self.isolated)


def weights(evidence: Evidence, gate: Gate) -> GateResult:
    """G0: the states are identical, compared as integers."""
    torch_state, flax_state = evidence.states["torch"], evidence.states["flax"]
    what = "weights, bit for bit"
    if evidence.pair.is_function:
        if not flax_state:
            return gate.result(what, (), "a function shows no weights by name")
        torch_state = {n: a for n, a in torch_state.items() if n in flax_state}
    if not torch_state and not flax_state:
        return gate.result(what, (), "neither network has any")
    differences = differing_bits(torch_state, flax_state)
    if (inside := _elsewhere(torch_state, flax_state)) is not None:
        return gate.result(what, (inside,))
    rows = []
    for name in [*torch_state, *(n for n in flax_state if n not in torch_state)]:
        note = differences.get(name, "")
        if not evidence.counts_batches and name.rpartition(".")[2] == COUNTER:
            rows.append(Row(name, True, note="Flax counts no batches, not compared"))
        else:
            rows.append(Row(name, not note, note=note))
    return gate.result(what, rows)


def _elsewhere(
    torch_state: Mapping[str, Any], flax_state: Mapping[str, Any]
) -> Row | None:
    """Says so where one network is in a module of the other; nothing is equal then."""
    for name, outer, inner in (
        ("torch", torch_state, flax_state),
        ("Flax", flax_state, torch_state),
    ):
        begun = {entry.partition(".")[0] for entry in outer}
        if len(begun) != 1 or not inner or outer.keys() & inner.keys():
            continue
        (path,) = begun
        if {entry.removeprefix(f"{path}.") for entry in outer} >= inner.keys():
            note = f"holds the whole network in {name}: pass model.{path}"
            return Row(path, False, note=note)
    return None


def algebra(evidence: Evidence, gate: Gate) -> GateResult:
    """G1: in float64 both compute the same function."""
    phase = evidence.training if gate.training else evidence.forward
    run = phase.flax_run_float64
    rows = []
    for quantity, found in _both(phase, run):
        if found is None:
            rows.append(unmatched(evidence, phase, run, quantity))
        else:
            rows.append(exact(quantity, found, phase.growth(quantity)[0]))
    if gate.training:  # the reference has followed it there: was it rounding?
        sides = (
            side(evidence, tap, {"Flax": kink}, "float64")
            for tap, kink in run.kinks.items()
        )
        rows += (row for row in sides if not row.ok)
    rows = _listed(evidence, gate, rows)
    what = (
        "float64, gradients and statistics" if gate.training else "float64, every tap"
    )
    return gate.result(what, rows)


def arithmetic(evidence: Evidence, gate: Gate) -> GateResult:
    """G2: in the working dtype neither is much farther from float64 than the other."""
    phase = evidence.training if gate.training else evidence.forward
    run = phase.flax_run if gate.jit else phase.flax_run_without_jit
    rows = []
    for quantity, flax in _both(phase, run):
        torch = phase.torch_run.deviations.get(quantity)
        if torch is None or flax is None:
            rows.append(unmatched(evidence, phase, run, quantity))
        else:
            growth = phase.growth(quantity)
            size = phase.reference.values[quantity].size
            row = symmetric(evidence, quantity, torch, flax, size, growth)
            if quantity.kind == "output":
                row = in_one_dtype(row, phase.torch_run, run)
            rows.append(row)
    rows = _listed(evidence, gate, rows)
    what = f"{evidence.arithmetic}, " + (
        "gradients and statistics" if gate.training else "every tap"
    )
    return gate.result(what if gate.jit else f"{what}, without jit", rows)


def modules(evidence: Evidence, gate: Gate) -> GateResult:
    """G1 and G2, isolated: each module computes the same on the same input."""
    phase = evidence.training if gate.training else evidence.forward
    rows = []
    isolated = phase.isolated
    for tap in phase.reference.shapes:
        if tap in isolated.left:
            note = "is given, or gives, more than one array: not judged alone"
            rows.append(Row(tap, True, note=note))
        if (note := isolated.failed.get(tap)) is not None:
            rows.append(Row(tap, False, note=note))
            continue
        if (alone := isolated.found.get(tap)) is None:
            continue
        found = {name: counted(evidence, by) for name, by in alone.items()}
        if gate.float64:
            judged = [
                exact(quantity, flax, isolated.growth(quantity, tap)[0])
                if flax
                else not_handed(quantity, "Flax")
                for quantity, flax in found["flax in float64"].items()
            ]
        else:
            judged = list(each_symmetric(evidence, isolated, tap, found))
        worst = max(judged, key=share_used)
        about = " ".join((worst.kind, "" if worst.name == tap else worst.name)).strip()
        note = "" if worst.ok else f"{about} {worst.note}".rstrip()
        rows.append(replace(worst, name=tap, kind=about, note=note))
    dtype = "float64" if gate.float64 else evidence.arithmetic
    what = f"{dtype}, one module at a time{', backwards too' if gate.training else ''}"
    alone = isolated.found or isolated.failed
    return gate.result(what, rows, "" if alone else "no module can be judged alone")


def ceilings(evidence: Evidence, gate: Gate) -> GateResult:
    """G3: neither is farther from float64 than a good implementation ever is."""
    phase = evidence.training if gate.training else evidence.forward
    rows = []
    for name, run in (("torch", phase.torch_run), ("Flax", phase.flax_run)):
        worst: dict[str, Row] = {}
        for quantity, found in run.deviations.items():
            if found is None or quantity not in phase.reference.values:
                continue
            if quantity.kind == "result":  # the output once more
                continue
            growth, _ = phase.reference.growth(quantity)
            limit = tolerances.ceiling(evidence.arithmetic, growth)
            ok = found.finite and found.l2 <= limit
            row = Row(
                *(quantity.name, ok, quantity.kind, found.l2, limit, f"in {name}"),
                {**figures_of(found), "growth": growth},
            )
            worst[row.kind] = max(worst.get(row.kind, row), row, key=share_used)
        rows += worst.values()
    return gate.result(f"{evidence.arithmetic}, ceilings", rows)


def kinks(evidence: Evidence, gate: Gate) -> GateResult:
    """G4: only rounding decides on which side of a kink a unit is.

    A rectifier's gradient jumps at 0, a pool's where two values are equal. A unit so
    close to it that rounding carries it over has another gradient, and rightly: the
    run's gradients are measured against the reference run on the same side. This lists
    these units, and fails where rounding cannot have moved one.
    """
    phase = evidence.training
    runs = {"torch": phase.torch_run, "Flax": phase.flax_run}
    rows = []
    for tap in phase.reference.kinks.taps:
        found = {name: run.kinks[tap] for name, run in runs.items() if tap in run.kinks}
        rows.append(side(evidence, tap, found, evidence.arithmetic))
    what = "sides of kinks"
    if not rows:
        return gate.result(what, (), "torch has no rectifiers and no max pools")
    return gate.result(what, rows)


def decisions(evidence: Evidence, gate: Gate) -> GateResult:
    """G5: both choose the class that float64 chooses, wherever rounding lets them."""
    what = "top-1 class"
    phase = evidence.forward
    reference = phase.reference
    rows = []
    for name in reference.outputs:
        scores = reference.values[Quantity("output", name)]
        if classes := has_classes(scores.shape):
            rows += _chosen(evidence, name, scores.reshape(-1, classes))
    if not rows:
        return gate.result(what, (), "the network has no classes to choose from")
    return gate.result(what, rows)


def _chosen(evidence: Evidence, name: str, reference: np.ndarray) -> list[Row]:
    """Compares the classes that an output chooses."""
    phase = evidence.forward
    nothing = np.empty(0)
    outputs = [
        run.outputs.get(name, nothing) for run in (phase.torch_run, phase.flax_run)
    ]
    if not all(output.size == reference.size for output in outputs):
        return [Row(name, False, note="other shape")]
    outputs = [output.reshape(reference.shape) for output in outputs]
    # What G2 grants a logit, from the better twin: a twin's own error, however large,
    # must not excuse its decision. Two logits may be off, in opposite directions.
    size = int(np.prod(reference.shape))
    k = tolerances.arithmetic_factor(evidence.arithmetic, size)
    growth, _ = phase.reference.growth(Quantity("output", name))
    floor = tolerances.arithmetic_floor(evidence.arithmetic, growth)
    best = min(deviation(output, reference).max for output in outputs)
    error = 2 * (2 * k * max(best, floor)) * np.abs(reference).max()
    part = "" if name == OUTPUT else f"{name}, "
    rows = []
    for image, scores in enumerate(reference):
        torch, flax = (output[image].astype(np.float64) for output in outputs)
        second, first = np.sort(scores)[-2:]
        chosen = [int(s.argmax()) for s in (scores, torch, flax)]
        finite = bool(np.isfinite([*torch, *flax, *scores]).all())
        decidable = bool(first - second > error)
        rows.append(
            Row(
                f"{part}image {image}",
                ok=finite and (not decidable or len(set(chosen)) == 1),
                note=""
                if decidable
                else f"undecidable: margin {first - second:.1e} of {error:.1e}",
                figures=dict(zip(("float64", "torch", "flax"), chosen, strict=True)),
            )
        )
    return rows


_TABLE = (
    Gate("G0", weights),
    Gate("G1", algebra),
    Gate("G1 isolated", modules, isolated=True, float64=True),
    Gate("G2", arithmetic),
    Gate("G2 eager", arithmetic, jit=False),
    Gate("G2 isolated", modules, isolated=True),
    Gate("G3", ceilings),
    Gate("G5", decisions),
    Gate("G1 training", algebra, training=True),
    Gate("G1 training isolated", modules, training=True, isolated=True, float64=True),
    Gate("G4", kinks, training=True),
    Gate("G2 training", arithmetic, training=True),
    Gate("G2 training eager", arithmetic, training=True, jit=False),
    Gate("G2 training isolated", modules, training=True, isolated=True),
    Gate("G3 training", ceilings, training=True),
)

FORWARD = tuple(gate.name for gate in _TABLE if not gate.training)
"""The gates of evaluation mode, by name, in the order of a check."""

TRAINING = tuple(gate.name for gate in _TABLE if gate.training)
"""The gates of training mode: gradients, statistics, the loss."""

GATES = (*FORWARD, *TRAINING)
"""The names of all gates, in the order of a check."""


def judge(name: str, evidence: Evidence) -> GateResult:
    """Lets a gate judge; a network that raises has failed it."""
    gate = next(gate for gate in _TABLE if gate.name == name)
    if evidence.pair.is_function and gate.isolated:
        return gate.result("modules", (), "a function shows no modules")
    try:
        return gate.rule(evidence, gate)
    except ModuleError as failure:
        if evidence.pair.is_function and gate.float64 and _runs(evidence, gate):
            reason = (
                "its arrays are hidden where they cannot be raised to float64; "
                "functools.partial(function, arrays) shows them"
            )
            return gate.result("float64", (), reason)
        row = Row(failure.path, False, note=failure.what)
        return gate.result("both networks run", (row,))


def _listed(evidence: Evidence, gate: Gate, rows: list[Row]) -> list[Row]:
    """Returns a gate's rows in order; what is asked for again only if it differs."""
    others = [row for row in rows if row.kind != "result"]
    again = [row for row in rows if row.kind == "result" and not row.ok]
    if not all(row.ok for row in others):
        again = []  # it follows from these
    return [*_notes(evidence, gate), *others, *again]


def _runs(evidence: Evidence, gate: Gate) -> bool:
    """Whether both networks run as they are."""
    phase = evidence.training if gate.training else evidence.forward
    try:
        return bool(phase.flax_run and phase.torch_run)
    except ModuleError:
        return False


def _notes(evidence: Evidence, gate: Gate) -> Iterator[Row]:
    """Yields what has to be said of training mode: what was not run as it is."""
    if not gate.training or evidence.pair.is_function:
        return
    if frozen := len(evidence.pair.torch.frozen):
        note = f"{frozen} do not learn in torch, and are judged all the same"
        yield Row("frozen parameters", True, note=note)
    torch, flax = evidence.pair.torch.random, evidence.pair.flax.random
    # The same rate under another name is no difference.
    renamed = list(flax.keys() - torch.keys())
    for path, rate in torch.items():
        other = flax.get(path)
        if other is None:
            alike = next((p for p in renamed if flax[p] == rate), None)
            if alike is not None:
                renamed.remove(alike)
                other = rate
        ok = other == rate
        note = f"drops {rate:g} at random, judged without"
        if not ok:
            note = (
                f"drops {rate:g} in torch, {'none' if other is None else other} in Flax"
            )
        yield Row(path, ok, "dropout", 0.0 if ok else float("inf"), note=note)
    for path in renamed:
        note = f"drops {flax[path]:g} in Flax, none in torch"
        yield Row(path, False, "dropout", float("inf"), note=note)


def _both(phase: Phase, run: Run) -> Iterator[tuple[Quantity, Deviation | None]]:
    """Yields every quantity of the reference and of a run, in order."""
    shown = run.deviations if phase.of_function else None
    for quantity in phase.reference.values:
        asked = shown is None or quantity in shown or phase.is_output(quantity)
        if quantity.kind not in NOTED and asked:
            yield quantity, run.deviations.get(quantity)
    for quantity in run.deviations:
        if quantity not in phase.reference.values:
            yield quantity, None
