"""Norms in torch: which there are, and what their sums may lose."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from parity.running.norms import Lost, Norm
from parity.weights.torch_state import to_numpy


class Lossy(torch.autograd.Function):
    """A norm's output and its input's gradient, moved by what sums may lose."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, of_y: Tensor, of_x: Tensor) -> Tensor:
        """Returns the output, moved."""
        ctx.save_for_backward(of_x)
        return y + of_y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Returns the gradient by the output, and what is lost of that by the input."""
        return gradients[0], ctx.saved_tensors[0], None, None


def lossy(y: Tensor, x: Tensor, lost: Lost, unit: float) -> Tensor:
    """Returns a norm's output as it is where its sums lose so much.

    Args:
        y: what it gives.
        x: what it is given.
        lost: by its sums, in roundoffs.
        unit: one roundoff.
    """
    parts = lost.of(to_numpy(x))
    moved = (torch.from_numpy(unit * part).to(x.device) for part in parts)
    return Lossy.apply(y, x, *moved)  # type: ignore[return-value]


def paths(model: nn.Module) -> Iterator[str]:
    """Yields where a model's norms are, others' own too, which are known by name."""
    for path, module in model.named_modules():
        known = isinstance(module, _NormBase | nn.GroupNorm | nn.LayerNorm | nn.RMSNorm)
        weight = getattr(module, "weight", None)
        named = any("norm" in cls.__name__.lower() for cls in type(module).__mro__)
        if known or (named and isinstance(weight, Tensor) and weight.ndim == 1):
            yield path


def norms(model: nn.Module) -> Iterator[tuple[str, Norm]]:
    """Yields the norms of a model that sum over maps, by path."""
    for path, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            yield path, Norm(None, module.eps)
        elif isinstance(module, nn.GroupNorm):
            yield path, Norm(module.num_groups, module.eps)
        elif isinstance(module, _InstanceNorm):
            yield path, Norm(module.num_features, module.eps)
