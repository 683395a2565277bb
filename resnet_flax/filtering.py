"""3x3 convolutions by Winograd's minimal filtering, for inference on a CPU.

F(2x2, 3x3) of Lavin and Gray (2016, arXiv 1509.09308): a patch of 2x2 results takes
one multiplication for each of the 16 values under it, instead of 36. Sixteen matrix
products are the work; before and behind them are sums of neighbours. XLA:CPU has no
such convolution. Its rounding is that of the plain one in float32 (measured: 0.9 to 1.6
times its error); patches of 4x4 were six to nine times as far off, and no faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from resnet_flax.convolution import convolve
from resnet_flax.layers import Conv2d, clone
from resnet_flax.resnet import ResNet

_LEAST = 64
"""Channels; of fewer, the sums take longer than the multiplications that they save."""

_FEW = 512
"""Patches; of so many and fewer, the sixteen products are faster as one."""


def winograd(model: ResNet) -> ResNet:
    """Returns a copy in evaluation mode whose 3x3 convolutions are Winograd's.

    Those of stride 1 and at least 64 channels, without groups and dilation, are; where
    a half type computes none is, for the sums of neighbours would be rounded too. Their
    kernels are transformed once, in float64, to shape (4, 4, in, out) and to the dtype
    that the layer computes in: the copy's weights are no longer those of a file, and
    what loads or compares weights refuses them by their shape. Fuse first::

        fast = resnet_flax.winograd(resnet_flax.fuse(model))

    It computes the same anywhere, and is faster where XLA's convolutions are slow: on
    CPUs, under the settings of ``resnet_flax.xla``.

    Args:
        model: a network of this package, fused or not; it stays as it is, and shares
            no array.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(model, ResNet):
        raise ValueError(
            f"got a {type(model).__module__}.{type(model).__name__}; winograd takes a "
            "resnet_flax.ResNet"
        )
    copy = clone(model)
    copy.eval()
    for _, module in nnx.iter_modules(copy):
        if isinstance(module, Conv2d) and _fits(module):
            old = module.kernel[...]
            wide = np.asarray(jax.device_get(old)).astype(np.float64)
            kernel = np.stack([np.stack(row) for row in _twice(_of_kernel, wide)])
            kernel = kernel.astype(module.dtype or old.dtype)
            module.kernel = nnx.Param(jax.device_put(kernel, old.sharding))
            module.conv_general_dilated = _convolve
    return copy


def _fits(conv: Conv2d) -> bool:
    kernel = conv.kernel[...]
    return (
        kernel.shape[:2] == (3, 3)
        and min(kernel.shape[2:]) >= _LEAST
        and conv.strides == conv.kernel_dilation == (1, 1)
        and conv.padding == ((1, 1), (1, 1))
        and conv.feature_group_count == conv.input_dilation == 1
        and conv.mask is None
        and conv.preferred_element_type is None
        and conv.conv_general_dilated is convolve
        and jnp.dtype(conv.dtype or kernel.dtype).itemsize >= 4
    )


def _convolve(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "4 4 c k"],
    window_strides: Sequence[int],
    padding: Any,
    *,
    precision: Any = None,
    **settings: Any,
) -> Float[Array, "n h w k"]:
    """Is called by a layer that ``_fits``, so of the settings only one is its own."""
    return _patches(x, kernel, precision)


# Compiled as one where nothing else is.
@partial(jax.jit, static_argnums=2)
def _patches(
    x: Float[Array, "n h w c"], kernel: Float[Array, "4 4 c k"], precision: Any
) -> Float[Array, "n h w k"]:
    n, height, width, channels = x.shape
    rows, columns, out = -(-height // 2), -(-width // 2), kernel.shape[3]
    rim = ((1, 2 * rows - height + 1), (1, 2 * columns - width + 1))
    x = jnp.pad(x, ((0, 0), *rim, (0, 0)))
    # All patches' first value, all their second, …: 4 x 4 maps of one value a patch.
    last = 2 * rows - 1, 2 * columns - 1
    under = [
        [x[:, i : i + last[0] : 2, j : j + last[1] : 2] for j in range(4)]
        for i in range(4)
    ]
    under = [
        [value.reshape(n * rows * columns, channels) for value in row]
        for row in _twice(_of_input, under)
    ]
    patches = n * rows * columns
    if isinstance(patches, int) and patches <= _FEW:  # jax.export has symbols
        both = jnp.stack([jnp.stack(row) for row in under])
        products = jnp.einsum("ijpc,ijck->ijpk", both, kernel, precision=precision)
    else:
        products = [
            [lax.dot(under[i][j], kernel[i, j], precision=precision) for j in range(4)]
            for i in range(4)
        ]
    squares = jnp.stack(
        [
            jnp.stack([value.reshape(n, rows, columns, out) for value in row], axis=3)
            for row in _twice(_of_output, products)
        ],
        axis=2,
    )
    whole = squares.reshape(n, 2 * rows, 2 * columns, out)
    return whole[:, :height, :width]


def _twice(transform: Callable[[Any], list[Any]], grid: Any) -> list[list[Any]]:
    """Transforms each row, then each column."""
    inner = [transform(row) for row in grid]
    outer = [transform(column) for column in zip(*inner, strict=True)]
    return [list(row) for row in zip(*outer, strict=True)]


def _of_kernel(g: Any) -> list[Any]:
    return [g[0], (g[0] + g[1] + g[2]) / 2, (g[0] - g[1] + g[2]) / 2, g[2]]


def _of_input(d: Any) -> list[Any]:
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _of_output(m: Any) -> list[Any]:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]
