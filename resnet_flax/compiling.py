"""A network made ready for inference, by what was measured to be the fastest.

The mirror of ``resnet_torch/compiling.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from resnet_flax.filtering import winograd
from resnet_flax.fusing import fuse
from resnet_flax.layers import Conv2d
from resnet_flax.resnet import ResNet
from resnet_flax.xla import compiler_options

Engine = Literal["xla", "onnxruntime", "openvino", "auto"]
"""What runs a network: JAX's own compiler, others', or the fastest of them."""


class Compiled:
    """A function of images, from :func:`compile`.

    Args:
        model: the network that it was made from.
        engine: that runs it.

    Attributes:
        model: the fused network that it computes.
        engine: as asked for.
        trials: with ``"auto"``, what was found for each shape of images, in order.
    """

    def __init__(self, model: ResNet, engine: Engine = "xla") -> None:
        if engine not in get_args(Engine):
            known = ", ".join(get_args(Engine))
            raise ValueError(f"engine is {engine!r}; there are {known}")
        self.model = fuse(model)
        self.engine = engine
        self.trials: dict[tuple[int, ...], Any] = {}
        if engine == "auto":
            self._run = self._fastest()
        else:
            self._run = self._made(engine)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n ..."]:
        """Computes what the network does in evaluation mode.

        Args:
            x: images; of every new shape the first take as long as compiling does.

        Raises:
            ValueError: it is no batch of images that this network takes.
        """
        self.model._check(x)
        return self._run(x)

    def _made(self, engine: str) -> Callable[[Array], Array]:
        return _xla(self.model) if engine == "xla" else self._other(engine)

    def _other(self, engine: str) -> Callable[[Array], Array]:
        """Makes an engine of others ready, by the network's graph."""
        if problem := _misfit(self.model):
            raise ValueError(f"engine {engine!r} {problem}")
        from resnet_onnx import graph
        from resnet_onnx.engines import load

        run = load(graph(self.model.config, torch_state(self.model)), engine)

        def forward(x: Array) -> Array:
            images = np.asarray(x, np.float32).transpose(0, 3, 1, 2)
            y = run(np.ascontiguousarray(images))
            return jnp.asarray(y.transpose(0, 2, 3, 1) if y.ndim == 4 else y)

        return forward

    def _fastest(self) -> Callable[[Array], Array]:
        """Makes what tries the engines that are here, for each shape of images."""
        if _misfit(self.model) or find_spec("onnx") is None:
            return self._made("xla")
        from resnet_onnx.engines import installed
        from resnet_onnx.trials import Trials

        names = ("xla", *installed())
        engines = {name: partial(self._made, name) for name in names}
        config = self.model.config.as_function().to_json()
        about = {"twin": "flax", "config": config}
        trials = Trials(engines, about, jax.block_until_ready)
        self.trials = trials.found
        return trials


def _xla(model: ResNet) -> Callable[[Array], Array]:
    """Makes JAX's own compiler ready."""
    if jax.default_backend() == "cpu":
        model = winograd(model)
    graph, state = nnx.split(model)

    def forward(state: nnx.State, x: Array) -> Array:
        return nnx.merge(graph, state)(x)

    # By argument: as constants, weights would be computed with while compiling.
    run = jax.jit(forward, compiler_options=compiler_options("inference"))
    return partial(run, state)


def _misfit(model: ResNet) -> str:
    """Says why engines of others do not take a network; empty if they do."""
    if model.config.out_indices is not None:
        return "takes a network of one result; this one returns a list of maps"
    conv = next(m for _, m in nnx.iter_modules(model) if isinstance(m, Conv2d))
    dtype = jnp.dtype(conv.dtype or conv.kernel.dtype)
    device = jax.default_backend()
    if device == "cpu" and dtype == jnp.float32 == conv.kernel.dtype:
        return ""
    return f"takes float32 on a CPU; the network is {dtype} on {device}"


def torch_state(model: ResNet) -> dict[str, np.ndarray]:
    """Returns a network's weights by torchvision's names, in its layouts.

    Args:
        model: a network, fused or not.
    """
    leaves = {"kernel": "weight", "scale": "weight"}
    leaves |= {"mean": "running_mean", "var": "running_var"}
    found = {}
    for path, module in nnx.iter_modules(model):
        for leaf, variable in vars(module).items():
            if isinstance(variable, nnx.Variable) and variable.ndim:
                array = np.asarray(jax.device_get(variable.get_value()))
                space = range(array.ndim - 2)
                if array.ndim > 1:  # (*space, in, out) → (out, in, *space)
                    array = array.transpose(-1, -2, *space)
                found[".".join(map(str, (*path, leaves.get(leaf, leaf))))] = array
    return found


def compile(model: ResNet, engine: Engine = "xla") -> Compiled:
    """Returns a function of images that computes what the network does, fast.

    It is fused and compiled, on a CPU with Winograd's convolutions and the faster
    settings of XLA. Later changes of the network are not its own.

    Args:
        model: a network of this package, not fused; it stays as it is.
        engine: ``"xla"``, JAX's own compiler; ``"onnxruntime"`` or ``"openvino"``,
            which run the same weights as an ONNX graph, in float32 on a CPU (extra
            ``engines``; not inside of ``jax.jit``); ``"auto"``: for each shape of
            images the fastest of those installed, by a trial of some seconds whose
            result is remembered in the user's cache. It is to be asked for: the engines
            round differently, and which is the fastest is not the same everywhere.

    Raises:
        ModuleNotFoundError: the engine is not installed.
        ValueError: the network is none, or is fused already, or not one that the engine
            takes, or there is no such engine.
    """
    return Compiled(model, engine)
