"""How the network learns, on Flax NNX's side: loss, optimiser, one step.

The mirror of ``resnet_torch/optim.py``: both take the same step.
"""

from __future__ import annotations

from math import log, pi, prod
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from resnet_flax.resnet import ResNet
from resnet_spec import OptimizerConfig, Schedule


def cross_entropy(
    logits: Float[Array, "n *1 k"],
    labels: Int[Array, " n"],
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
            cannot raise.
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
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"the labels are {labels.dtype}; they must be integers")
    logits = logits.reshape(n, -1)
    if logits.dtype.itemsize < 4:
        logits = logits.astype(jnp.float32)
    log_p = jax.nn.log_softmax(logits)
    of_label = log_p.at[jnp.arange(n), labels].get(
        mode="fill", fill_value=jnp.nan, wrap_negative_indices=False
    )
    smooth = label_smoothing * log_p.mean(1)
    return -((1 - label_smoothing) * of_label + smooth).mean()


def create_optimizer(model: nnx.Module, config: OptimizerConfig) -> nnx.Optimizer[Any]:
    """Makes the optimiser of a model's parameters, at its first step.

    The learning rate follows the schedule by itself. Whoever saves the optimiser's
    state and loads it into a new one goes on where that one was.

    Args:
        model: whose parameters it will change.
        config: which optimiser, with which settings.
    """
    return nnx.Optimizer(model, _transformation(config), wrt=nnx.Param)


def train_step(
    model: ResNet,
    optimizer: nnx.Optimizer[Any],
    images: Float[Array, "n h w c"],
    labels: Int[Array, " n"],
    *,
    label_smoothing: float = 0.0,
    loss_scale: float = 1.0,
) -> Float[Array, ""]:
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

    def loss_of(model: ResNet) -> tuple[Float[Array, ""], Float[Array, ""]]:
        loss = cross_entropy(model(images), labels, label_smoothing=label_smoothing)
        return loss * loss_scale, loss

    (_, loss), gradients = nnx.value_and_grad(loss_of, has_aux=True)(model)
    optimizer.update(model, gradients)
    return loss


def _transformation(config: OptimizerConfig) -> optax.GradientTransformation:
    # Not optax.sgd, adamw, rmsprop: their decay, eps or momentum stand elsewhere.
    decay = optax.add_decayed_weights(config.settings["weight_decay"])
    rules: list[optax.GradientTransformation] = []
    if config.kind in ("adam", "adamw"):
        rules.append(_scale_by_adam(*config.betas, config.eps))
    if config.kind == "rmsprop":
        scale = optax.scale_by_stddev if config.centered else optax.scale_by_rms
        rules.append(scale(decay=config.alpha, eps=config.eps, eps_in_sqrt=False))
    if config.momentum:
        rules.append(optax.trace(config.momentum, config.nesterov))
    # Into the gradient, and so into its means and its momentum; adamw's goes past them.
    rules.insert(len(rules) if config.kind == "adamw" else 0, decay)
    return optax.chain(
        *rules,
        optax.scale_by_learning_rate(
            lambda step: _rate(config.schedule, jnp.asarray(step))
        ),
    )


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
    if schedule.total_steps is not None:
        left = (schedule.total_steps - step).astype(float) / schedule.cosine_steps
        rate = end + (start - end) * jnp.sin(pi / 2 * left) ** 2
    if schedule.warmup_steps:
        rise = step.astype(float) / schedule.warmup_steps
        low = schedule.warmup_factor
        rate = jnp.where(since < 0, start * (low + (1 - low) * rise), rate)
    return rate
