"""One module at a time, on what the reference had there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np

from parity import machine
from parity.judging.distance import Deviation
from parity.judging.reference import Growth, Reference, Values, grown
from parity.judging.tolerances import FLOAT64
from parity.machine import Precision, float32_precision
from parity.running.experiments import Callee, Experiment
from parity.running.pair import Pair, Workbenches
from parity.running.perturbing import moved
from parity.running.seen import Seen
from parity.running.taps import ModuleError, Quantity

Deviations = Mapping[Quantity, Deviation | None]

OFTEN = 32
"""Modules after which freed memory is given back; it takes time to get it again."""

TIES = " at ties"
"""Ends the kind of what a module gave for few and large values, many of them equal."""


@dataclass(frozen=True)
class Isolation:
    """What experiments with every module gave: its errors are its own.

    Args:
        reference: what each module was given, and should give.
        found: by tap, then by network: ``"torch"``, ``"flax"``, ``"flax in float64"``.
        failed: by tap, why there is nothing to compare.
        left: taps that cannot be judged alone.
        magnified: what a perturbation moves each quantity by.
    """

    reference: Reference
    found: dict[str, dict[str, Deviations]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    left: Sequence[str] = ()
    magnified: dict[Quantity, Growth] = field(default_factory=dict)

    def growth(self, quantity: Quantity, tap: str) -> Growth:
        """Does what :meth:`Reference.growth` does for what an experiment gives."""
        by_l2, by_max = self.magnified.get(quantity, (1.0, 1.0))
        of_one = partial(self.reference.growth_of_one, quantity, tap)
        return of_one(by_l2), of_one(by_max)

    def size(self, quantity: Quantity) -> int:
        """How many values a quantity of an experiment has."""
        kind = quantity.kind.removesuffix(TIES)
        kind = "input" if kind == "input gradient" else kind
        return self.reference.values[Quantity(kind, quantity.name)].size


def isolated(
    pair: Pair,
    reference: Reference,
    common: Sequence[str],
    left: Sequence[str],
    *,
    seen: Seen,
    precision: Precision,
    progress: Callable[[str], None],
) -> Isolation:
    """Runs every module alone, on what the reference had there.

    Args:
        pair: both networks.
        reference: what each module is given, and shall give.
        common: the taps that both networks have; what lies between is part of the
            module around.
        left: those that cannot be judged alone.
        seen: what was noted of the Flax network's run.
        precision: of float32 on accelerators.
        progress: told which module is next.
    """
    found = Isolation(reference, left=left)
    training = reference.objective is not None
    workbenches = pair.workbenches(reference.all_shapes, seen, training=training)
    laboratory = _Laboratory(workbenches, common, precision, found)
    for number, tap in enumerate(common):
        if number % OFTEN == 0:
            machine.give_back()
        progress(tap)
        try:
            found.found[tap] = laboratory.experiment(tap)
        except ModuleError as failure:
            found.failed[tap] = failure.what
    return found


@dataclass(frozen=True)
class _Laboratory:
    workbenches: Workbenches
    common: Sequence[str]
    precision: Precision
    found: Isolation
    inward: dict[str, np.ndarray] = field(default_factory=dict)
    """Gradients, by what calls are given."""

    @property
    def reference(self) -> Reference:
        return self.found.reference

    def experiment(self, tap: str) -> dict[str, Deviations]:
        setup = self._setup(tap)
        expected = self._expected(setup)
        found = self._networks(setup, expected)
        for draw in self.reference.draws:
            moved = self.workbenches.run("torch", _perturbed(setup, draw), float64=True)
            for quantity, by in self._deviations(moved, expected).items():
                growth = grown(by, self.found.magnified.get(quantity))
                self.found.magnified[quantity] = growth
        if self.reference.has_state(tap) or not _continuous(setup):
            return found
        tied = _with_ties(setup)
        expected = self.workbenches.run("torch", tied, float64=True)
        more = self._networks(tied, expected)
        return {name: {**found[name], **_named(more[name])} for name in found}

    def _setup(self, tap: str) -> Experiment:
        values = self.reference.values
        gradient = values.get(Quantity("gradient", tap))
        calls = []
        for other in self._callees.get(tap, []):
            inward = self.inward.pop(other, None)
            if gradient is not None and inward is None:  # one of integers, or it raised
                inward = np.zeros(self.reference.input(other).shape)
            calls.append(Callee(other, values[Quantity("output", other)], inward))
        return Experiment(tap, self.reference.input(tap), gradient, calls)

    @cached_property
    def _callees(self) -> dict[str, list[str]]:
        """The common taps that each calls, in order, those between left out."""
        callers = self.reference.calls.callers
        common = set(self.common)
        found: dict[str, list[str]] = {}
        for tap in callers:
            caller = callers[tap]
            while caller and caller not in common:
                caller = callers[caller]
            if tap in common:
                found.setdefault(caller, []).append(tap)
        return found

    def _expected(self, setup: Experiment) -> Values:
        if setup.gradient is None:
            values = self.reference.values
            output = Quantity("output", setup.tap)
            handed = [Quantity("input", callee.tap) for callee in setup.calls]
            return {quantity: values[quantity] for quantity in [output, *handed]}
        expected = self.workbenches.run("torch", setup, float64=True)
        self._check_steady(setup.tap, expected)
        inward = expected.get(Quantity("input gradient", setup.tap))
        if inward is not None:
            self.inward[setup.tap] = inward
        return expected

    def _check_steady(self, tap: str, found: Values) -> None:
        """Notes a torch module that gives something else than in the whole network.

        One that is random, or remembers: whatever is measured of it says nothing.
        """
        output = Quantity("output", tap)
        expected = self.reference.values[output]
        by = self.reference.deviation(output, found[output], expected)
        if by is None or (by.finite and by.l2 > FLOAT64["output"]):
            self.found.failed[tap] = "does not compute the same twice in torch"

    def _networks(self, setup: Experiment, expected: Values) -> dict[str, Deviations]:
        with float32_precision(self.precision):
            found = {
                "torch": self.workbenches.run("torch", setup),
                "flax": self.workbenches.run("flax", setup),
            }
        found["flax in float64"] = self.workbenches.run("flax", setup, float64=True)
        return {
            name: self._deviations(values, expected) for name, values in found.items()
        }

    def _deviations(self, values: Values, expected: Values) -> Deviations:
        return {
            quantity: self.reference.deviation(
                quantity, values.get(quantity), expected.get(quantity)
            )
            for quantity in {**expected, **values}
        }


def _perturbed(setup: Experiment, draw: int) -> Experiment:
    """The same with all that is given moved by float64's roundoff."""
    calls = [Callee(c.tap, moved(c.output, draw), c.gradient) for c in setup.calls]
    return Experiment(setup.tap, moved(setup.input, draw), setup.gradient, calls)


def _continuous(setup: Experiment) -> bool:
    return setup.input.dtype.kind == "f"


def _with_ties(setup: Experiment) -> Experiment:
    """The same with inputs that are whole multiples of 4, about as many as there were.

    Many are equal, many are 0, and some are beyond every bound that an activation may
    have, as relu6's.
    """
    x = setup.input
    step = 2.0 ** np.round(np.log2(max(float(x.std()), 1e-30)))
    return Experiment(setup.tap, np.round(x / step) * 4, setup.gradient)


def _named(found: Deviations) -> Deviations:
    return {Quantity(kind + TIES, name): value for (kind, name), value in found.items()}
