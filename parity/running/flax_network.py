"""A Flax network, or a function of JAX, as the check runs it, in torch's names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from parity.running import flax_experiments, flax_runs
from parity.running.experiments import Experiment
from parity.running.objective import Objective
from parity.running.taps import Batch, Learnt, Quantity
from parity.weights import flax_state
from resnet_spec import OptimizerConfig

Aliases = Mapping[str, str]
"""Path in JAX → path in torch, for all that differ."""


class FlaxNetwork:
    """Runs of a Flax NNX module; none of them changes it.

    Args:
        model: any module of one input.
        aliases: its paths under torch's names.
    """

    def __init__(self, model: nnx.Module, aliases: Aliases) -> None:
        self._model = model
        self._aliases = aliases

    @property
    def paths(self) -> set[str]:
        """Where its modules are, in torch's names."""
        return {p for p, _ in flax_state.modules(self._model, aliases=self._aliases)}

    def state(self) -> dict[str, np.ndarray]:
        """Returns its state, in torch's names and layouts."""
        return flax_state.state(self._model, aliases=self._aliases)

    def forward(self, images: np.ndarray, *, float64: bool = False) -> Any:
        """Makes a program of it in evaluation mode."""
        model = flax_runs.duplicate(self._model, float64=float64)
        return flax_runs.forward(model, images, aliases=self._aliases)

    def training(
        self,
        images: np.ndarray,
        objective: Objective,
        inputs_of: Sequence[str],
        *,
        float64: bool = False,
    ) -> Any:
        """Makes a program of it in training mode."""
        model = flax_runs.duplicate(self._model, training=True, float64=float64)
        return flax_runs.train(
            model, images, objective, inputs_of=inputs_of, aliases=self._aliases
        )

    def learn(
        self,
        batches: Sequence[Batch],
        config: OptimizerConfig,
        *,
        relus: Sequence[str],
        label_smoothing: float,
        loss_scale: float,
    ) -> Learnt:
        """Trains a copy in float64; notes the signs of these rectifiers."""
        twin = flax_runs.duplicate(self._model, training=True, float64=True)
        return flax_runs.learn(
            *(twin, batches, config),
            relus=relus,
            label_smoothing=label_smoothing,
            loss_scale=loss_scale,
            aliases=self._aliases,
        )

    def workbench(self, *, training: bool, float64: bool) -> FlaxWorkbench:
        """Makes a copy for many experiments."""
        copy = flax_runs.duplicate(self._model, training=training, float64=float64)
        return FlaxWorkbench(copy, self._aliases)


class FlaxWorkbench:
    """A copy of a Flax network whose modules are run alone.

    Args:
        model: the copy.
        aliases: its paths under torch's names.
    """

    def __init__(self, model: nnx.Module, aliases: Aliases) -> None:
        self._model = model
        self._aliases = aliases

    def run(self, setup: Experiment) -> dict[Quantity, np.ndarray]:
        """Runs one module."""
        return flax_experiments.experiment(self._model, setup, aliases=self._aliases)


class FlaxFunction:
    """Runs of a function of JAX, which has no modules and no training mode.

    Args:
        function: of images (n, h, w, c).
        aliases: names of what it shows → torch's.
    """

    paths: frozenset[str] = frozenset()

    def __init__(self, function: Callable[..., Any], aliases: Aliases) -> None:
        self._function = function
        self._aliases = aliases

    def state(self) -> dict[str, np.ndarray]:
        """Returns nothing: what it computes with is its own."""
        return {}

    def forward(self, images: np.ndarray, *, float64: bool = False) -> Any:
        """Makes a program of it."""
        return flax_runs.function(
            self._function, images, aliases=self._aliases, float64=float64
        )
