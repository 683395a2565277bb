"""Split attention with a fault each, for ``resnet_flax``'s own."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from parity.mutants.blocks import beside
from resnet_flax.attention import SplitAttention
from resnet_flax.blocks import Bottleneck
from resnet_flax.layers import AvgPool2d, Shares, joined, split


class SigmoidForShares(Shares):
    """Weighs each split by itself, in the order of splits all the same."""

    def __call__(self, x: Array) -> Array:
        """Computes it."""
        n, *_, channels = x.shape
        y = nnx.sigmoid(x.reshape(n, self.groups, self.radix, -1))
        return y.transpose(0, 2, 1, 3).reshape(n, 1, 1, channels)


class GroupsInSplits(Shares):
    """Takes the channels for splits of groups, as they will be."""

    def __call__(self, x: Array) -> Array:
        """Computes it."""
        y = nnx.softmax(x.reshape(x.shape[0], self.radix, self.groups, -1), axis=1)
        return y.reshape(x.shape)


class WithoutWeights(SplitAttention):
    """Adds the splits as they are."""

    def __call__(self, x: Array) -> Array:
        """Convolves."""
        return joined(split(self.relu(self.bn0(self.conv(x))), self.radix))


class AveragedBefore(Bottleneck):
    """Halves the map before its 3x3 convolution."""

    def __call__(self, x: Array) -> Array:
        """Computes the block."""
        out: Any = self.relu(self.bn1(self.conv1(x)))
        assert self.aa is not None
        out = self.bn3(self.conv3(self.conv2(self.aa(out))))
        return self.relu(out + beside(self, x))


class WithoutZeros(AvgPool2d):
    """Divides by the pixels that there are."""

    def __call__(self, x: Array) -> Array:
        """Pools."""
        return super().__call__(x) / super().__call__(jnp.ones_like(x))
