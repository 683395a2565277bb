"""Two networks, one of each framework, run alike under torch's names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from parity.running.experiments import Experiment
from parity.running.layouts import Layouts, require
from parity.running.objective import Objective
from parity.running.seen import Seen
from parity.running.taps import (
    ASKED,
    NESTED,
    Batch,
    Calls,
    Inputs,
    Learnt,
    Quantity,
    Visit,
)
from parity.running.translation import Names, Weights
from parity.weights.names import Shape
from resnet_spec import OptimizerConfig

if TYPE_CHECKING:
    from parity.running.flax_network import FlaxFunction, FlaxNetwork
    from parity.running.torch_network import TorchNetwork

Mapped = Mapping[str, str] | Callable[[str], str] | None
"""Path in torch → path in JAX; see :func:`parity.compare_modules`."""


@dataclass(frozen=True)
class Pair:
    """A torch network and a Flax NNX network, or a function of JAX.

    Args:
        torch: the first.
        jax: the second.
        names: of the second, in torch.
    """

    torch: TorchNetwork
    jax: FlaxNetwork | FlaxFunction
    names: Names

    @property
    def aliases(self) -> Mapping[str, str]:
        """Path in JAX → path in torch, for all that differ."""
        return self.names.aliases

    @property
    def is_function(self) -> bool:
        """Whether the second shows no modules."""
        return not hasattr(self.jax, "workbench")

    @property
    def flax(self) -> FlaxNetwork:
        """The second, where it is a network.

        Raises:
            TypeError: it is a function.
        """
        if self.is_function:
            raise TypeError("a function has no modules, and no training mode")
        return self.jax  # type: ignore[return-value]

    def on_accelerator(self) -> bool:
        """Whether either network is on something else than a CPU."""
        import jax

        return self.torch.on_accelerator or jax.default_backend() != "cpu"

    def learn(
        self,
        batches: Sequence[Batch],
        config: OptimizerConfig,
        *,
        label_smoothing: float,
        loss_scale: float,
    ) -> dict[str, Learnt]:
        """Trains copies of both networks in float64; returns both, by framework."""
        relus, fixed = self.torch.relus, self.torch.fixed
        scales: Any = {"label_smoothing": label_smoothing, "loss_scale": loss_scale}
        return {
            "torch": self.torch.learn(batches, config, **scales),
            "flax": self.flax.learn(
                *(batches, config), relus=relus, fixed=fixed, **scales
            ),
        }

    def training(
        self, inputs: Inputs, objective: Objective, visit: Visit, **how: Any
    ) -> Calls:
        """Runs the torch network forwards and backwards.

        In training mode, unless the other is a function, which has none.
        """
        modes = {"training": not self.is_function}
        return self.torch.training(inputs, objective, visit, **modes, **how)

    def with_models(self, torch_model: Any, flax_model: Any) -> Pair:
        """Returns a pair of others, of the same names."""
        networks = _networks(torch_model, flax_model, self.names)
        return replace(self, **dict(zip(("torch", "jax"), networks, strict=True)))

    @property
    def methods(self) -> list[str]:
        """What both can be asked for; of a head only where both give what it takes."""
        found = [ask for ask in ASKED if self.torch.has(ask) and self.jax.has(ask)]
        if "forward_features" in found:
            return found
        return [ask for ask in found if not ask.startswith("forward_head")]

    def workbenches(
        self, shapes: Mapping[Quantity, Shape], seen: Seen, *, training: bool
    ) -> Workbenches:
        """Makes copies of both networks for many experiments.

        Args:
            shapes: of torch's quantities.
            seen: what was noted of the Flax network's run.
            training: in training mode.
        """
        fixed = self.torch.fixed
        make: dict[str, Callable[..., Any]] = {
            "torch": self.torch.workbench,
            "flax": partial(self.flax.workbench, shapes, seen, fixed=fixed),
        }
        return Workbenches(
            {
                (name, float64): workbench(training=training, float64=float64)
                for name, workbench in make.items()
                for float64 in (False, True)
            }
        )


@dataclass(frozen=True)
class Workbenches:
    """Copies of both networks, in both precisions, whose modules are run alone."""

    benches: Mapping[tuple[str, bool], Any]

    def run(
        self, framework: str, setup: Experiment, *, float64: bool = False
    ) -> dict[Quantity, np.ndarray]:
        """Runs one module of the network of this framework."""
        return self.benches[framework, float64].run(setup)


def pair_of(
    torch_model: Any,
    flax_model: Any,
    mapping: Mapped = None,
    *,
    weights: Weights | None = None,
    layouts: Mapping[str, str] | None = None,
) -> Pair:
    """Pairs two models; neither is changed by what is done with the pair.

    Args:
        torch_model: any torch module. What only runs another, as
            ``torch.nn.DataParallel`` and ``torch.compile``, is looked through.
        flax_model: any Flax NNX module, or a function; see
            :func:`parity.compare_modules`.
        mapping: path in torch → path in JAX, where they differ.
        weights: see :func:`parity.compare_modules`.
        layouts: see :func:`parity.compare_modules`.

    Raises:
        TypeError: the second is neither.
        ValueError: the mapping names what is not there, or a layout is none.
    """
    # Here, and not above: importing parity imports no framework.
    from flax import nnx

    from parity.weights import flax_state
    from parity.weights.torch_state import unwrapped

    torch_model = unwrapped(torch_model)
    known = None
    if isinstance(flax_model, nnx.Module):
        known = {path for path, _ in flax_state.holders(flax_model)}
    elif not callable(flax_model) or _is_linen(flax_model):
        raise TypeError(
            f"got {type(flax_model).__name__}; expected a flax.nnx.Module, or a "
            "function of arrays, as functools.partial(linen_module.apply, variables)"
        )
    require(layouts or {})
    aliases = _aliases(
        mapping, [path for path, _ in torch_model.named_modules() if path], known
    )
    names = Names(aliases, dict(weights or {}), Layouts(dict(layouts or {})))
    return Pair(*_networks(torch_model, flax_model, names), names)


def _is_linen(model: Any) -> bool:
    return any(cls.__module__.startswith("flax.linen.") for cls in type(model).__mro__)


def _networks(
    torch_model: Any, flax_model: Any, names: Names
) -> tuple[TorchNetwork, FlaxNetwork | FlaxFunction]:
    from flax import nnx

    from parity.running.flax_network import FlaxFunction, FlaxNetwork
    from parity.running.torch_network import TorchNetwork

    make: Any = FlaxNetwork if isinstance(flax_model, nnx.Module) else FlaxFunction
    return TorchNetwork(torch_model), make(flax_model, names)


def _aliases(
    mapping: Mapped, paths: Sequence[str], known: Set[str] | None
) -> dict[str, str]:
    """Returns path in JAX → path in torch, for all that differ."""
    if mapping is None:
        return {}
    if callable(mapping):
        return {mapping(path): path for path in paths if mapping(path) != path}
    # Parts of outputs are taps, and no modules.
    nested = {mapping[name]: name for name in mapping if NESTED in name}
    mapping = {name: at for name, at in mapping.items() if name not in nested.values()}
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
    begun = {found: path for path in paths if (found := _begun(mapping, path)) != path}
    return begun | nested


def _begun(mapping: Mapping[str, str], path: str) -> str:
    found = [name for name in mapping if f"{path}.".startswith(f"{name}.")]
    longest = max(found, key=len, default=None)
    if longest is None:
        return path
    return (mapping[longest] + path[len(longest) :]).removeprefix(".")
