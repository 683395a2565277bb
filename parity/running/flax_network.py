"""A Flax network, or a function of JAX, as the check runs it, in torch's names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from flax import nnx

from parity.running import flax_copies, flax_experiments, flax_functions, flax_runs
from parity.running.experiments import Experiment
from parity.running.flax_programs import Program
from parity.running.layouts import Layouts
from parity.running.objective import Objective
from parity.running.seen import Seen
from parity.running.taps import Batch, Inputs, Learnt, Quantity, answers
from parity.running.translation import Names
from parity.weights import flax_state
from parity.weights.names import Shape
from resnet_spec import OptimizerConfig

Shapes = Mapping[Quantity, Shape]
"""Of torch's quantities."""


class FlaxNetwork:
    """Runs of a Flax NNX module; none of them changes it.

    Args:
        model: any module.
        names: its names and layouts in torch.
    """

    def __init__(self, model: nnx.Module, names: Names) -> None:
        self._model = model
        self._names = names

    @property
    def paths(self) -> set[str]:
        """Where its modules are, in torch's names."""
        aliases = self._names.aliases
        return {p for p, _ in flax_state.modules(self._model, aliases=aliases)}

    def state(self) -> dict[str, np.ndarray]:
        """Returns its state, in torch's names and layouts."""
        variables = flax_state.own_variables(self._model)
        return self._names.entries(
            {name: jax.device_get(v.get_value()) for name, v in variables}
        )

    @property
    def random(self) -> dict[str, float]:
        """Lists what drops at random in training mode: path → rate."""
        return flax_copies.random(self._model, aliases=self._names.aliases)

    def has(self, ask: str) -> bool:
        """Whether it can be asked for this, of :data:`parity.running.taps.ASKED`."""
        return answers(self._model, ask)

    def forward(
        self,
        inputs: Inputs,
        shapes: Shapes,
        *,
        ask: Sequence[str] = (),
        float64: bool = False,
    ) -> Program:
        """Makes a program of it in evaluation mode."""
        model = self._copy(float64=float64)
        names = _knowing(self._names, shapes)
        return flax_runs.forward(model, inputs, names=names, ask=ask)

    def training(
        self,
        inputs: Inputs,
        objective: Objective,
        shapes: Shapes,
        *,
        fixed: Collection[str] = (),
        float64: bool = False,
    ) -> Program:
        """Makes a program of it in training mode."""
        model = self._copy(training=True, float64=float64, fixed=fixed)
        names = _knowing(self._names, shapes)
        return flax_runs.train(model, inputs, objective, names=names)

    def learn(
        self,
        batches: Sequence[Batch],
        config: OptimizerConfig,
        *,
        relus: Collection[str],
        fixed: Collection[str],
        label_smoothing: float,
        loss_scale: float,
    ) -> Learnt:
        """Trains a copy in float64; notes the signs of these rectifiers."""
        twin = self._copy(training=True, float64=True, fixed=fixed)
        return flax_runs.learn(
            *(twin, batches, config),
            relus=relus,
            label_smoothing=label_smoothing,
            loss_scale=loss_scale,
            aliases=self._names.aliases,
        )

    def workbench(
        self,
        shapes: Shapes,
        seen: Seen,
        *,
        fixed: Collection[str],
        training: bool,
        float64: bool,
    ) -> FlaxWorkbench:
        """Makes a copy for many experiments.

        Args:
            shapes: of torch's quantities.
            seen: what was noted of its own run.
            fixed: see :func:`parity.running.flax_copies.duplicate`.
            training: in training mode.
            float64: raised.
        """
        copy = self._copy(training=training, float64=float64, fixed=fixed)
        dtype = np.dtype(np.float64 if float64 else np.float32)
        return FlaxWorkbench(copy, _knowing(self._names, shapes), seen, dtype)

    def _copy(self, **how: Any) -> nnx.Module:
        return flax_copies.duplicate(self._model, aliases=self._names.aliases, **how)


def _knowing(names: Names, shapes: Shapes) -> Names:
    return replace(names, layouts=Layouts(names.layouts.given, shapes))


class FlaxWorkbench:
    """A copy of a Flax network whose modules are run alone.

    Args:
        model: the copy.
        names: its names and layouts in torch.
        seen: what was noted of its own run.
        dtype: that it computes in, if its state does not say so.
    """

    def __init__(
        self, model: nnx.Module, names: Names, seen: Seen, dtype: np.dtype
    ) -> None:
        self._model = model
        self._how: Any = {"names": names, "shapes": seen.shapes, "dtype": dtype}

    def run(self, setup: Experiment) -> dict[Quantity, np.ndarray]:
        """Runs one module."""
        return flax_experiments.experiment(self._model, setup, **self._how)


class FlaxFunction:
    """Runs of a function of JAX, which has no modules and no training mode.

    Args:
        function: of arrays.
        names: names of what it shows in torch.
    """

    paths: frozenset[str] = frozenset()

    def __init__(self, function: Callable[..., Any], names: Names) -> None:
        self._function = flax_functions.Opened(function)
        self._names = replace(names, said=True)

    def state(self) -> dict[str, np.ndarray]:
        """Returns the entries that have a name in torch."""
        return self._names.entries(self._function.arrays)

    def has(self, ask: str) -> bool:
        """Whether it can be asked for this; for nothing."""
        return False

    def forward(
        self,
        inputs: Inputs,
        shapes: Shapes,
        *,
        ask: Sequence[str] = (),
        float64: bool = False,
    ) -> Program:
        """Makes a program of it."""
        names = _knowing(self._names, shapes)
        return flax_functions.forward(self._function, inputs, names, float64=float64)

    def training(
        self,
        inputs: Inputs,
        objective: Objective,
        shapes: Shapes,
        *,
        fixed: Collection[str] = (),
        float64: bool = False,
    ) -> Program:
        """Makes a program of its gradients."""
        names = _knowing(self._names, shapes)
        return flax_functions.train(
            self._function, inputs, objective, names, float64=float64
        )
