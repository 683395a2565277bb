"""A torch network as the check runs it: copies of it, in either mode and precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from parity.running import torch_copies, torch_experiments, torch_norms, torch_runs
from parity.running.experiments import Experiment
from parity.running.norms import Lost, Norm
from parity.running.objective import Objective
from parity.running.perturbing import perturbed
from parity.running.taps import (
    Batch,
    Branch,
    Calls,
    Inputs,
    Learnt,
    Quantity,
    Visit,
    answers,
)
from parity.running.torch_norms import norms
from parity.weights import torch_state
from parity.weights.names import Entry, Shape
from resnet_spec import OptimizerConfig


class TorchNetwork:
    """Runs of a torch module; none of them changes it.

    Args:
        model: any torch module.
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

    @property
    def entries(self) -> dict[str, Entry]:
        """The shape and dtype of every entry of its state."""
        return torch_state.entries(self._model)

    @property
    def frozen(self) -> set[str]:
        """The parameters that are told not to learn."""
        named = self._model.named_parameters()
        return {name for name, parameter in named if not parameter.requires_grad}

    @property
    def fixed(self) -> set[str]:
        """The modules that stay in evaluation mode."""
        return {path for path, _ in torch_copies.fixed_modules(self._model)}

    @property
    def norms_at(self) -> set[str]:
        """Where its norms are, whatever they sum over."""
        return {*torch_norms.paths(self._model)}

    @property
    def random(self) -> dict[str, float]:
        """Lists what drops at random in training mode: path → rate."""
        return torch_copies.random(self._model)

    def norms(self, *, training: bool) -> dict[str, Norm]:
        """Lists the norms that take their statistics from what they are given.

        Args:
            training: in training mode.
        """
        inside = self.fixed
        return {
            path: norm
            for path, norm in norms(self._model)
            if norm.groups is not None
            or (training and not any(f"{path}.".startswith(f"{p}.") for p in inside))
        }

    def has(self, ask: str) -> bool:
        """Whether it can be asked for this, of :data:`parity.running.taps.ASKED`."""
        return answers(self._model, ask)

    def output_shapes(self, inputs: Inputs) -> dict[str, Shape]:
        """Returns the shape of what it gives, or of its parts, by name."""
        return torch_runs.output_shapes(self._copy(), inputs)

    def forward(
        self,
        inputs: Inputs,
        visit: Visit,
        *,
        ask: Sequence[str] = (),
        float64: bool = False,
        draw: int | None = None,
        lost: Mapping[str, Lost] = torch_runs.NOTHING,
    ) -> Calls:
        """Runs it in evaluation mode."""
        model, inputs = self._ready(inputs, float64=float64, draw=draw)
        return torch_runs.forward(model, inputs, visit, ask=ask, lost=lost)

    def training(
        self,
        inputs: Inputs,
        objective: Objective,
        visit: Visit,
        *,
        training: bool = True,
        branch: Branch | None = None,
        float64: bool = False,
        draw: int | None = None,
        lost: Mapping[str, Lost] = torch_runs.NOTHING,
    ) -> Calls:
        """Runs it forwards and backwards, by default in training mode."""
        how: Any = {"training": training, "float64": float64, "draw": draw}
        model, inputs = self._ready(inputs, **how)
        return torch_runs.train(
            model, inputs, objective, visit, branch=branch, lost=lost
        )

    def _ready(
        self, inputs: Inputs, *, draw: int | None, float64: bool, **how: Any
    ) -> tuple[nn.Module, Inputs]:
        model = self._copy(float64=float64, **how)
        if float64:
            inputs = {
                name: array.astype(np.float64) if array.dtype.kind == "f" else array
                for name, array in inputs.items()
            }
        if draw is not None:
            inputs = torch_copies.perturb(model, inputs, draw)
        return model, inputs

    def learn(
        self,
        batches: Sequence[Batch],
        config: OptimizerConfig,
        *,
        label_smoothing: float,
        loss_scale: float,
        draw: int | None = None,
    ) -> Learnt:
        """Trains a copy in float64."""
        model = self._copy(training=True, float64=True)
        if draw is not None:
            torch_copies.perturb(model, {}, draw)
            batches = [Batch(perturbed(b.images, draw), b.labels) for b in batches]
        steps = torch_runs.learn(
            *(model, batches, config),
            label_smoothing=label_smoothing,
            loss_scale=loss_scale,
        )
        return model, steps

    @property
    def relus(self) -> set[str]:
        """Where its rectifiers are."""
        return torch_runs.relus(self._model)

    def workbench(self, *, training: bool, float64: bool) -> TorchWorkbench:
        """Makes a copy for many experiments."""
        copy = self._copy(training=training, float64=float64)
        torch_copies.unfreeze(copy)
        return TorchWorkbench(copy, torch.float64 if float64 else torch.float32)

    def _copy(self, **how: Any) -> nn.Module:
        return torch_copies.duplicate(self._model, **how)


class TorchWorkbench:
    """A copy of a torch network whose modules are run alone.

    Args:
        model: the copy.
        dtype: that it computes in, if its state does not say so.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._model = model
        self._dtype = dtype

    def run(self, setup: Experiment) -> dict[Quantity, np.ndarray]:
        """Runs one module."""
        return torch_experiments.experiment(self._model, setup, self._dtype)
