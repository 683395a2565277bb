"""Attention, group norms and blurs with a fault each, for ``resnet_flax``'s own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from parity.mutants.blocks import beside
from resnet_flax.attention import SqueezeExcite
from resnet_flax.blocks import BasicBlock, Bottleneck
from resnet_flax.layers import BlurPool2d, Conv1d, GroupNorm, Sigmoid


class ReducedTwice(SqueezeExcite):
    """Has half of the channels between its layers."""

    def __call__(self, x: Array) -> Array:
        """Weighs, without the other half."""
        out = self.relu(self.fc1(self.avgpool(x)))
        out = out.at[..., out.shape[-1] // 2 :].set(0)
        return x * self.gate(self.fc2(out))


class WithoutGate(SqueezeExcite):
    """Weighs by what the logistic function should have been given."""

    def __call__(self, x: Array) -> Array:
        """Weighs."""
        out = self.relu(self.fc1(self.avgpool(x)))
        return x * self.fc2(out)


class HardSigmoid(Sigmoid):
    """Cuts a straight line at 0 and 1."""

    def __call__(self, x: Array) -> Array:
        """Computes it."""
        return nnx.hard_sigmoid(x)


class BehindAddition(BasicBlock):
    """Weighs the sum, not the branch."""

    def __call__(self, x: Array) -> Array:
        """Computes the block."""
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        assert self.se is not None
        weighed: Any = self.se(out + beside(self, x))  # type: ignore[operator]
        return self.relu(weighed)


class BlurredBeforeRelu(BasicBlock):
    """Blurs what the rectifier should have been given first."""

    def __call__(self, x: Array) -> Array:
        """Computes the block."""
        out = self.bn1(self.conv1(x))
        assert self.aa is not None
        blurred: Any = self.aa(out)  # type: ignore[operator]
        out = self.bn2(self.conv2(self.relu(blurred)))
        return self.relu(out + beside(self, x))


class BehindBottlenecksAddition(Bottleneck):
    """Weighs the sum, not the branch."""

    def __call__(self, x: Array) -> Array:
        """Computes the block."""
        assert self.bn2 is not None
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        assert self.se is not None
        weighed: Any = self.se(self.bn3(self.conv3(out)) + beside(self, x))  # type: ignore[operator]
        return self.relu(weighed)


class BottleneckBlurredBeforeRelu(Bottleneck):
    """Blurs what the middle rectifier should have been given first."""

    def __call__(self, x: Array) -> Array:
        """Computes the block."""
        assert self.bn2 is not None
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        assert self.aa is not None
        blurred: Any = self.aa(out)  # type: ignore[operator]
        out = self.bn3(self.conv3(self.relu(blurred)))
        return self.relu(out + beside(self, x))


class OnePixelFurther(BlurPool2d):
    """Takes the pixels between those that were meant."""

    def __call__(self, x: Array) -> Array:
        """Pools."""
        return super().__call__(jnp.roll(x, -1, (1, 2)))


class PaddedWithZeros(BlurPool2d):
    """Blurs the rim with zeros, not with its reflection."""

    def __call__(self, x: Array) -> Array:
        """Pools: a map with a rim of zeros reflects into its own rim's places."""
        x = jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
        found = BlurPool2d(strides=(1, 1))(x)[:, 2:-2, 2:-2]
        return found[:, :: self.strides[0], :: self.strides[1]]


class ThreeNeighbours(Conv1d):
    """Sees one channel on either side, of however many it should."""

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        """Convolves with the middle of its kernel."""
        return _along(inputs, self.kernel[...][self.kernel_size[0] // 2 - 1 :][:3], 1)


class Circular(Conv1d):
    """Takes the last channels for the first one's neighbours."""

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        """Convolves a row that is its own neighbour."""
        side = self.kernel_size[0] // 2
        row = jnp.concatenate([inputs[..., -side:], inputs, inputs[..., :side]], -1)
        return _along(row, self.kernel[...], 0)


def _along(row: Array, kernel: Array, padding: int) -> Array:
    return jax.lax.conv_general_dilated(
        *(row, kernel, (1,), [(padding, padding)]),
        dimension_numbers=("NCH", "HIO", "NCH"),
    )


class OverTheBatch(GroupNorm):
    """Takes the mean and the variance of all images together."""

    def __call__(self, x: Array) -> Array:
        """Normalises them as if they were one image."""
        n, h, w, c = x.shape
        return super().__call__(x.reshape(1, n * h, w, c)).reshape(x.shape)


class UnbiasedInGroups(GroupNorm):
    """Divides by the unbiased variance."""

    def __call__(self, x: Array) -> Array:
        """Normalises."""
        _, h, w, c = x.shape
        count = h * w * c // self.num_groups
        bias = self.bias[...].reshape(1, 1, 1, -1)
        normal = super().__call__(x) - bias
        return normal * ((count - 1) / count) ** 0.5 + bias
