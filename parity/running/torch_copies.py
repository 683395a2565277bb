"""Copies of a torch module, to be run. ``flax_copies`` has the same for Flax."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from parity.running.dropping import dropping
from parity.running.perturbing import moved, perturbed
from parity.running.taps import blamed, parts
from parity.weights.torch_state import to_numpy


def duplicate(
    model: nn.Module, *, training: bool = False, float64: bool = False
) -> nn.Module:
    """Returns a copy in training or evaluation mode, raised to float64 where asked.

    What is in evaluation mode although a module beside it is in training mode has been
    put so, and stays so.

    Raises:
        ModuleError: it cannot be copied.
    """
    fixed = [path for path, _ in fixed_modules(model)]
    with blamed():
        twin = _copied(model).train(training)
    for path in fixed:
        twin.get_submodule(path).eval()
    if training:  # what is random cannot be compared; the gates say so
        for _, module, attribute in list(dropping(twin.named_modules(), DROPPING)):
            setattr(module, attribute, 0.0)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        for hook in (ours._backward_hooks or {}).values():  # no copy has its tensors'
            theirs.register_hook(hook)
    return twin.double() if float64 else twin


def _copied(model: nn.Module) -> nn.Module:
    memo = _detached(model)
    try:
        return copy.deepcopy(model, dict(memo))
    except Exception:
        # It holds what cannot be copied, as locks and files: both have that.
        for module in model.modules():
            for value in vars(module).values():
                try:
                    copy.deepcopy(value, dict(memo))
                except Exception:
                    if not isinstance(value, dict) or value is not module._modules:
                        memo[id(value)] = value
        return copy.deepcopy(model, memo)


def _detached(model: nn.Module) -> dict[int, Any]:
    """Returns what a copy shall have for tensors that a graph hangs on."""
    return {
        id(tensor): tensor.detach().clone()
        for module in model.modules()
        for _, tensor in parts(vars(module), Tensor, "")
        if tensor.grad_fn is not None
    }


def fixed_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yields what is in evaluation mode beside a module in training mode."""
    for path, parent in model.named_modules():
        found = dict(parent.named_children())
        if parent.training and any(child.training for child in found.values()):
            for name, child in found.items():
                if not child.training:
                    yield f"{path}.{name}" if path else name, child


DROPPING = {
    "_DropoutNd": "p",
    "StochasticDepth": "p",
    "DropPath": "drop_prob",
    "DropBlock2d": "drop_prob",
    "MultiheadAttention": "dropout",
    "RNNBase": "dropout",
}
"""Class → attribute with the share that it drops; torch's, torchvision's and timm's."""


def random(model: nn.Module) -> dict[str, float]:
    """Lists what drops at random in training mode: path → rate."""
    found = dropping(model.named_modules(), DROPPING)
    return {path: getattr(module, attribute) for path, module, attribute in found}


def unfreeze(model: nn.Module) -> None:
    """Lets every parameter have a gradient."""
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())


def perturb(model: nn.Module, inputs: Any, draw: int) -> Any:
    """Moves the state of a float64 model, and inputs, by about one roundoff."""
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.from_numpy(perturbed(to_numpy(tensor), draw)))
    if not isinstance(inputs, Mapping):
        return perturbed(inputs, draw)
    return {name: moved(array, draw) for name, array in inputs.items()}
