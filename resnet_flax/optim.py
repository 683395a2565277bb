"""How the network learns, on Flax NNX's side: loss, optimiser, one step.

The mirror of ``resnet_torch/optim.py``: both take the same step.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log, pi, prod
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from resnet_flax.norm import GroupNorm
from resnet_flax.resnet import ResNet
from resnet_spec import OptimizerConfig, Schedule

Loss = Literal["cross-entropy", "bce"]


def cross_entropy(
    logits: Float[Array, "n *1 k"],
    labels: Num[Array, " n *k"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """The mean over the batch of the labels' negative log-probabilities.

    Smoothing is torch's: the target has ``label_smoothing / k`` in every class, and the
    rest in the label's (Szegedy et al. 2015, arXiv 1512.00567, section 7). Half types
    are computed, and returned, in float32.

    Args:
        logits: one score per class, (n, k) or as a signal head returns them.
        labels: classes from 0 to k - 1. Another one makes the loss NaN: compiled code
            cannot raise. Or the classes' shares, (n, k), as mixup has them.
        label_smoothing: from 0 to 1.

    Raises:
        ValueError: the shapes do not belong together, or the labels are no integers.
    """
    logits = _scores(logits, labels)
    n = len(logits)
    log_p = jax.nn.log_softmax(logits)
    if labels.ndim == 2:
        of_label = (log_p * labels.astype(logits.dtype)).sum(1)
    else:
        of_label = log_p.at[jnp.arange(n), labels].get(
            mode="fill", fill_value=jnp.nan, wrap_negative_indices=False
        )
    smooth = label_smoothing * log_p.mean(1)
    return -((1 - label_smoothing) * of_label + smooth).mean()


def binary_cross_entropy(
    logits: Float[Array, "n *1 k"],
    labels: Num[Array, " n *k"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """The mean over batch and classes of each class's own yes or no.

    As in Wightman et al. 2021, arXiv 2110.00476, section 3.1; the arguments are those
    of :func:`cross_entropy`.
    """
    logits = _scores(logits, labels)
    classes = logits.shape[1]
    if labels.ndim == 1:
        none = (labels < 0) | (labels >= classes)  # of which one_hot makes zeros
        labels = jax.nn.one_hot(labels, classes, dtype=logits.dtype)
        labels = jnp.where(none[:, None], jnp.nan, labels)
    labels = labels.astype(logits.dtype)
    targets = (1 - label_smoothing) * labels + label_smoothing / classes
    return optax.losses.sigmoid_binary_cross_entropy(logits, targets).mean()


def undecayed(model: nnx.Module, config: OptimizerConfig) -> set[str]:
    """Names the parameters that do not decay.

    Args:
        model: whose parameters they are.
        config: with ``no_decay``.
    """
    names = set()
    for path, module in nnx.iter_modules(model):
        norm = isinstance(module, NORMS)
        for name, value in vars(module).items():
            bias = name == "bias"
            if not isinstance(value, nnx.Param):
                continue
            group = "norm" if norm else "bias" if bias else "kernel"
            if group in config.no_decay:
                names.add(".".join(map(str, (*path, name))))
    return names


def create_optimizer(model: nnx.Module, config: OptimizerConfig) -> nnx.Optimizer[Any]:
    """Makes the optimiser of a model's parameters, at its first step.

    The learning rate follows the schedule by itself. Whoever saves the optimiser's
    state and loads it into a new one goes on where that one was.

    Args:
        model: whose parameters it will change.
        config: which optimiser, with which settings.
    """
    rules = _transformation(config, undecayed(model, config))
    return nnx.Optimizer(model, rules, wrt=nnx.Param)


def train_step(
    model: ResNet,
    optimizer: nnx.Optimizer[Any],
    images: Float[Array, "n h w c"],
    labels: Num[Array, " n *k"],
    *,
    loss: Loss = "cross-entropy",
    label_smoothing: float = 0.0,
    loss_scale: float = 1.0,
    accumulate: int = 1,
) -> Float[Array, ""]:
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

    def loss_of(
        model: ResNet, images: Float[Array, "n h w c"], labels: Num[Array, " n *k"]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        value = LOSSES[loss](model(images), labels, label_smoothing=label_smoothing)
        return value * loss_scale, value

    if accumulate == 1:
        differentiate = nnx.value_and_grad(loss_of, has_aux=True)
        (_, total), gradients = differentiate(model, images, labels)
        optimizer.update(model, gradients)
        return total

    def of_part(parameters: Any, rest: Any, part: Any) -> tuple[Any, Any]:
        # Variables that are made here may be written to here.
        rest = jax.tree.map(lambda x: x, rest)
        model = nnx.merge(graph, parameters, rest)
        scaled, value = loss_of(model, *part)
        return scaled, (value, nnx.state(model, nnx.Not(nnx.Param)))

    def add(carry: Any, part: Any) -> tuple[Any, None]:
        rest, gradients, total = carry
        differentiate = jax.value_and_grad(of_part, has_aux=True)
        (_, (value, rest)), more = differentiate(parameters, rest, part)
        return (rest, jax.tree.map(jnp.add, gradients, more), total + value), None

    # As a loop of the compiled program, which else would be so many times as long.
    graph, parameters, rest = nnx.split(model, nnx.Param, ...)
    parts = images, labels
    if images.ndim == 4:  # else they are parts already, each on all devices of a mesh
        parts = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), parts)
    none = jax.tree.map(jnp.zeros_like, parameters)
    zero = jnp.zeros((), images.dtype if images.dtype.itemsize > 4 else jnp.float32)
    (rest, gradients, total), _ = jax.lax.scan(add, (rest, none, zero), parts)
    nnx.update(model, rest)
    optimizer.update(model, jax.tree.map(lambda x: x / accumulate, gradients))
    return total / accumulate


NORMS = (nnx.BatchNorm, nnx.GroupNorm, nnx.LayerNorm, GroupNorm)

LOSSES: dict[str, Callable[..., Float[Array, ""]]] = {
    "cross-entropy": cross_entropy,
    "bce": binary_cross_entropy,
}


def _scores(
    logits: Float[Array, "n *1 k"], labels: Num[Array, " n *k"]
) -> Float[Array, "n k"]:
    """Returns the logits as (n, k), in float32 at least, if the labels fit them."""
    n, *rest = logits.shape
    classes = max(rest, default=0)
    if prod(rest) != classes or labels.shape not in ((n,), (n, classes)):
        raise ValueError(
            f"the logits have shape {tuple(logits.shape)}, the labels "
            f"{tuple(labels.shape)}; they must be (n, k) and (n,): n images, k classes"
        )
    if jnp.issubdtype(labels.dtype, jnp.floating) != (labels.ndim == 2):
        kind = "integers" if labels.ndim == 1 else "shares, floating-point numbers"
        raise ValueError(f"the labels are {labels.dtype}; they must be {kind}")
    logits = logits.reshape(n, -1)
    return logits.astype(jnp.float32) if logits.dtype.itemsize < 4 else logits


def _transformation(
    config: OptimizerConfig, without: set[str]
) -> optax.GradientTransformation:
    # Not optax.sgd, adamw, rmsprop: their decay, eps or momentum stand elsewhere.
    def decays(params: Any) -> Any:
        return jax.tree.map_with_path(
            lambda path, _: _name(path) not in without, params
        )

    mask = decays if without else None
    decay = optax.add_decayed_weights(config.settings["weight_decay"], mask)
    rules: list[optax.GradientTransformation] = []
    if config.kind in ("adam", "adamw", "lamb"):
        rules.append(_scale_by_adam(*config.betas, config.eps))
    if config.kind == "rmsprop":
        scale = optax.scale_by_stddev if config.centered else optax.scale_by_rms
        rules.append(scale(decay=config.alpha, eps=config.eps, eps_in_sqrt=False))
    if config.momentum:
        rules.append(optax.trace(config.momentum, config.nesterov))
    # Into the gradient, and so into its means and its momentum; adamw's goes past them.
    decoupled = config.kind in ("adamw", "lamb")
    rules.insert(len(rules) if decoupled else 0, decay)
    if config.kind == "lamb" and config.weight_decay:
        ratio = _scale_by_trust_ratio()
        rules.append(optax.masked(ratio, mask) if mask is not None else ratio)
    if config.clip_norm is not None:
        rules.insert(0, _clip(config.clip_norm))
    return optax.chain(
        *rules,
        optax.scale_by_learning_rate(
            lambda step: _rate(config.schedule, jnp.asarray(step))
        ),
    )


def _name(path: tuple[Any, ...]) -> str:
    """Returns a parameter's name, of its place in a tree of parameters."""
    return ".".join(str(key.key) for key in path if hasattr(key, "key"))


