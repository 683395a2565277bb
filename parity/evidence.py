"""What the gates judge: both networks run, measured against one float64 reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import cached_property
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from parity.compare import NUDGE, Deviation, deviation, nudged
from parity.names import COUNTER
from parity.objective import Objective, objective_for
from parity.pair import Pair
from parity.precision import Precision, float32_precision
from parity.spool import Spool
from parity.taps import (
    OUTPUT,
    Branch,
    Callee,
    Calls,
    Experiment,
    ModuleError,
    Quantity,
    Shape,
    path_of,
)
from parity.tolerances import growth_of_product, growth_of_sum

FLOATS = ("bfloat16", "float16", "float32", "float64")

Values = MutableMapping[Quantity, np.ndarray]
Deviations = Mapping[Quantity, Deviation | None]


@dataclass(frozen=True)
class Kink:
    """Units that took another way than the reference: beyond a jump of a derivative.

    Args:
        units: how many.
        size: the largest of the reference's values that decided them, over the largest
            of its map: what an error had to reach to turn them.
    """

    units: int
    size: float


@dataclass(frozen=True)
class Run:
    """One network's run: its distance from the reference in every quantity.

    Args:
        deviations: in order; ``None`` where the reference has no such quantity, or has
            one of another shape.
        output: the network's result.
        kinks: by tap. Where there are any, the reference that this run was measured
            against has been run once more, on the way that this run took.
    """

    deviations: Deviations
    output: np.ndarray
    kinks: Mapping[str, Kink] = field(default_factory=dict)


class Evidence:
    """Runs what the gates ask for, once, and only if one asks.

    A run raises :class:`parity.taps.ModuleError` if a module of its network does.

    Args:
        pair: both networks.
        images: float array (n, c, h, w).
        seed: of the labels.
        precision: of float32 on accelerators.
        folder: where arrays are kept meanwhile.
        progress: told what is about to be computed.
    """

    def __init__(
        self,
        pair: Pair,
        images: np.ndarray,
        *,
        seed: int,
        precision: Precision,
        folder: Path,
        progress: Callable[[str], None],
    ) -> None:
        self.pair = pair
        self.precision: Precision = precision
        self.folder = folder
        self.images = images
        self.seed = seed
        self.progress = progress

    @cached_property
    def states(self) -> dict[str, dict[str, np.ndarray]]:
        """The state of each network, by framework; empty where it shows none."""
        return {"torch": self.pair.torch_state(), "flax": self.pair.flax_state()}

    @cached_property
    def dtype(self) -> str:
        """The widest floating-point dtype of the torch network's parameters."""
        found = {array.dtype.name for array in self.states["torch"].values()}
        return max(found.intersection(FLOATS), key=FLOATS.index)

    @cached_property
    def counts_batches(self) -> bool:
        """Whether the Flax network's batch norms count batches, as torch's do."""
        return any(name.rpartition(".")[2] == COUNTER for name in self.states["flax"])

    @cached_property
    def arithmetic(self) -> str:
        """What is computed in: the dtype, or ``"tf32"`` on an accelerator."""
        tf32 = self.dtype == "float32" and self.precision == "tf32"
        return "tf32" if tf32 and self.pair.on_accelerator() else self.dtype

    @cached_property
    def forward(self) -> Phase:
        """Evaluation mode, forwards."""
        return Phase(self, self.images, training=False)

    @cached_property
    def training(self) -> Phase:
        """Training mode, forwards and backwards."""
        images = self.images
        if len(images) == 1:  # statistics of one image are none in the deepest maps
            images = np.concatenate([images, images[..., ::-1]])
        return Phase(self, images, training=True)


