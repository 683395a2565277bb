"""What the gates judge: both networks run, measured against one float64 reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from parity import machine
from parity.judging.distance import Deviation
from parity.judging.isolation import Deviations, Isolation, isolated
from parity.judging.kinks import Kink
from parity.judging.reference import Growth, Reference, reference_of
from parity.judging.tolerances import computed_twice
from parity.machine import Precision, float32_precision
from parity.running.kept import KeptArrays
from parity.running.objective import Objective, loss_scale, objective_for
from parity.running.pair import Pair
from parity.running.seen import Seen
from parity.running.taps import (
    AGAIN,
    NOTED,
    Branch,
    Inputs,
    ModuleError,
    Quantity,
    call_of,
    path_of,
)
from parity.weights.names import COUNTER

if TYPE_CHECKING:
    from parity.running.flax_programs import Program

FLOATS = ("bfloat16", "float16", "float32", "float64")


@dataclass(frozen=True)
class Run:
    """One network's run: its distance from the reference in every quantity.

    Args:
        deviations: in order; ``None`` where the reference has no such quantity, or has
            one of another shape.
        outputs: the network's result, or its parts, by name.
        dtypes: of every tap.
        kinks: by tap. Where there are any, the reference that this run was measured
            against has been run once more, on the way that this run took.
        uneven: paths of modules that are called another number of times than in torch;
            which call is which cannot be told.
    """

    deviations: Deviations
    outputs: Mapping[str, np.ndarray]
    dtypes: Mapping[str, str]
    kinks: Mapping[str, Kink] = field(default_factory=dict)
    uneven: Set[str] = frozenset()


class Evidence:
    """Runs what the gates ask for, once, and only if one asks.

    A run raises :class:`parity.running.taps.ModuleError` where a module does.

    Args:
        pair: both networks.
        images: what both are given.
        seed: of the labels.
        precision: of float32 on accelerators.
        folder: where arrays are kept meanwhile.
        progress: told what is about to be computed.
    """

    def __init__(
        self,
        pair: Pair,
        images: Inputs,
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

    def begin(self, what: str) -> None:
        """Says what is about to be computed, and gives back what was freed before."""
        machine.give_back()
        self.progress(what)

    @cached_property
    def states(self) -> dict[str, dict[str, np.ndarray]]:
        """The state of each network, by framework; empty where it shows none."""
        return {"torch": self.pair.torch.state(), "flax": self.pair.jax.state()}

    @cached_property
    def dtype(self) -> str:
        """The widest floating-point dtype of the torch network's parameters."""
        arrays = [*self.states["torch"].values()]
        if not any(array.dtype.name in FLOATS for array in arrays):
            arrays = [np.zeros(0, np.float32)]
        found = {array.dtype.name for array in arrays}
        return max(found.intersection(FLOATS), key=FLOATS.index)

    def has_state(self, path: str) -> bool:
        """Whether a module has parameters or buffers in either network."""
        inside = f"{path}." if path else ""
        states = self.states.values()
        return any(name.startswith(inside) for state in states for name in state)

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
        alone = all(len(x) == 1 if x.ndim else False for x in images.values())
        if alone:  # statistics of one image are none in the deepest maps
            images = {
                name: np.concatenate([x, x[..., ::-1] if x.dtype.kind == "f" else x])
                for name, x in images.items()
            }
        return Phase(self, images, training=True)

    def phase_of(self, *, training: bool) -> Phase:
        """Returns the runs of training mode, or of evaluation mode."""
        return self.training if training else self.forward