def _clip(most: float) -> optax.GradientTransformation:
    """``clip_grad_norm_``; optax's own has no 1e-6."""

    def clip(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        factor = jnp.minimum(most / (optax.tree.norm(updates) + 1e-6), 1.0)
        return jax.tree.map(lambda x: x * factor.astype(x.dtype), updates)

    return optax.stateless(clip)


def _scale_by_trust_ratio() -> optax.GradientTransformation:
    """Gives each step the length of its parameter."""

    def scale(step: Array, parameter: Array) -> Array:
        ours, its = jnp.linalg.norm(parameter.ravel()), jnp.linalg.norm(step.ravel())
        some = (ours > 0) & (its > 0)
        return step * jnp.where(some, ours / jnp.where(some, its, 1.0), 1.0)

    return optax.stateless(lambda steps, params: jax.tree.map(scale, steps, params))


def _scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """``optax.scale_by_adam`` whose bias correction keeps its digits in float32."""

    def init(params: optax.Params) -> optax.ScaleByAdamState:
        mean, square = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), mean, square)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        count = state.count + 1
        mean = optax.tree.update_moment(updates, state.mu, b1, 1)
        square = optax.tree.update_moment(updates, state.nu, b2, 2)
        full, full_square = _one_minus_power(b1, count), _one_minus_power(b2, count)

        def step(mean: Array, square: Array) -> Array:
            mean = mean / full.astype(mean.dtype)
            return mean / (jnp.sqrt(square / full_square.astype(mean.dtype)) + eps)

        updates = jax.tree.map(step, mean, square)
        return updates, optax.ScaleByAdamState(count, mean, square)

    return optax.GradientTransformation(init, update)


