"""A ResNet in Flax Linen with the names and the padding of two that are not on PyPI.

Flax's own ImageNet example and AlgoPerf's network differ in capitals, and in how the
pool is padded; both pad strided convolutions in blocks as XLA's SAME does.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

from resnet_spec import ResNetConfig

PADS = {"torch": ((1, 1), (1, 1)), "same": "SAME"}


def conv(features: int, size: int, stride: int = 1, **options: Any) -> linen.Conv:
    options = {"padding": "SAME", "use_bias": False} | options
    return linen.Conv(features, (size, size), (stride, stride), **options)


def norm(name: str | None = None) -> linen.BatchNorm:
    return linen.BatchNorm(use_running_average=True, epsilon=1e-5, name=name)


class ResNetBlock(linen.Module):
    width: int
    stride: int
    capitals: bool

    def body(self, x: jax.Array) -> jax.Array:
        x = linen.relu(norm()(conv(self.width, 3, self.stride)(x)))
        return norm()(conv(self.width, 3)(x))

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.body(x)
        if x.shape != y.shape:
            names = ("Conv_proj", "BatchNorm_proj")
            first, second = names if self.capitals else ("conv_proj", "norm_proj")
            x = conv(y.shape[-1], 1, self.stride, name=first)(x)
            x = norm(second)(x)
        return linen.relu(x + y)


class BottleneckResNetBlock(ResNetBlock):
    def body(self, x: jax.Array) -> jax.Array:
        x = linen.relu(norm()(conv(self.width, 1)(x)))
        x = linen.relu(norm()(conv(self.width, 3, self.stride)(x)))
        return norm()(conv(4 * self.width, 1)(x))


class Counted(linen.Module):
    config: ResNetConfig
    capitals: bool

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        names = ("Conv_init", "BatchNorm_init")
        first, second = names if self.capitals else ("conv_init", "bn_init")
        config = self.config
        x = conv(config.widths[0], 7, 2, padding=((3, 3), (3, 3)), name=first)(x)
        x = linen.relu(norm(second)(x))
        x = linen.max_pool(x, (3, 3), (2, 2), padding=PADS[config.pool_padding])
        basic = config.block == "basic"
        block = ResNetBlock if basic else BottleneckResNetBlock
        for stage, (layers, width) in enumerate(
            zip(config.layers, config.widths, strict=True)
        ):
            for index in range(layers):
                stride = 2 if stage > 0 and index == 0 else 1
                x = block(width, stride, self.capitals)(x)
        x = jnp.mean(x, axis=(1, 2))
        return linen.Dense(config.num_classes)(x)
