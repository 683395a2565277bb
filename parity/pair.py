"""Two networks, one of each framework, run alike under torch's names."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from parity.compare import nudged
from parity.objective import Objective
from parity.taps import Batch, Branch, Calls, Experiment, Quantity, Shape
from resnet_spec import OptimizerConfig

Visit = Callable[[Quantity, np.ndarray], None]

Learnt = tuple[Any, list[dict[Quantity, np.ndarray]]]
"""A trained network, and what each step gave: the loss, and rectifiers' signs."""

Mapped = Mapping[str, str] | Callable[[str], str] | None
"""Path in torch → path in JAX; see :func:`parity.compare_modules`."""


class Pair:
    """A torch module and a Flax NNX module, or a function of JAX.

    Nothing here changes either: every run is one of a copy.

    Args:
        torch_model: any torch module of one input.
        flax_model: any Flax NNX module of one input, or a function of images
            (n, h, w, c); see :func:`parity.compare_modules`.
        mapping: path in torch → path in JAX, where they differ.

    Raises:
        TypeError: the second is neither.
        ValueError: the mapping names what is not there.
    """

    def __init__(self, torch_model: Any, flax_model: Any, mapping: Mapped) -> None:
        # Here, and not above: importing parity imports no framework.
        from flax import nnx

        from parity import experiments_flax, on_flax, on_torch, runs_flax, runs_torch

        self.is_function = not isinstance(flax_model, nnx.Module)
        if self.is_function and not callable(flax_model):
            raise TypeError(
                f"got {type(flax_model).__name__}; expected a flax.nnx.Module, or a "
                "function of images"
            )
        self._torch_model, self._flax_model = torch_model, flax_model
        self._on_torch, self._on_flax = on_torch, on_flax
        self._runs_torch, self._runs_flax = runs_torch, runs_flax
        self._experiments_flax = experiments_flax
        paths = [path for path, _ in torch_model.named_modules() if path]
        known = None
        if isinstance(flax_model, nnx.Module):
            known = {path for path, _ in on_flax.modules(flax_model)}
        self._aliases = _aliases(mapping, paths, known)

    def torch_state(self) -> dict[str, np.ndarray]:
        """Returns the state of the torch network."""
        return self._on_torch.state(self._torch_model)

    def torch_parameters(self) -> list[str]:
        """Lists the entries of the torch network's state that learn."""
        return [name for name, _ in self._torch_model.named_parameters()]

    def flax_state(self) -> dict[str, np.ndarray]:
        """Returns the state of the Flax network, in torch's names and layout."""
        if self.is_function:
            return {}
        return self._on_flax.state(self._flax_model, aliases=self._aliases)

    def on_accelerator(self) -> bool:
        """Whether either network is on something else than a CPU."""
        import jax

        device, _ = self._on_torch.place(self._torch_model)
        return device.type != "cpu" or jax.default_backend() != "cpu"

    def output_shape(self, images: np.ndarray) -> Shape:
        """Returns the shape of what the torch network makes of these images."""
        model = self._on_torch.duplicate(self._torch_model)
        return self._runs_torch.run(model, images).shape

    def torch_forward(
        self,
        images: np.ndarray,
        visit: Visit,
        *,
        float64: bool = False,
        nudge: int | None = None,
    ) -> Calls:
        """Runs the torch network in evaluation mode."""
        model = self._on_torch.duplicate(self._torch_model, float64=float64)
        if nudge is not None:
            images = self._on_torch.nudge(model, images, nudge)
        return self._runs_torch.forward(model, images, visit)

    def torch_training(
        self,
        images: np.ndarray,
        objective: Objective,
        visit: Visit,
        *,
        branch: Branch | None = None,
        float64: bool = False,
        nudge: int | None = None,
    ) -> Calls:
        """Runs the torch network in training mode, forwards and backwards."""
        model = self._on_torch.duplicate(
            self._torch_model, training=True, float64=float64
        )
        if nudge is not None:
            images = self._on_torch.nudge(model, images, nudge)
        return self._runs_torch.train(model, images, objective, visit, branch=branch)

    def flax_forward(self, images: np.ndarray, *, float64: bool = False) -> Any:
        """Makes a program of the Flax network in evaluation mode."""
        if self.is_function:
            return self._runs_flax.function(
                self._flax_model, images, aliases=self._aliases, float64=float64
            )
        model = self._on_flax.duplicate(self._flax_model, float64=float64)
        return self._runs_flax.forward(model, images, aliases=self._aliases)

    def flax_training(
        self,
        images: np.ndarray,
        objective: Objective,
        inputs_of: Sequence[str],
        *,
        float64: bool = False,
    ) -> Any:
        """Makes a program of the Flax network in training mode."""
        model = self._on_flax.duplicate(
            self._flax_model, training=True, float64=float64
        )
        return self._runs_flax.train(
            model, images, objective, inputs_of=inputs_of, aliases=self._aliases
        )

    def learn(
        self,
        batches: Sequence[Batch],
        config: OptimizerConfig,
        *,
        label_smoothing: float,
        loss_scale: float,
    ) -> dict[str, Learnt]:
        """Trains copies of both networks in float64.

        Returns:
            By framework the trained copy, and what each step gave.
        """
        twin = self._on_flax.duplicate(self._flax_model, training=True, float64=True)
        relus = [path for path, kind in self.kinks().items() if kind == "relu"]
        scales: Any = {"label_smoothing": label_smoothing, "loss_scale": loss_scale}
        return {
            "torch": self.torch_learn(batches, config, **scales),
            "flax": self._runs_flax.learn(
                *(twin, batches, config),
                relus=relus,
                aliases=self._aliases,
                **scales,
            ),
        }

    def torch_learn(
        self,
        batches: Sequence[Batch],
        config: OptimizerConfig,
        *,
        label_smoothing: float,
        loss_scale: float,
        nudge: int | None = None,
    ) -> Learnt:
        """Trains a copy of the torch network in float64; see :meth:`learn`."""
        model = self._on_torch.duplicate(self._torch_model, training=True, float64=True)
        if nudge is not None:
            self._on_torch.nudge(model, batches[0].images, nudge)
            batches = [Batch(nudged(b.images, nudge), b.labels) for b in batches]
        steps = self._runs_torch.learn(
            *(model, batches, config),
            label_smoothing=label_smoothing,
            loss_scale=loss_scale,
        )
        return model, steps

    def with_models(self, torch_model: Any, flax_model: Any) -> Pair:
        """Returns a pair of others, of the same names."""
        pair = copy.copy(self)
        pair._torch_model, pair._flax_model = torch_model, flax_model
        return pair

    def flax_paths(self) -> set[str]:
        """Lists the paths of the Flax network's modules, in torch's names."""
        found = self._on_flax.modules(self._flax_model, aliases=self._aliases)
        return {path for path, _ in found}

    def kinks(self) -> dict[str, str]:
        """Lists the torch modules whose derivative jumps."""
        return self._runs_torch.kinks(self._torch_model)

    def way(self, path: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Returns the way that a rectifier or pool took."""
        return self._runs_torch.way(self._torch_model, path, x, y)

    def laboratory(self, training: bool) -> Laboratory:
        """Makes copies of both networks for many experiments."""
        return Laboratory(self, training)


class Laboratory:
    """Copies of both networks, in both precisions, for experiments.

    Args:
        pair: the networks.
        training: in training mode.
    """

    def __init__(self, pair: Pair, training: bool) -> None:
        self._pair = pair
        self._torch = {
            float64: pair._on_torch.duplicate(
                pair._torch_model, training=training, float64=float64
            )
            for float64 in (False, True)
        }
        self._flax = {
            float64: pair._on_flax.duplicate(
                pair._flax_model, training=training, float64=float64
            )
            for float64 in (False, True)
        }

    def torch(
        self, setup: Experiment, *, float64: bool = False
    ) -> dict[Quantity, np.ndarray]:
        """Runs one module of the torch network."""
        return self._pair._runs_torch.experiment(self._torch[float64], setup)

    def flax(
        self, setup: Experiment, *, float64: bool = False
    ) -> dict[Quantity, np.ndarray]:
        """Runs one module of the Flax network."""
        return self._pair._experiments_flax.experiment(
            self._flax[float64], setup, aliases=self._pair._aliases
        )


def _aliases(
    mapping: Mapped, paths: Sequence[str], known: Set[str] | None
) -> dict[str, str]:
    """Returns path in JAX → path in torch, for all that differ."""
    if mapping is None:
        return {}
    if callable(mapping):
        return {mapping(path): path for path in paths if mapping(path) != path}
    unused = [
        name
        for name in mapping
        if not any(f"{path}.".startswith(f"{name}.") for path in paths)
    ]
    if unused:
        raise ValueError(
            f"the mapping names {', '.join(unused)}, which torch does not have"
        )
    missing = [
        f"{found} (for {name})"
        for name, found in mapping.items()
        if known is not None and found not in known
    ]
    if missing:
        raise ValueError(
            f"the mapping leads to {', '.join(missing)}, which JAX does not have"
        )
    return {found: path for path in paths if (found := _begun(mapping, path)) != path}


def _begun(mapping: Mapping[str, str], path: str) -> str:
    found = [name for name in mapping if f"{path}.".startswith(f"{name}.")]
    longest = max(found, key=len, default=None)
    return path if longest is None else mapping[longest] + path[len(longest) :]
