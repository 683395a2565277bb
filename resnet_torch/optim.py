"""How the network learns, on PyTorch's side: loss, optimiser, one step.

The mirror of ``resnet_flax/optim.py``: both take the same step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from math import prod
from typing import Any, Literal

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from resnet_spec import OptimizerConfig
from resnet_torch.resnet import ResNet

Loss = Literal["cross-entropy", "bce"]


def cross_entropy(
    logits: Float[Tensor, "n *1 k"],
    labels: Num[Tensor, " n *k"],
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
            stops the program on a GPU. Or the classes' shares, (n, k), as mixup has
            them.
        label_smoothing: from 0 to 1.

    Raises:
        ValueError: the shapes do not belong together, or the labels are no integers.
    """
    logits = _scores(logits, labels)
    return nn.functional.cross_entropy(
        logits,
        labels.to(logits.dtype) if labels.ndim == 2 else labels.long(),
        # None is ignored: torch's own, -100, would pass as a label.
        ignore_index=-(2**63) if labels.ndim == 1 else -100,
        label_smoothing=label_smoothing,
    )


def binary_cross_entropy(
    logits: Float[Tensor, "n *1 k"],
    labels: Num[Tensor, " n *k"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """The mean over batch and classes of each class's own yes or no.

    As in Wightman et al. 2021, arXiv 2110.00476, section 3.1; the arguments are those
    of :func:`cross_entropy`.
    """
    logits = _scores(logits, labels)
    classes = logits.shape[1]
    if labels.ndim == 1:
        labels = nn.functional.one_hot(labels.long(), classes)
    labels = labels.to(logits.dtype)
    targets = (1 - label_smoothing) * labels + label_smoothing / classes
    return nn.functional.binary_cross_entropy_with_logits(logits, targets)


def undecayed(model: nn.Module, config: OptimizerConfig) -> set[str]:
    """Names the parameters that do not decay.

    Args:
        model: whose parameters they are.
        config: with ``no_decay``.
    """
    names = set()
    for path, module in model.named_modules():
        norm = isinstance(module, NORMS)
        for name, _ in module.named_parameters(path, recurse=False):
            bias = name.rpartition(".")[2] == "bias"
            group = "norm" if norm else "bias" if bias else "kernel"
            if group in config.no_decay:
                names.add(name)
    return names


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
    schedule, parameters = config.schedule, dict(model.named_parameters())
    without = undecayed(model, config)
    groups = [{"params": [p for n, p in parameters.items() if n not in without]}]
    if without:
        rest = [parameters[name] for name in parameters if name in without]
        groups.append({"params": rest, "weight_decay": 0.0})  # type: ignore[dict-item]
    optimizer = _KINDS[config.kind](groups, lr=schedule.at(0), **config.settings)
    for group in optimizer.param_groups:
        group["steps"] = 0  # in the group, so that state_dict() has it

    def clip(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        nn.utils.clip_grad_norm_(parameters.values(), config.clip_norm or 0.0)

    def advance(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            group["steps"] += 1
            group["lr"] = schedule.at(group["steps"])

    if config.clip_norm is not None:
        optimizer.register_step_pre_hook(clip)
    optimizer.register_step_post_hook(advance)
    return optimizer


def train_step(
    model: ResNet,
    optimizer: torch.optim.Optimizer,
    images: Float[Tensor, "n c h w"],
    labels: Num[Tensor, " n *k"],
    *,
    loss: Loss = "cross-entropy",
    label_smoothing: float = 0.0,
    loss_scale: float = 1.0,
    accumulate: int = 1,
) -> Float[Tensor, ""]:
    """Learns from one batch; returns the loss before the step.

    Whether batch normalisation uses and notes the batch's statistics is up to the
    caller, by ``model.train()``.

    Args:
        model: changed in place.
        optimizer: from :func:`create_optimizer`; changed in place.
        images: one batch.
        labels: its classes, or their shares.
        loss: ``"cross-entropy"`` or ``"bce"``, :func:`binary_cross_entropy`.
        label_smoothing: as for :func:`cross_entropy`.
        loss_scale: times the loss that is differentiated, not the one returned.
        accumulate: parts that the batch is computed in, one behind the other, for one
            step by the mean of their gradients. The norm notes each.
    """
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=images.device)
    parts = zip(images.chunk(accumulate), labels.chunk(accumulate), strict=True)
    for left, (some, theirs) in zip(range(accumulate)[::-1], parts, strict=True):
        # On several devices the last part's backward pass takes the mean of all.
        alone = getattr(model, "no_sync", nullcontext) if left else nullcontext
        with alone():
            value = LOSSES[loss](model(some), theirs, label_smoothing=label_smoothing)
            (value * (loss_scale / accumulate)).backward()
        total = value.detach() + total.to(value.dtype)
    optimizer.step()
    return total / accumulate


NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)

LOSSES: dict[str, Callable[..., Float[Tensor, ""]]] = {
    "cross-entropy": cross_entropy,
    "bce": binary_cross_entropy,
}


class Lamb(torch.optim.Optimizer):
    """Adam whose step has a length for each parameter: that of the parameter itself.

    Its groups count their steps in ``"steps"``, as :func:`create_optimizer` sees to.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        settings = {"betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {"lr": lr, **settings})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Takes one step."""
        for group in self.param_groups:
            (b1, b2), decay = group["betas"], group["weight_decay"]
            count = group["steps"] + 1
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                    state["exp_avg_sq"] = torch.zeros_like(p)
                mean, square = state["exp_avg"], state["exp_avg_sq"]
                mean.mul_(b1).add_(p.grad, alpha=1 - b1)
                square.mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
                root = (square / (1 - b2**count)).sqrt_().add_(group["eps"])
                step = (mean / (1 - b1**count)).div_(root)
                if decay:
                    step = step.add_(p, alpha=decay)
                    ours, its = p.norm(), step.norm()
                    ratio = torch.where((ours > 0) & (its > 0), ours / its, 1.0)
                    step = step.mul_(ratio)
                p.sub_(step, alpha=group["lr"])


_KINDS: dict[str, Any] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "lamb": Lamb,
}


def _scores(
    logits: Float[Tensor, "n *1 k"], labels: Num[Tensor, " n *k"]
) -> Float[Tensor, "n k"]:
    """Returns the logits as (n, k), in float32 at least, if the labels fit them."""
    n, *rest = logits.shape
    classes = max(rest, default=0)
    if prod(rest) != classes or labels.shape not in ((n,), (n, classes)):
        raise ValueError(
            f"the logits have shape {tuple(logits.shape)}, the labels "
            f"{tuple(labels.shape)}; they must be (n, k) and (n,): n images, k classes"
        )
    if labels.is_floating_point() != (labels.ndim == 2):
        kind = "integers" if labels.ndim == 1 else "shares, floating-point numbers"
        raise ValueError(f"the labels are {labels.dtype}; they must be {kind}")
    logits = logits.reshape(n, -1)
    return logits.float() if logits.dtype.itemsize < 4 else logits