class Phase:
    """The runs of one mode.

    Args:
        evidence: that this is part of.
        images: float array (n, c, h, w).
        training: run in training mode, and backwards.
    """

    def __init__(
        self, evidence: Evidence, images: np.ndarray, *, training: bool
    ) -> None:
        self._evidence = evidence
        self._pair = evidence.pair
        self._images = images
        self._training = training
        self._mode = " in training" if training else ""

    @cached_property
    def reference(self) -> Values:
        """Every quantity of the torch network, run in float64, in order."""
        self._evidence.progress(f"torch in float64{self._mode}")
        values = Spool(self._evidence.folder)
        self._calls = self._reference_run(values.__setitem__)
        values.finished()
        return values

    def _reference_run(
        self,
        visit: Callable[[Quantity, np.ndarray], None],
        *,
        branch: Branch | None = None,
        nudged: bool = False,
    ) -> Calls:
        pair = self._pair
        if self._training:
            objective = self.objective
            return pair.torch_training(
                *(self._images, objective, visit),
                branch=branch,
                float64=True,
                nudged=nudged,
            )
        return pair.torch_forward(self._images, visit, float64=True, nudged=nudged)

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """The shape of every tap of the reference."""
        taps = [q for q in self.reference if q.kind == "output"]
        return {tap.name: self.reference[tap].shape for tap in taps}

    @cached_property
    def objective(self) -> Objective:
        """What is differentiated."""
        shape = self._pair.output_shape(self._images)
        # Half types lose what is small; a power of two costs no digit.
        scale = 1024.0 if self._evidence.dtype == "float16" else 1.0
        return objective_for(shape, seed=self._evidence.seed, scale=scale)

    @cached_property
    def depths(self) -> dict[str, int]:
        """How many layers with a kernel have run at each tap, at least one."""
        state = self._evidence.states["torch"]
        depths: dict[str, int] = {}
        depth = 0
        for tap in self.shapes:
            kernel = state.get(f"{path_of(tap)}.weight")
            depth += kernel is not None and kernel.ndim > 1
            depths[tap] = max(depth, 1)
        return depths

    def growth(self, quantity: Quantity) -> tuple[float, float]:
        """How many times larger than a rounding an error has grown: of e, and of m.

        The root of the layers so far, as of a random walk, or more where the network
        magnifies errors. This is measured: the reference is run once more with state
        and images moved by float64's roundoff, and what that moves the quantity by is
        divided by it.
        """
        layers = sqrt(self.depths.get(quantity.name, 1))
        by_l2, by_max = self._magnified.get(quantity, (1.0, 1.0))
        return max(layers, by_l2), max(layers, by_max)

    @cached_property
    def _magnified(self) -> dict[Quantity, tuple[float, float]]:
        self._evidence.progress(f"torch in float64{self._mode}, nudged")
        found: dict[Quantity, tuple[float, float]] = {}

        def visit(quantity: Quantity, value: np.ndarray) -> None:
            if quantity.kind != "input" and quantity in self.reference:
                terms = self._terms.get(quantity)
                moved = _deviation(value, self.reference[quantity], terms)
                found[quantity] = _magnified(moved)

        self._reference_run(visit, nudged=True)
        return found

    def growth_alone(self, quantity: Quantity, tap: str) -> tuple[float, float]:
        """Does what :meth:`growth` does for what an experiment gives."""
        added = self._added(quantity, tap)
        by_l2, by_max = self._magnified_alone.get(quantity, (1.0, 1.0))
        return max(added, by_l2), max(added, by_max)

    def _added(self, quantity: Quantity, tap: str) -> float:
        state = self._evidence.states["torch"]
        kernel = state.get(f"{path_of(tap)}.weight")
        outputs, inputs = self.shapes[tap], self._input(tap).shape
        positions = int(np.prod(outputs)) // outputs[1] if len(outputs) > 1 else 1
        of_bias = quantity.name.endswith(".bias")
        if kernel is None or kernel.ndim == 1 or of_bias:
            # A norm's statistics, a pool's mean.
            return growth_of_sum(max(positions, int(np.prod(inputs[2:]))))
        if quantity.kind == "parameter gradient":
            return growth_of_product(positions)
        if quantity.kind == "input gradient":
            return growth_of_product(kernel.size // inputs[1])
        return growth_of_product(kernel[0].size)

    def size(self, quantity: Quantity) -> int:
        """How many values a quantity of an experiment has."""
        kind, name = quantity
        kind = kind.removesuffix(" at ties")
        kind = "input" if kind == "input gradient" else kind
        return self.reference[Quantity(kind, name)].size

    @cached_property
    def torch_run(self) -> Run:
        """The torch network, as it is."""
        self._evidence.progress(f"torch in {self._evidence.arithmetic}{self._mode}")
        values = Spool(self._evidence.folder)

        def visit(quantity: Quantity, value: np.ndarray) -> None:
            if quantity.kind != "input" or self._is_pool(quantity.name):
                values[quantity] = value

        with float32_precision(self._evidence.precision):
            if self._training:
                self._pair.torch_training(self._images, self.objective, visit)
            else:
                self._pair.torch_forward(self._images, visit)
        return self._measured(values)

    @cached_property
    def flax_run(self) -> Run:
        """The Flax network, as it is, jitted."""
        self._evidence.progress(f"Flax in {self._evidence.arithmetic}{self._mode}")
        with float32_precision(self._evidence.precision):
            return self._measured(self._spooled(self._flax_program().here()))

    @cached_property
    def flax_run_without_jit(self) -> Run:
        """The Flax network, as it is, operation by operation."""
        self._evidence.progress(f"Flax without jit{self._mode}")
        with float32_precision(self._evidence.precision):
            return self._measured(self._spooled(self._flax_program().here(jit=False)))

    @cached_property
    def flax_run_float64(self) -> Run:
        """The Flax network, raised to float64, in a process of its own."""
        self._evidence.progress(f"Flax in float64{self._mode}, in its own process")
        return self._measured(
            self._spooled(self._flax_program(float64=True).elsewhere())
        )

    def _spooled(self, values: Iterable[tuple[Quantity, np.ndarray]]) -> Spool:
        spool = Spool(self._evidence.folder)
        for quantity, value in values:
            spool[quantity] = value
        return spool

    def _flax_program(self, *, float64: bool = False) -> Any:
        if not self._training:
            return self._pair.flax_forward(self._images, float64=float64)
        return self._pair.flax_training(
            self._images,
            self.objective,
            [path for path, kind in self._kinked.items() if kind == "maxpool"],
            float64=float64,
        )

    # --- where a derivative jumps ----------------------------------------------------

    @cached_property
    def jumps(self) -> list[str]:
        """The taps of rectifiers and pools."""
        return [tap for tap in self.shapes if path_of(tap) in self._kinked]

    @cached_property
    def _kinked(self) -> dict[str, str]:
        return self._pair.kinks() if self._training else {}

    def _is_pool(self, tap: str) -> bool:
        return self._kinked.get(path_of(tap)) == "maxpool"

    def _way(self, values: Values) -> dict[str, np.ndarray]:
        found = {}
        for tap in self.jumps:
            output, given = (Quantity(kind, tap) for kind in ("output", "input"))
            if output not in values:
                continue
            if values[output].shape != self.shapes[tap]:
                continue
            if self._is_pool(tap):
                if given in values and values[given].shape == self._input(tap).shape:
                    x = values[given]
                    found[tap] = self._pair.way(path_of(tap), x, values[output])
            else:
                found[tap] = values[output] > 0
        return found

    @cached_property
    def _reference_way(self) -> dict[str, np.ndarray]:
        return self._way(self.reference)

    def _input(self, tap: str) -> np.ndarray:
        return self.reference[Quantity("input", tap)]

    def _kink(self, tap: str, way: np.ndarray) -> Kink:
        ours = self._reference_way[tap]
        turned = way != ours
        x = self._input(tap)
        if self._is_pool(tap):
            flat = x.reshape(*x.shape[:2], -1)
            values = [
                np.take_along_axis(flat, w.reshape(*w.shape[:2], -1), 2).reshape(
                    w.shape
                )
                for w in (way, ours)
            ]
            decided = np.abs(values[0] - values[1])[turned]
        else:
            decided = np.abs(x[turned])
        return Kink(int(turned.sum()), float(decided.max() / np.abs(x).max()))

    def _measured(self, values: Spool) -> Run:
        """Measures a run against the reference on the same side of every kink."""
        way = self._way(values)
        kinks = {
            tap: self._kink(tap, taken)
            for tap, taken in way.items()
            if not np.array_equal(taken, self._reference_way[tap])
        }
        reference = self.reference
        output = np.array(values.get(Quantity("output", OUTPUT), np.empty(0)))
        deviations: dict[Quantity, Deviation | None] = dict.fromkeys(values)

        def visit(quantity: Quantity, expected: np.ndarray) -> None:
            if (value := values.get(quantity)) is None:
                return
            if value.shape == expected.shape:
                found = deviation(value, expected, terms=self._terms.get(quantity))
                deviations[quantity] = found

        if kinks:
            self._evidence.progress("torch in float64, on the other side of a kink")
            self._reference_run(visit, branch=way)
        else:
            for quantity, expected in reference.items():
                visit(quantity, expected)
        values.drop()
        found = {q: d for q, d in deviations.items() if q.kind != "input"}
        return Run(found, output, kinks)

    @cached_property
    def _terms(self) -> dict[Quantity, np.ndarray]:
        """What sums over the batch and the map are measured against: sums of sizes.

        Such a sum's rounding errors are those of its terms, however much these cancel.
        They may do so completely: a bias before a batch norm in training mode has no
        effect, and its gradient no digit that could agree.
        """
        state = self._evidence.states["torch"]
        found = {}
        for quantity in self.reference:
            kind, name = quantity
            path, _, leaf = name.rpartition(".")
            by_output = self.reference.get(Quantity("gradient", path))
            if kind != "parameter gradient" or by_output is None:
                continue
            if self.reference[quantity].shape != by_output.shape[1:2]:
                continue
            terms = np.abs(by_output)
            axes = tuple(axis for axis in range(terms.ndim) if axis != 1)
            if leaf == "weight":  # of a norm: each gradient times the normal value
                shape = [-1 if axis == 1 else 1 for axis in range(terms.ndim)]
                output = self.reference[Quantity("output", path)]
                bias = state.get(f"{path}.bias", np.zeros(by_output.shape[1]))
                scale = state[name].astype(np.float64)
                scale = np.where(scale == 0, 1, scale).reshape(shape)
                terms *= np.abs((output - bias.reshape(shape)) / scale)
            found[quantity] = terms.sum(axes)
        return found

    # --- one module at a time --------------------------------------------------------

    @cached_property
    def isolated(self) -> dict[str, dict[str, Deviations]]:
        """Each module alone, on what the reference had there.

        By tap, then by network: ``"torch"``, ``"flax"`` and ``"flax in float64"``. Only
        taps that both networks have; what lies between is part of the module around.
        """
        common = self._common()
        found: dict[str, dict[str, Deviations]] = {}
        laboratory = self._pair.laboratory(self._training)
        self._magnified_alone: dict[Quantity, tuple[float, float]] = {}
        self.raised_alone: dict[str, ModuleError] = {}
        inward: dict[str, np.ndarray] = {}
        for tap in (tap for tap in self.shapes if tap in common):
            self._evidence.progress(f"one module at a time{self._mode}: {tap}")
            setup = self._setup(tap, common, inward)
            expected = self._expected(setup, laboratory, inward)
            try:
                found[tap] = self._tried(setup, laboratory, expected)
            except ModuleError as failure:
                self.raised_alone[tap] = failure
                continue
            self._magnified_alone |= self._moved(setup, laboratory, expected)
            if self._training and not self._has_state(tap):
                tied = _with_ties(setup)
                expected = laboratory.torch(tied, float64=True)
                for name, more in self._tried(tied, laboratory, expected).items():
                    found[tap][name] = {**found[tap][name], **_named_ties(more)}
        return found

    def _common(self) -> set[str]:
        try:
            taps = {q.name for q in self.flax_run.deviations if q.kind == "output"}
        except ModuleError:  # what raises alone will be found; the rest can be judged
            paths = self._pair.flax_paths()
            taps = {tap for tap in self.shapes if path_of(tap) in paths}
        return taps & self.shapes.keys()

    def _has_state(self, tap: str) -> bool:
        path = path_of(tap)
        inside = f"{path}." if path else ""
        return any(name.startswith(inside) for name in self._evidence.states["torch"])

    def _setup(
        self, tap: str, common: set[str], inward: Mapping[str, np.ndarray]
    ) -> Experiment:
        reference = self.reference
        calls = []
        for other in self._calls.callers:
            caller = other
            while caller := self._calls.callers[caller]:
                if caller in common:
                    break
            if other in common and caller == tap:
                output = reference[Quantity("output", other)]
                calls.append(Callee(other, output, inward.get(other)))
        gradient = reference.get(Quantity("gradient", tap))
        return Experiment(tap, self._input(tap), gradient, calls)

    def _expected(
        self, setup: Experiment, laboratory: Any, inward: dict[str, np.ndarray]
    ) -> Values:
        if setup.gradient is None:
            handed = {Quantity("input", c.tap): self._input(c.tap) for c in setup.calls}
            output = Quantity("output", setup.tap)
            return {output: self.reference[output], **handed}
        expected = laboratory.torch(setup, float64=True)
        inward[setup.tap] = expected[Quantity("input gradient", setup.tap)]
        return expected

    def _moved(
        self, setup: Experiment, laboratory: Any, expected: Values
    ) -> dict[Quantity, tuple[float, float]]:
        moved = laboratory.torch(_nudged(setup), float64=True)
        return {
            quantity: _magnified(_deviation(moved.get(quantity), value, terms))
            for quantity, value in expected.items()
            for terms in (self._terms.get(quantity),)
        }

    def _tried(
        self, setup: Experiment, laboratory: Any, expected: Values
    ) -> dict[str, Deviations]:
        with float32_precision(self._evidence.precision):
            found = {
                "torch": laboratory.torch(setup),
                "flax": laboratory.flax(setup),
            }
        found["flax in float64"] = laboratory.flax(setup, float64=True)
        return {
            name: {
                quantity: _deviation(
                    values.get(quantity),
                    expected.get(quantity),
                    self._terms.get(quantity),
                )
                for quantity in [*expected, *(q for q in values if q not in expected)]
            }
            for name, values in found.items()
        }


def _deviation(
    value: np.ndarray | None, expected: np.ndarray | None, terms: np.ndarray | None
) -> Deviation | None:
    if value is None or expected is None or value.shape != expected.shape:
        return None
    return deviation(value, expected, terms=terms)


def _magnified(moved: Deviation | None) -> tuple[float, float]:
    return (1.0, 1.0) if moved is None else (moved.l2 / NUDGE, moved.max / NUDGE)


def _nudged(setup: Experiment) -> Experiment:
    """The same with all that is given moved by float64's roundoff."""
    calls = [Callee(c.tap, nudged(c.output), c.gradient) for c in setup.calls]
    return Experiment(setup.tap, nudged(setup.input), setup.gradient, calls)


def _with_ties(setup: Experiment) -> Experiment:
    """The same with the input on a coarse grid, so that many values are equal, or 0."""
    x = setup.input
    step = 2.0 ** np.round(np.log2(max(float(x.std()), 1e-30)))
    return Experiment(setup.tap, np.round(x / step) * step, setup.gradient)


def _named_ties(found: Deviations) -> Deviations:
    return {Quantity(f"{kind} at ties", n): d for (kind, n), d in found.items()}
