"""Batch normalisation whose statistics are those of a batch on several processes.

Flax needs nothing of the kind: where a batch lies on several devices of one mesh, XLA
takes the mean over all of it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn


class GlobalBatchNorm2d(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation by the statistics of all processes' images.

    ``nn.SyncBatchNorm`` refuses CPUs. The state is that of ``nn.BatchNorm2d``; every
    process must have as many images as the others.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim != 4:
            raise ValueError(f"got shape {tuple(input.shape)}; it takes (n, c, h, w)")

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Normalises; in training mode by the statistics of all, noting them.

        Raises:
            ValueError: in training mode all have only one value per channel.
        """
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        count = input.numel() // input.shape[1] * dist.get_world_size()
        if count < 2:
            raise ValueError(
                f"batch normalisation in training mode got shape {tuple(input.shape)} "
                "and no more elsewhere: it needs more than one value per channel. Use "
                "a larger batch, or eval()"
            )
        normal, mean, var = _Normal.apply(
            *(input, self.weight, self.bias, self.eps, count)
        )
        with torch.no_grad():
            self._track(self.running_mean, mean)
            self._track(self.running_var, var * (count / (count - 1)))
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        return normal

    def _track(self, running: Tensor | None, batch: Tensor) -> None:
        if running is not None:
            running.lerp_(batch.to(running.dtype), self.momentum or 0.0)


def with_global_statistics(model: nn.Module) -> None:
    """Lets every norm of a network take the statistics of all processes, in place.

    Args:
        model: whose parameters and names stay as they are.
    """
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            # Another forward pass of the same layer: nothing else is to be carried.
            module.__class__ = GlobalBatchNorm2d  # type: ignore[assignment]  a sibling


class _Normal(torch.autograd.Function):
    """Statistics, and what they normalise. Two passes: E[x²] - E[x]² loses digits."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, count: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Half types are computed in float32, as torch's own norm does.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = _total(wide.sum((0, 2, 3))) / count
        centred = wide - _of_channels(mean)
        var = _total(centred.square().sum((0, 2, 3))) / count
        inverse = 1 / torch.sqrt(var + eps)
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.mark_non_differentiable(mean, var)
        ctx.count = count
        normal = centred * _of_channels(inverse * weight) + _of_channels(bias)
        return normal.to(x.dtype), mean, var

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse = ctx.saved_tensors
        gradient = gradients[0].to(inverse.dtype)
        normal = (x - _of_channels(mean)) * _of_channels(inverse)
        of_bias = gradient.sum((0, 2, 3))
        of_weight = (gradient * normal).sum((0, 2, 3))
        # Through the statistics each image has moved all other processes' losses too.
        by_mean, by_scale = _total(torch.stack([of_bias, of_weight])) / ctx.count
        rest = _of_channels(by_mean) + normal * _of_channels(by_scale)
        of_x = (gradient - rest) * _of_channels(inverse * weight)
        own = (of_weight.to(weight.dtype), of_bias.to(weight.dtype))
        return of_x.to(x.dtype), *own, None, None


def _total(values: Tensor) -> Tensor:
    """Adds up what each process has, in place."""
    dist.all_reduce(values)
    return values


def _of_channels(values: Float[Tensor, " c"]) -> Float[Tensor, "c 1 1"]:
    return values[:, None, None]