def _one_minus_power(base: float, exponent: Int[Array, ""]) -> Float[Array, ""]:
    # In float32, 1 - 0.999**t is wrong in the fifth digit while t is small.
    if base == 0:
        return jnp.ones((), float)
    return -jnp.expm1(exponent.astype(float) * log(base))


def _rate(schedule: Schedule, step: Int[Array, ""]) -> Float[Array, ""]:
    """``schedule.at(step)`` for a step that is traced."""
    start, end = schedule.learning_rate, schedule.end_learning_rate
    rate = jnp.full((), start, float)
    since = step - schedule.warmup_steps
    if schedule.step_size is not None:
        decays = since // schedule.step_size
        # Bit by bit: each factor is rounded once, where a power would lose digits.
        for bit in range(31):
            factor = schedule.gamma ** (2**bit)
            rate *= jnp.where((decays >> bit) % 2 == 1, factor, 1.0)
    for milestone in schedule.milestones:
        rate *= jnp.where(step >= milestone, schedule.gamma, 1.0)
    if schedule.total_steps is not None:
        left = (schedule.total_steps - step).astype(float) / schedule.decay_steps
        line = schedule.kind == "linear"
        part = jnp.maximum(left, 0.0) if line else jnp.sin(pi / 2 * left) ** 2
        rate = end + (start - end) * part
    if schedule.warmup_steps:
        rise = step.astype(float) / schedule.warmup_steps
        low = schedule.warmup_factor
        rate = jnp.where(since < 0, start * (low + (1 - low) * rise), rate)
    return rate
