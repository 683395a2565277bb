"""What the gates judge: both networks run, measured against one float64 reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from parity import machine
from parity.judging.distance import Deviation
from parity.judging.isolation import Deviations, Isolation, isolated
from parity.judging.kinks import Kink
from parity.judging.reference import Reference, reference_of
from parity.machine import Precision, float32_precision
from parity.running.objective import Objective, loss_scale, objective_for
from parity.running.pair import Pair
from parity.running.spool import Spool
from parity.running.taps import OUTPUT, ModuleError, Quantity, path_of
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
        output: the network's result.
        dtypes: of every tap.
        kinks: by tap. Where there are any, the reference that this run was measured
            against has been run once more, on the way that this run took.
    """

    deviations: Deviations
    output: np.ndarray
    dtypes: Mapping[str, str]
    kinks: Mapping[str, Kink] = field(default_factory=dict)


class Evidence:
    """Runs what the gates ask for, once, and only if one asks.

    A run raises :class:`parity.running.taps.ModuleError` where a module does.

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
        shape = self._pair.torch.output_shape(self._images)
        objective = objective_for(shape, seed=self._evidence.seed)
        if self._evidence.dtype != "float16":
            return objective
        # It loses what is small, and has no room for what is large; a power of two
        # costs no digit.
        largest = 0.0

        def visit(quantity: Quantity, value: np.ndarray) -> None:
            nonlocal largest
            if "gradient" in quantity.kind:
                largest = max(largest, float(np.abs(value).max(initial=0.0)))

        self._pair.torch.training(self._images, objective, visit, float64=True)
        return replace(objective, scale=loss_scale(largest))

    @cached_property
    def torch_run(self) -> Run:
        """The torch network, as it is."""
        self._evidence.begin(f"torch in {self._evidence.arithmetic}{self._mode}")
        values = Spool(self._evidence.folder)

        def visit(quantity: Quantity, value: np.ndarray) -> None:
            if quantity.kind != "input" or path_of(quantity.name) in self._pools:
                values[quantity] = value

        with float32_precision(self._evidence.precision):
            if self._training:
                calls = self._pair.torch.training(self._images, self._objective, visit)
            else:
                calls = self._pair.torch.forward(self._images, visit)
        return self._measured(values, calls.dtypes)

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
        return self._measured(self._spooled(program.elsewhere()), _by_tap(program))

    def _flax_here(self, *, jit: bool) -> Run:
        program = self._flax_program()
        with float32_precision(self._evidence.precision):
            values = self._spooled(program.here(jit=jit))
        return self._measured(values, _by_tap(program))

    @cached_property
    def isolated(self) -> Isolation:
        """Each module alone, of those that both networks have."""
        try:
            deviations = self.flax_run.deviations
            known = {q.name for q in deviations if q.kind == "output"}
        except ModuleError:  # what raises alone will be found; the rest can be judged
            paths = self._pair.flax.paths
            known = {tap for tap in self.reference.shapes if path_of(tap) in paths}
        return isolated(
            self._pair,
            self.reference,
            [tap for tap in self.reference.shapes if tap in known],
            precision=self._evidence.precision,
            progress=lambda tap: self._evidence.progress(
                f"one module at a time{self._mode}: {tap}"
            ),
        )

    @property
    def _pools(self) -> Sequence[str]:
        return self.reference.kinks.pools if self._training else ()

    def _flax_program(self, *, float64: bool = False) -> Program:
        if not self._training:
            return self._pair.jax.forward(self._images, float64=float64)
        return self._pair.flax.training(
            *(self._images, self._objective, self._pools), float64=float64
        )

    def _spooled(self, values: Iterable[tuple[Quantity, np.ndarray]]) -> Spool:
        spool = Spool(self._evidence.folder)
        for quantity, value in values:
            spool[quantity] = value
        return spool

    def _measured(self, values: Spool, dtypes: Mapping[str, str]) -> Run:
        """Measures a run against the reference on the same side of every kink."""
        reference = self.reference
        way = reference.kinks.way(values, reference.values) if self._training else {}
        kinks = {
            tap: reference.kinks.between(
                *(tap, reference.way[tap], taken, reference.input(tap))
            )
            for tap, taken in way.items()
            if not np.array_equal(taken, reference.way[tap])
        }
        deviations: dict[Quantity, Deviation | None] = dict.fromkeys(values)

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
        output = np.array(values.get(Quantity("output", OUTPUT), np.empty(0)))
        values.drop()
        found = {q: d for q, d in deviations.items() if q.kind != "input"}
        return Run(found, output, dtypes, kinks)


def _by_tap(program: Program) -> dict[str, str]:
    outputs = (q for q in program.dtypes if q.kind == "output")
    return {q.name: program.dtypes[q] for q in outputs}
