"""Pools with a fault each, in the place of ``resnet_flax.layers``'s."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from resnet_flax.layers import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    MaxPool2d,
)


class AverageForMax(MaxPool2d):
    """Averages."""

    def __call__(self, x: Array) -> Array:
        """Pools."""
        rows, columns = self.kernel_size
        added = sums(x, self.kernel_size, self.strides, self.padding)
        return added / (rows * columns)


class ZeroPadded(MaxPool2d):
    """Pads with zeros, which no value after a rectifier loses against."""

    def __call__(self, x: Array) -> Array:
        """Pools."""
        padded = jnp.pad(x, ((0, 0), *self.padding, (0, 0)))
        return nnx.max_pool(padded, self.kernel_size, self.strides, "VALID")


class InCeilMode(MaxPool2d):
    """Lets the last window of a row hang over the rim."""

    def __call__(self, x: Array) -> Array:
        """Pools."""
        window, strides = self.kernel_size, self.strides
        padding = [
            (low, high + -(size + low + high - k) % s)
            for size, k, s, (low, high) in zip(
                x.shape[1:3], window, strides, self.padding, strict=True
            )
        ]
        return nnx.max_pool(x, window, strides, padding)  # type: ignore[arg-type]


class SharedAtTies(MaxPool2d):
    """Gives equal maxima equal parts of the gradient; torch gives all to the first."""

    def __call__(self, x: Array) -> Array:
        """Pools."""
        (rows, columns), (down, right) = self.kernel_size, self.strides
        lowest = -float("inf")
        x = jnp.pad(x, ((0, 0), *self.padding, (0, 0)), constant_values=lowest)
        height, width = x.shape[1] - rows + 1, x.shape[2] - columns + 1
        windows = [
            x[:, i : i + height : down, j : j + width : right]
            for i in range(rows)
            for j in range(columns)
        ]
        return jnp.stack(windows).max(0)


class LastAtTies(MaxPool2d):
    """Gives the gradient of equal maxima to the last."""

    def __call__(self, x: Array) -> Array:
        """Pools what is turned upside down, and turns it back."""
        window, strides = self.kernel_size, self.strides
        padding = []
        for size, k, s, (low, high) in zip(
            x.shape[1:3], window, strides, self.padding, strict=True
        ):
            over = (size + low + high - k) % s  # no window ends behind this
            padding.append((high - over, low))
        x = x[:, ::-1, ::-1]
        return nnx.max_pool(x, window, strides, padding)[:, ::-1, ::-1]  # type: ignore[arg-type]


class Fixed7x7(AdaptiveAvgPool2d):
    """Averages 7x7 values, however many there are."""

    def __call__(self, x: Array) -> Array:
        """Pools."""
        return sums(x, (7, 7), (7, 7), UNPADDED) / 49


class GlobalMax(AdaptiveAvgPool2d):
    """Takes the maximum."""

    def __call__(self, x: Array) -> Array:
        """Pools."""
        return x.max((1, 2), keepdims=True)


class GlobalSum(AdaptiveAvgPool2d):
    """Takes the sum."""

    def __call__(self, x: Array) -> Array:
        """Pools."""
        return x.sum((1, 2), keepdims=True)


class CountsWhatHangsOver(AvgPool2d):
    """Divides by the window's size at the rim too."""

    def __call__(self, x: Array) -> Array:
        """Pools."""
        (rows, columns), (down, right) = self.kernel_size, self.strides
        _, h, w, _ = x.shape
        over = ((0, -(h - rows) % down), (0, -(w - columns) % right))
        return sums(x, self.kernel_size, self.strides, over) / (rows * columns)


class Subsampled(AvgPool2d):
    """Takes one pixel of four."""

    def __call__(self, x: Array) -> Array:
        """Pools."""
        return x[:, :: self.strides[0], :: self.strides[1]]


UNPADDED = ((0, 0), (0, 0))


def sums(
    x: Array,
    window: tuple[int, int],
    strides: tuple[int, int],
    padding: tuple[tuple[int, int], ...],
) -> Array:
    """Adds up the values of every window."""
    # nnx.avg_pool divides by an integer, which strict promotion refuses.
    zero, padding = np.zeros((), x.dtype), ((0, 0), *padding, (0, 0))
    return jax.lax.reduce_window(
        x, zero, jax.lax.add, (1, *window, 1), (1, *strides, 1), padding
    )
