"""A network made ready for inference, by what was measured to be the fastest.

The mirror of ``resnet_flax/compiling.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from resnet_torch.fusing import fuse
from resnet_torch.resnet import ResNet

Engine = Literal["inductor", "onnxruntime", "openvino", "auto"]
"""What runs a network: torch's own compiler, others', or the fastest of them."""


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

    def __init__(self, model: ResNet, engine: Engine = "inductor") -> None:
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

    def __call__(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n ..."]:
        """Computes what the network does in evaluation mode.

        Args:
            x: images; of every new shape the first take as long as compiling does.

        Raises:
            ValueError: it is no batch of images that this network takes.
        """
        self.model._check(x)
        with torch.no_grad():
            return self._run(x)

    def _made(self, engine: str) -> Callable[[Tensor], Tensor]:
        return _inductor(self.model) if engine == "inductor" else self._other(engine)

    def _other(self, engine: str) -> Callable[[Tensor], Tensor]:
        """Makes an engine of others ready, by the network's graph."""
        if problem := _misfit(self.model):
            raise ValueError(f"engine {engine!r} {problem}")
        from resnet_onnx import graph
        from resnet_onnx.engines import load

        state = {name: t.numpy() for name, t in self.model.state_dict().items()}
        made = graph(self.model.config, state)
        run = load(made, engine, threads=torch.get_num_threads())
        return lambda x: torch.from_numpy(run(x.contiguous().numpy()))

    def _fastest(self) -> Callable[[Tensor], Tensor]:
        """Makes what tries the engines that are here, for each shape of images."""
        if _misfit(self.model) or find_spec("onnx") is None:
            return self._made("inductor")
        from resnet_onnx.engines import installed
        from resnet_onnx.trials import Trials

        names = ("inductor", *installed())
        engines = {name: partial(self._made, name) for name in names}
        config = self.model.config.as_function().to_json()
        about = {"twin": "torch", "config": config, "threads": torch.get_num_threads()}
        trials = Trials(engines, about)
        self.trials = trials.found
        return trials


def _inductor(model: ResNet) -> Callable[[Tensor], Tensor]:
    """Makes torch's own compiler ready, which takes the network's layout from it."""
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    device = next(model.parameters()).device
    # Weights become constants of the program; only then are they laid out for it.
    options: Any = {"freezing": True} if device.type == "cpu" else None
    run = torch.compile(model, dynamic=False, options=options)
    return lambda x: run(x.contiguous(memory_format=torch.channels_last))


def _misfit(model: ResNet) -> str:
    """Says why engines of others do not take a network; empty if they do."""
    if model.config.out_indices is not None:
        return "takes a network of one result; this one returns a list of maps"
    weight = next(model.parameters())
    if weight.device.type == "cpu" and weight.dtype == torch.float32:
        return ""
    return f"takes float32 on a CPU; the network is {weight.dtype} on {weight.device}"


def compile(model: ResNet, engine: Engine = "inductor") -> Compiled:
    """Returns a function of images that computes what the network does, fast.

    It is fused and compiled, on a CPU with constant weights, everywhere with channels
    last. Later changes of the network are not its own.

    Args:
        model: a network of this package, not fused; it stays as it is.
        engine: ``"inductor"``, torch's own compiler; ``"onnxruntime"`` or
            ``"openvino"``, which run the same weights as an ONNX graph, in float32 on a
            CPU (extra ``engines``); ``"auto"``: for each shape of images the fastest of
            those installed, by a trial of some seconds whose result is remembered in
            the user's cache. It is to be asked for: the engines round differently, and
            which is the fastest is not the same everywhere.

    Raises:
        ModuleNotFoundError: the engine is not installed.
        ValueError: the network is none, or is fused already, or not one that the engine
            takes, or there is no such engine.
    """
    return Compiled(model, engine)
