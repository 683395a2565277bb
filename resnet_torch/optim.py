"""How the network learns, on PyTorch's side: loss, optimiser, one step.

The mirror of ``resnet_flax/optim.py``: both take the same step.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from resnet_spec import OptimizerConfig
from resnet_torch.resnet import ResNet

_KINDS: dict[str, Any] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
}


def cross_entropy(
    logits: Float[Tensor, "n *1 k"],
    labels: Int[Tensor, " n"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """The mean over the batch of the labels' negative log-probabilities.

    Smoothing is torch's: the target has ``label_smoothing / k`` in every class, and the
    rest in the label's (Szegedy et al. 2015, arXiv 1512.00567, section 7). Half types
    are computed, and returned, in float32.

    Args:
        logits: one score per class, (n, k) or as a signal head returns them.
        labels: classes from 0 to k - 1. Another one raises IndexError on a CPU and
            stops the program on a GPU.
        label_smoothing: from 0 to 1.

    Raises:
        ValueError: the shapes do not belong together, or the labels are no integers.
    """
    n, *rest = logits.shape
    if prod(rest) != max(rest, default=0) or labels.shape != (n,):
        raise ValueError(
            f"the logits have shape {tuple(logits.shape)}, the labels "
            f"{tuple(labels.shape)}; they must be (n, k) and (n,): n images, k classes"
        )
    if labels.is_floating_point():
        raise ValueError(f"the labels are {labels.dtype}; they must be integers")
    logits = logits.reshape(n, -1)
    if logits.dtype.itemsize < 4:
        logits = logits.float()
    return nn.functional.cross_entropy(
        logits,
        labels.long(),
        ignore_index=-(2**63),  # none: torch's own, -100, would pass as a label
        label_smoothing=label_smoothing,
    )


def create_optimizer(
    model: nn.Module, config: OptimizerConfig
) -> torch.optim.Optimizer:
    """Makes the optimiser of a model's parameters, at its first step.

    The learning rate follows the schedule by itself. Whoever saves the optimiser's
    state and loads it into a new one goes on where that one was.

    Args:
        model: whose parameters it will change.
        config: which optimiser, with which settings.
    """
    schedule = config.schedule
    optimizer = _KINDS[config.kind](
        model.parameters(), lr=schedule.at(0), **config.settings
    )
    for group in optimizer.param_groups:
        group["steps"] = 0  # in the group, so that state_dict() has it

    def advance(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            group["steps"] += 1
            group["lr"] = schedule.at(group["steps"])

    optimizer.register_step_post_hook(advance)
    return optimizer


def train_step(
    model: ResNet,
    optimizer: torch.optim.Optimizer,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    *,
    label_smoothing: float = 0.0,
    loss_scale: float = 1.0,
) -> Float[Tensor, ""]:
    """Learns from one batch; returns the loss before the step.

    Whether batch normalisation uses and notes the batch's statistics is up to the
    caller, by ``model.train()``.

    Args:
        model: changed in place.
        optimizer: from :func:`create_optimizer`; changed in place.
        images: one batch.
        labels: its classes.
        label_smoothing: as for :func:`cross_entropy`.
        loss_scale: times the loss that is differentiated, not the one returned.
    """
    optimizer.zero_grad(set_to_none=True)
    loss = cross_entropy(model(images), labels, label_smoothing=label_smoothing)
    (loss * loss_scale).backward()
    optimizer.step()
    return loss.detach()
