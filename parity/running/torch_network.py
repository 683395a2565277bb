"""A torch network as the check runs it: copies of it, in either mode and precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from parity.running import torch_experiments, torch_runs
from parity.running.experiments import Experiment
from parity.running.nudge import nudged
from parity.running.objective import Objective
from parity.running.taps import Batch, Branch, Calls, Learnt, Quantity, Visit
from parity.weights import torch_state
from parity.weights.names import Shape
from resnet_spec import OptimizerConfig


class TorchNetwork:
    """Runs of a torch module; none of them changes it.

    Args:
        model: any torch module of one input.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    @property
    def paths(self) -> list[str]:
        """Where its modules are."""
        return [path for path, _ in self._model.named_modules() if path]

    @property
    def parameters(self) -> list[str]:
        """The entries of its state that learn."""
        return [name for name, _ in self._model.named_parameters()]

    @property
    def on_accelerator(self) -> bool:
        """Whether it is on something else than a CPU."""
        return torch_runs.place(self._model)[0].type != "cpu"

    def state(self) -> dict[str, np.ndarray]:
        """Returns its state."""
        return torch_state.state(self._model)

    def output_shape(self, images: np.ndarray) -> Shape:
        """Returns the shape of what it makes of these images."""
        return torch_runs.run(self._copy(), images).shape

    def forward(
        self,
        images: np.ndarray,
        visit: Visit,
        *,
        float64: bool = False,
        nudge: int | None = None,
    ) -> Calls:
        """Runs it in evaluation mode."""
        model = self._copy(float64=float64)
        if nudge is not None:
            images = torch_runs.nudge(model, images, nudge)
        return torch_runs.forward(model, images, visit)

    def training(
        self,
        images: np.ndarray,
        objective: Objective,
        visit: Visit,
        *,
        branch: Branch | None = None,
        float64: bool = False,
        nudge: int | None = None,
    ) -> Calls:
        """Runs it in training mode, forwards and backwards."""
        model = self._copy(training=True, float64=float64)
        if nudge is not None:
            images = torch_runs.nudge(model, images, nudge)
        return torch_runs.train(model, images, objective, visit, branch=branch)

    def learn(
        self,
        batches: Sequence[Batch],
        config: OptimizerConfig,
        *,
        label_smoothing: float,
        loss_scale: float,
        nudge: int | None = None,
    ) -> Learnt:
        """Trains a copy in float64."""
        model = self._copy(training=True, float64=True)
        if nudge is not None:
            torch_runs.nudge(model, batches[0].images, nudge)
            batches = [Batch(nudged(b.images, nudge), b.labels) for b in batches]
        steps = torch_runs.learn(
            *(model, batches, config),
            label_smoothing=label_smoothing,
            loss_scale=loss_scale,
        )
        return model, steps

    def kinks(self) -> dict[str, str]:
        """Lists the modules whose derivative jumps."""
        return torch_runs.kinks(self._model)

    def way(self, path: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Returns the way that a rectifier or pool took."""
        return torch_runs.way(self._model, path, x, y)

    def workbench(self, *, training: bool, float64: bool) -> TorchWorkbench:
        """Makes a copy for many experiments."""
        return TorchWorkbench(self._copy(training=training, float64=float64))

    def _copy(self, **how: Any) -> nn.Module:
        return torch_runs.duplicate(self._model, **how)


class TorchWorkbench:
    """A copy of a torch network whose modules are run alone.

    Args:
        model: the copy.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def run(self, setup: Experiment) -> dict[Quantity, np.ndarray]:
        """Runs one module."""
        return torch_experiments.experiment(self._model, setup)
