"""Faults of weights on their way into the Flax twin; what it computes is right."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from parity.mutants.mutant import Change, Mutant, both, exchange, rewrite
from parity.weights.flax_state import is_float, variables

_GATES = ("G0", "G1 isolated", "G1")


def _through(dtype: str, wanted: str = "") -> Change:
    def rounded(value: jax.Array) -> jax.Array:
        if not is_float(value.dtype):
            return value
        return value.astype(dtype).astype(value.dtype)

    return rewrite(wanted, rounded)


def _untransposed(value: jax.Array) -> jax.Array:
    """What torch's memory is, read in Flax's shape."""
    torch = value.transpose(value.ndim - 1, value.ndim - 2, *range(value.ndim - 2))
    return torch.reshape(value.shape)


def _permuted(value: jax.Array) -> jax.Array:
    return jnp.roll(value, value.shape[-1] // 2, axis=-1)


def _all(leaf: str, function: Any) -> Change:
    def change(model: Any) -> None:
        for _, found, variable in variables(model):
            value = variable.get_value()
            if found == leaf and value.ndim == 4:
                variable.set_value(function(value))

    return change


WEIGHTS = (
    Mutant(
        number=18,
        name="two layers' BN statistics swapped on the way",
        gates=_GATES,
        culprit="layer1.0.bn1.running_mean",
        apply=both(
            exchange("layer1.0.bn1.running_mean", "layer1.0.bn2.running_mean"),
            exchange("layer1.0.bn1.running_var", "layer1.0.bn2.running_var"),
        ),
    ),
    Mutant(
        number=39,
        name="weights through bf16",
        gates=_GATES,
        culprit="conv1.weight",
        apply=_through("bfloat16"),
    ),
    Mutant(
        number=40,
        name="weights through fp16",
        gates=_GATES,
        culprit="conv1.weight",
        apply=_through("float16"),
    ),
    Mutant(
        number=41,
        name="one layer through bf16",
        gates=_GATES,
        culprit="layer2.0.conv2.weight",
        apply=_through("bfloat16", "layer2.0.conv2.weight"),
    ),
    Mutant(
        number=42,
        name="one tensor ×(1+1e-6)",
        gates=_GATES,
        culprit="layer1.0.conv1.weight",
        apply=rewrite("layer1.0.conv1.weight", lambda value: value * (1 + 1e-6)),
    ),
    Mutant(
        number=62,
        name="transpose of the kernels dropped",
        gates=_GATES,
        culprit="conv1.weight",
        apply=_all("kernel", _untransposed),
    ),
    Mutant(
        number=63,
        name="mean/var exchanged on the way",
        gates=_GATES,
        culprit="bn1.running_mean",
        apply=exchange("bn1.running_mean", "bn1.running_var"),
    ),
    Mutant(
        number=64,
        name="one key skipped",
        gates=_GATES,
        culprit="layer2.0.bn1.weight",
        apply=rewrite("layer2.0.bn1.weight", jnp.ones_like),
    ),
    Mutant(
        number=65,
        name="fc transposed with a square head",
        gates=_GATES,
        culprit="fc.weight",
        network="square",
        apply=rewrite("fc.weight", jnp.transpose),
    ),
    Mutant(
        number=66,
        name="groups permuted on the way",
        gates=_GATES,
        culprit="layer1.0.conv2.weight",
        network="bottleneck",
        apply=rewrite("layer1.0.conv2.weight", _permuted),
    ),
    Mutant(
        number=67,
        name="num_batches_tracked lost",
        gates=("G0", "G1 training isolated"),
        culprit="bn1.num_batches_tracked",
        apply=rewrite("num_batches_tracked", jnp.zeros_like),
    ),
)
"""Mutants of weights: the first gate, which knows no tolerance, kills them all."""
