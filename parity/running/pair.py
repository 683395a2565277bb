"""Two networks, one of each framework, run alike under torch's names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from parity.running.experiments import Experiment
from parity.running.taps import Batch, Learnt, Quantity
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
        aliases: path in JAX → path in torch, for all that differ.
    """

    torch: TorchNetwork
    jax: FlaxNetwork | FlaxFunction
    aliases: Mapping[str, str]

    @property
    def is_function(self) -> bool:
        """Whether the second shows no modules."""
        return not hasattr(self.jax, "training")

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
        relus = [path for path, kind in self.torch.kinks().items() if kind == "relu"]
        scales: Any = {"label_smoothing": label_smoothing, "loss_scale": loss_scale}
        return {
            "torch": self.torch.learn(batches, config, **scales),
            "flax": self.flax.learn(batches, config, relus=relus, **scales),
        }

    def with_models(self, torch_model: Any, flax_model: Any) -> Pair:
        """Returns a pair of others, of the same names."""
        networks = _networks(torch_model, flax_model, self.aliases)
        return replace(self, **dict(zip(("torch", "jax"), networks, strict=True)))

    def workbenches(self, *, training: bool) -> Workbenches:
        """Makes copies of both networks for many experiments."""
        networks: dict[str, Any] = {"torch": self.torch, "flax": self.flax}
        return Workbenches(
            {
                (name, float64): network.workbench(training=training, float64=float64)
                for name, network in networks.items()
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


def pair_of(torch_model: Any, flax_model: Any, mapping: Mapped = None) -> Pair:
    """Pairs two models; neither is changed by what is done with the pair.

    Args:
        torch_model: any torch module of one input.
        flax_model: any Flax NNX module of one input, or a function of images
            (n, h, w, c); see :func:`parity.compare_modules`.
        mapping: path in torch → path in JAX, where they differ.

    Raises:
        TypeError: the second is neither.
        ValueError: the mapping names what is not there.
    """
    # Here, and not above: importing parity imports no framework.
    from flax import nnx

    from parity.weights import flax_state

    known = None
    if isinstance(flax_model, nnx.Module):
        known = {path for path, _ in flax_state.modules(flax_model)}
    elif not callable(flax_model):
        raise TypeError(
            f"got {type(flax_model).__name__}; expected a flax.nnx.Module, or a "
            "function of images"
        )
    paths = [path for path, _ in torch_model.named_modules() if path]
    aliases = _aliases(mapping, paths, known)
    return Pair(*_networks(torch_model, flax_model, aliases), aliases)


def _networks(
    torch_model: Any, flax_model: Any, aliases: Mapping[str, str]
) -> tuple[TorchNetwork, FlaxNetwork | FlaxFunction]:
    from flax import nnx

    from parity.running.flax_network import FlaxFunction, FlaxNetwork
    from parity.running.torch_network import TorchNetwork

    make: Any = FlaxNetwork if isinstance(flax_model, nnx.Module) else FlaxFunction
    return TorchNetwork(torch_model), make(flax_model, aliases)


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
