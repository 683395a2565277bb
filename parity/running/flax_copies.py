"""Copies of a Flax NNX module, to be run. ``torch_copies`` has the same for torch."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn import attention

from parity.running.dropping import dropping
from parity.running.taps import blamed
from parity.weights.flax_state import NO_ALIASES, Aliases, is_float, modules


def duplicate(
    model: nnx.Module,
    *,
    training: bool = False,
    float64: bool = False,
    fixed: Collection[str] = (),
    aliases: Aliases = NO_ALIASES,
) -> nnx.Module:
    """Returns a copy in training or evaluation mode, raised to float64 where asked.

    A copy in float64 computes in JAX's x64 mode only.

    Args:
        model: that is copied.
        training: which mode it shall have.
        float64: whether it is raised.
        fixed: paths in torch of what stays in evaluation mode, where it is in it; and
            so does what is in it although something else is in training mode.
        aliases: the names of its modules in torch.

    Raises:
        ModuleError: it cannot be copied.
    """
    with blamed():
        graph, tree = nnx.split(model)
        # Mapped in either case: nnx.merge would share the variables with the original.
        tree = jax.tree.map(_raised if float64 else lambda value: value, tree)
        twin = nnx.merge(graph, tree)
        _unfreeze(twin)
        modes = {
            flag: {
                path: getattr(module, flag)
                for path, module in modules(twin, aliases=aliases)
                if isinstance(getattr(module, flag, None), bool)
            }
            for flag in ("use_running_average", "deterministic")
        }
        twin.train() if training else twin.eval()
    if training:  # what is random cannot be compared; the gates say so
        for _, module, attribute in list(
            dropping(modules(twin, aliases=aliases), DROPPING)
        ):
            setattr(module, attribute, 0.0)
    for path, module in modules(twin, aliases=aliases):
        for flag, at in modes.items():
            mixed = False in at.values()
            if at.get(path) and (mixed or any(_within(path, it) for it in fixed)):
                setattr(module, flag, True)
        if float64 and getattr(module, "dtype", None) is not None:
            cast(Any, module).dtype = jnp.float64
        if float64 and vars(module).get("attention_fn") is nnx.dot_product_attention:
            cast(Any, module).attention_fn = _attention
    return twin


def _attention(
    query: jax.Array, key: jax.Array, value: jax.Array, *args: Any, **named: Any
) -> jax.Array:
    """Does what nnx's own does, whose softmax is in float32 whatever it is given."""
    bias, mask, *_ = (*args, named.get("bias"), named.get("mask"))
    if named.get("is_causal"):
        return nnx.dot_product_attention(query, key, value, *args, **named)
    weights = attention.dot_product_attention_weights(query, key, bias, mask)
    return jnp.einsum("...hqk,...khd->...qhd", weights, value)


DROPPING = {
    "Dropout": "rate",
    "MultiHeadAttention": "dropout_rate",
    "StochasticDepth": "rate",
    "DropPath": "drop_prob",
    "DropBlock2d": "drop_prob",
}
"""Class → attribute with the share that it drops."""


def random(model: nnx.Module, *, aliases: Aliases = NO_ALIASES) -> dict[str, float]:
    """Lists what drops at random in training mode: path → rate."""
    found = dropping(modules(model, aliases=aliases), DROPPING)
    return {path: getattr(module, attribute) for path, module, attribute in found}


def _unfreeze(model: nnx.Module) -> None:
    """Lets every parameter have a gradient, also those of a twin that is frozen."""
    for _, module in modules(model):
        for name, value in list(vars(module).items()):
            if type(value).__name__ == FROZEN:
                setattr(module, name, nnx.Param(cast(Any, value).get_value()))


FROZEN = "Frozen"
"""Name of the class of ``resnet_flax``'s variables that do not learn."""


def _within(path: str, other: str) -> bool:
    return f"{path}.".startswith(f"{other}.")


def _raised(value: Any) -> Any:
    if not is_float(value.dtype):
        return value
    with jax.enable_x64(True):
        return jax.device_put(jax.device_get(value).astype(np.float64))
