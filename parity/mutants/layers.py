"""Convolutions, rectifiers and the rest with a fault each."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from parity.mutants.pools import UNPADDED, sums
from resnet_flax.layers import (
    Conv2d,
    Flatten,
    PadChannels,
    ReLU,
)


class WithKernel(Conv2d):
    """Convolves with what it makes of its kernel; as it stands here, with itself."""

    def other(self, kernel: Array) -> Array:
        """Returns the kernel, (h, w, in, out), that it computes with."""
        return kernel

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        """Convolves."""
        own = self.kernel.get_value()
        self.kernel.set_value(self.other(own))
        try:
            return super().__call__(inputs, out_sharding)
        finally:
            self.kernel.set_value(own)


class Turned(WithKernel):
    """Takes rows for columns."""

    def other(self, kernel: Array) -> Array:
        """Swaps height and width."""
        return kernel.transpose(1, 0, 2, 3)


class Flipped(WithKernel):
    """Convolves as mathematicians do, not as networks do."""

    def other(self, kernel: Array) -> Array:
        """Flips both axes of the map."""
        return kernel[::-1, ::-1]


class InOutSwapped(WithKernel):
    """Takes inputs for outputs; where there are as many, shapes do not tell."""

    def other(self, kernel: Array) -> Array:
        """Swaps the axes of the channels."""
        return kernel.transpose(0, 1, 3, 2)


class GroupsPermuted(WithKernel):
    """Gives the second group's kernels to the first, and so on."""

    def other(self, kernel: Array) -> Array:
        """Moves every group by one."""
        size = kernel.shape[-1] // self.feature_group_count
        return jnp.roll(kernel, size, axis=-1)


class GroupsInterleaved(WithKernel):
    """Orders the outputs by their place in the group, then by group."""

    def other(self, kernel: Array) -> Array:
        """Shuffles channels as a transposed reshape does."""
        groups = self.feature_group_count
        split = kernel.reshape(*kernel.shape[:3], groups, -1)
        return split.swapaxes(3, 4).reshape(kernel.shape)


class Pooled(Conv2d):
    """A shortcut as ResNet-D's, where a strided one was wanted; its own stride is 1."""

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        """Averages, then convolves."""
        return super().__call__(
            sums(inputs, (2, 2), (2, 2), UNPADDED) / 4, out_sharding
        )


class AtOddOffset(Conv2d):
    """Sees pixels 1, 3, 5 … where 0, 2, 4 … were meant."""

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        """Convolves what lies one pixel further."""
        return super().__call__(jnp.roll(inputs, -1, (1, 2)), out_sharding)


class ReLU6(ReLU):
    """Cuts at 6."""

    def __call__(self, x: Array) -> Array:
        """Rectifies."""
        return nnx.relu6(x)


class LeakyReLU(ReLU):
    """Lets a hundredth through."""

    def __call__(self, x: Array) -> Array:
        """Rectifies."""
        return jnp.where(x > 0, x, 0.01 * x)


class HalfAtZero(ReLU):
    """Has the derivative ½ at 0."""

    def __call__(self, x: Array) -> Array:
        """Rectifies."""
        return jnp.maximum(x, jnp.zeros((), x.dtype))


class PaddedAtOddOffset(PadChannels):
    """Sees pixels 1, 3, 5 … where 0, 2, 4 … were meant."""

    def __call__(self, x: Array) -> Array:
        """Subsamples and pads."""
        return super().__call__(jnp.roll(x, -1, (1, 2)))


class PaddedInFront(PadChannels):
    """Puts the channels of zeros before its own."""

    def __call__(self, x: Array) -> Array:
        """Subsamples and pads."""
        return jnp.roll(super().__call__(x), self.channels, -1)


class FlattenedNHWC(Flatten):
    """Puts rows, then columns, then channels in a row."""

    def __call__(self, x: Array) -> Array:
        """Flattens."""
        return x.reshape(x.shape[0], -1)


class LinearWithoutBias(nnx.Linear):
    """Adds no bias."""

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        """Multiplies."""
        return inputs @ self.kernel[...]


class NoReLU(ReLU):
    """Rectifies nothing."""

    def __call__(self, x: Array) -> Array:
        """Returns what it is given."""
        return x


class HalfOfItsChannels(Conv2d):
    """Makes half of its channels."""

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        """Convolves, without the other half."""
        out = super().__call__(inputs)
        return out.at[..., out.shape[-1] // 2 :].set(0)
