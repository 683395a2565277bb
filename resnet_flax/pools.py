"""Pools as layers: maxima and means over windows of a map."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from resnet_flax.pooling import max_pool

SAME = "SAME"
"""What a layer has for its padding if the size of each map decides it."""


class MaxPool2d(nnx.Module):
    """The maximum over a window; padded with -inf, never with zeros."""

    def __init__(
        self,
        kernel_size: tuple[int, int],
        *,
        strides: tuple[int, int],
        padding: tuple[tuple[int, int], ...] | str,
    ) -> None:
        self.kernel_size = kernel_size
        self.strides = strides
        self.padding: Any = padding

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n i j c"]:
        """Pools."""
        return max_pool(x, self.kernel_size, self.strides, self.padding)


class AvgPool2d(nnx.Module):
    """The mean over a window; with ``ceil_mode`` the last one may hang over the rim.

    What hangs over does not count, so that the mean is that of the pixels there are;
    the zeros of a padding do.
    """

    def __init__(
        self,
        kernel_size: tuple[int, int],
        *,
        strides: tuple[int, int],
        padding: tuple[tuple[int, int], ...] = (),
        ceil_mode: bool = False,
    ) -> None:
        self.kernel_size = kernel_size
        self.strides = strides
        self.padding: Any = padding or 0
        self.ceil_mode = ceil_mode

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n i j c"]:
        """Pads and pools."""
        window, strides = (1, *self.kernel_size, 1), (1, *self.strides, 1)
        if self.padding:
            x = jnp.pad(x, ((0, 0), *self.padding, (0, 0)))
        return _mean_over(x, window, strides, self.ceil_mode)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _mean_over(
    x: Float[Array, "n h w c"],
    window: tuple[int, ...],
    strides: tuple[int, ...],
    ceil_mode: bool,
) -> Float[Array, "n i j c"]:
    # Enough for a last window; where none begins in it, it does not count.
    over = [(0, stride - 1 if ceil_mode else 0) for stride in strides]

    def total(x: Array) -> Array:
        # numpy's zero: traced, JAX would not know this for a sum, nor its gradient.
        zero = np.zeros((), x.dtype)
        return jax.lax.reduce_window(x, zero, jax.lax.add, window, strides, over)

    # How many pixels a window has is the same for all images and channels: XLA, which
    # computes what is constant while it compiles, takes seconds for all of them.
    return total(x) / total(jnp.ones_like(x[:1, :, :, :1]))


class BlurPool2d(nnx.Module):
    """The mean over 3x3 pixels by the weights 1-2-1 both ways (arXiv 1904.11486).

    It is the mean over 2x2 pixels of means over 2x2 pixels: no constants to carry.
    """

    def __init__(self, *, strides: tuple[int, int]) -> None:
        self.kernel_size = (3, 3)
        self.strides = strides
        self.padding = 1

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n i j c"]:
        """Pads by reflection and pools."""
        for axis in (1, 2):
            # One pixel from where an array says: of another slice, as of numpy's
            # reflection, jax.export would have to know how many pixels there are.
            first, last = (
                jax.lax.dynamic_slice_in_dim(x, jnp.asarray(at), 1, axis)
                for at in (1, x.shape[axis] - 2)
            )
            x = jnp.concatenate([first, x, last], axis)
        x = _mean_over(x, (1, 2, 2, 1), (1, 1, 1, 1), False)
        return _mean_over(x, (1, 2, 2, 1), (1, *self.strides, 1), False)


class AvgPool2dSame(nnx.Module):
    """The mean over a window that begins at each pixel; behind the rim are zeros."""

    def __init__(self, kernel_size: tuple[int, int]) -> None:
        self.kernel_size = kernel_size
        self.strides = (1, 1)
        self.padding = SAME

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Pads and pools."""
        rows, columns = self.kernel_size
        x = jnp.pad(x, ((0, 0), (0, rows - 1), (0, columns - 1), (0, 0)))
        return _mean_over(x, (1, rows, columns, 1), (1, 1, 1, 1), False)


class AdaptiveAvgPool2d(nnx.Module):
    """The mean over the whole map, whatever its size; the map becomes 1x1."""

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n 1 1 c"]:
        """Averages."""
        return x.mean((1, 2), keepdims=True)