class Phase:
    """The runs of one mode.

    Args:
        evidence: that this is part of.
        images: what both are given.
        training: run backwards, too, and in training mode if the networks have one.
    """

    def __init__(self, evidence: Evidence, images: Inputs, *, training: bool) -> None:
        self._evidence = evidence
        self._pair = evidence.pair
        self._images = images
        self._training = training
        self._mode = " in training" if training else ""
        self._seen = Seen()

    @cached_property
    def reference(self) -> Reference:
        """The torch network in float64."""
        return reference_of(
            self._pair,
            self._images,
            objective=self._objective if self._training else None,
            folder=self._evidence.folder,
            progress=self._evidence.begin,
        )

    @cached_property
    def _objective(self) -> Objective:
        shapes = self._pair.torch.output_shapes(self._images)
        seed, by_inputs = self._evidence.seed, self._pair.is_function
        objective = objective_for(shapes, seed=seed, by_inputs=by_inputs)
        if self._evidence.dtype != "float16":
            return objective
        # It loses what is small, and has no room for what is large; a power of two
        # costs no digit.
        largest = 0.0

        def visit(quantity: Quantity, value: np.ndarray) -> None:
            nonlocal largest
            if "gradient" in quantity.kind:
                largest = max(largest, float(np.abs(value).max(initial=0.0)))

        self._pair.training(self._images, objective, visit, float64=True)
        return replace(objective, scale=loss_scale(largest))

    @cached_property
    def torch_run(self) -> Run:
        """The torch network, as it is."""
        self._evidence.begin(f"torch in {self._evidence.arithmetic}{self._mode}")
        values = KeptArrays(self._evidence.folder)

        def visit(quantity: Quantity, value: np.ndarray) -> None:
            if quantity.kind not in ("input", "kink"):
                values[quantity] = value

        with float32_precision(self._evidence.precision):
            if self._training:
                calls = self._pair.training(self._images, self._objective, visit)
            else:
                calls = self._pair.torch.forward(self._images, visit, ask=self._ask)
        way = self.reference.kinks.of_torch(values)
        return self._measured(values, calls.dtypes, way)

    @cached_property
    def flax_run(self) -> Run:
        """The Flax network, as it is, jitted."""
        self._evidence.begin(f"Flax in {self._evidence.arithmetic}{self._mode}")
        return self._flax_here(jit=True)

    @cached_property
    def flax_run_without_jit(self) -> Run:
        """The Flax network, as it is, operation by operation."""
        self._evidence.begin(f"Flax without jit{self._mode}")
        return self._flax_here(jit=False)

    @cached_property
    def flax_run_float64(self) -> Run:
        """The Flax network, raised to float64, in a process of its own."""
        self._evidence.begin(f"Flax in float64{self._mode}, in its own process")
        program = self._flax_program(float64=True)
        values = self._kept(program.elsewhere())
        return self._of_flax(values, program.seen, float64=True)

    def _flax_here(self, *, jit: bool) -> Run:
        program = self._flax_program()
        with float32_precision(self._evidence.precision):
            values = self._kept(program.here(jit=jit))
        self._seen = program.seen
        return self._of_flax(values, program.seen)

    def _of_flax(self, values: KeptArrays, seen: Seen, *, float64: bool = False) -> Run:
        tap = self._pair.names.tap
        dtypes = {tap(name): dtype for name, dtype in seen.dtypes.items()}
        ours, theirs = ({}, {})
        for calls, taps in ((ours, self.reference.calls.callers), (theirs, dtypes)):
            for name in taps:
                calls.setdefault(path_of(name), set()).add(call_of(name))
        uneven = {
            path
            for path in ours.keys() & theirs.keys()
            if ours[path] != theirs[path] and not self._evidence.has_state(path)
        }
        for quantity in [*values]:
            in_run = quantity.kind in ("input", "output", "gradient")
            if in_run and path_of(quantity.name) in uneven:
                del values[quantity]
        way: Branch = {}
        if self._training:
            dtype = "float64" if float64 else self._evidence.arithmetic
            way = self.reference.kinks.of_flax(values, computed_twice(dtype))
        return self._measured(values, dtypes, way, uneven)

    @property
    def of_function(self) -> bool:
        """Whether the second network is a function, and shows what it likes."""
        return self._pair.is_function

    def is_output(self, quantity: Quantity) -> bool:
        """Whether it is the network's own result, or a part of it."""
        kind, name = quantity
        return kind == "output" and name in self.reference.outputs

    def growth(self, quantity: Quantity) -> Growth:
        """Does what the reference's does; of what is asked for again, as the output."""
        if quantity.kind == "result":
            quantity = Quantity("output", self.reference.outputs[-1])
        return self.reference.growth(quantity)

    @cached_property
    def isolated(self) -> Isolation:
        """Each module alone, of those that both networks have."""
        try:
            run = self.flax_run
            known = {q.name for q in run.deviations if q.kind == "output"}
            plain = self._seen.plain & known
        except ModuleError:  # what raises alone will be found; the rest can be judged
            paths = self._pair.flax.paths
            known = {tap for tap in self.reference.shapes if path_of(tap) in paths}
            plain = known
        plain = plain & self.reference.calls.plain
        return isolated(
            self._pair,
            self.reference,
            [tap for tap in self.reference.shapes if tap in plain],
            [tap for tap in self.reference.shapes if tap in known - plain],
            seen=self._seen,
            precision=self._evidence.precision,
            progress=lambda tap: self._evidence.progress(
                f"one module at a time{self._mode}: {tap}"
            ),
        )

    @property
    def _ask(self) -> list[str]:
        return [AGAIN, *self._pair.methods]

    def _flax_program(self, *, float64: bool = False) -> Program:
        shapes = self.reference.all_shapes
        if not self._training:
            return self._pair.jax.forward(
                self._images, shapes, ask=self._ask, float64=float64
            )
        return self._pair.jax.training(
            *(self._images, self._objective, shapes),
            fixed=self._pair.torch.fixed,
            float64=float64,
        )

    def _kept(self, values: Iterable[tuple[Quantity, np.ndarray]]) -> KeptArrays:
        kept = KeptArrays(self._evidence.folder)
        for quantity, value in values:
            kept[quantity] = value
        return kept

    def _measured(
        self,
        values: KeptArrays,
        dtypes: Mapping[str, str],
        way: Branch,
        uneven: Set[str] = frozenset(),
    ) -> Run:
        """Measures a run against the reference on the same side of every kink."""
        reference = self.reference
        own = reference.kinks.own
        kinks = {
            tap: reference.kinks.between(tap, taken)
            for tap, taken in way.items()
            if not np.array_equal(taken, own[tap])
        }
        deviations: dict[Quantity, Deviation | None] = {
            quantity: None for quantity in values if quantity.kind not in NOTED
        }

        def visit(quantity: Quantity, expected: np.ndarray) -> None:
            if quantity in deviations:
                found = reference.deviation(quantity, values[quantity], expected)
                deviations[quantity] = found

        if kinks:
            self._evidence.begin("torch in float64, on the other side of a kink")
            reference.run(visit, branch=way)
        else:
            for quantity, expected in reference.values.items():
                visit(quantity, expected)
        outputs = {
            name: np.array(values[quantity])
            for name in reference.outputs
            if (quantity := Quantity("output", name)) in values
        }
        values.drop()
        return Run(deviations, outputs, dtypes, kinks, uneven)
