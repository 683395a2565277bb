"""The residual networks in Flax NNX, equal to ``resnet_torch`` weight for weight."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from resnet_flax.compiling import compile
from resnet_flax.filtering import winograd
from resnet_flax.fusing import fuse
from resnet_flax.layers import Layers
from resnet_flax.resnet import ResNet
from resnet_spec import ResNetConfig, __version__, resolve

__all__ = ["ResNet", "__version__", "compile", "create_model", "fuse", "winograd"]


def create_model(
    name_or_config: str | ResNetConfig,
    *,
    rngs: nnx.Rngs | int | jax.Array,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    **overrides: Any,
) -> ResNet:
    """Builds a network with random weights, in training mode.

    The network takes images of shape (n, h, w, in_channels) and has torchvision's
    attribute names, so that the path of a layer is the prefix of its torch keys.

    Args:
        name_or_config: a name from ``resnet_spec.list_models()``, or a configuration.
        rngs: source of the random weights; one key is taken, whatever the network. A
            seed or a key stands for an ``nnx.Rngs`` of it. The draw is numpy's, and the
            same under ``nnx.jit`` and ``nnx.vmap``.
        dtype: what the network computes in; inferred from input and parameters if
            ``None``.
        param_dtype: what the parameters and the running statistics are stored in.
        **overrides: fields of the configuration to change, such as ``num_classes``;
            ``output_stride`` and ``features_only`` as in ``ResNetConfig.replace``.

    Raises:
        ValueError: the name, a field or its value is not known or not allowed, or a
            dtype is float64 and JAX's x64 mode is off, or has no fractions.
    """
    config = resolve(name_or_config, **overrides)
    for wanted in (dtype, param_dtype):
        if wanted is not None and not jnp.issubdtype(wanted, jnp.floating):
            raise ValueError(f"dtype is {wanted!r}; it must be one such as jnp.float32")
        # JAX would go on in float32 with a warning.
        if wanted is not None and jax.dtypes.canonicalize_dtype(wanted) != wanted:
            raise ValueError(
                f"{jnp.dtype(wanted)} needs JAX's x64 mode. Set JAX_ENABLE_X64=1, or "
                'call jax.config.update("jax_enable_x64", True) before anything else'
            )
    return ResNet(
        Layers(config=config, rngs=rngs, dtype=dtype, param_dtype=param_dtype)
    )
