"""Convolutions in forms that XLA runs fast on a CPU; elsewhere XLA's own.

XLA:CPU (jaxlib 0.10) is fast for dense convolutions of some width and slow for the two
kinds that fill a bottleneck. Both have a formulation, in ordinary differentiable
operations, that computes the same:

- A 1x1 convolution is a matrix product. Above all its gradient by the kernel is, which
  XLA computes from maps that it first transposes: half of a training step of resnet50.
- A grouped one is a few dense ones: neighbouring groups are joined until they are about
  32 channels wide, with zeros between them in the kernel. For resnext50_32x4d that is
  up to eight times the multiplications (a seventh more for the whole network), and
  still 1.8 to 5 times as fast as XLA's grouped convolution. XLA's gradient by the
  kernel takes a thousand times torch's time; of these a whole training step takes 1.3
  times torch's. The cost in memory is a copy of the map and up to eight times the
  kernel, both for as long as the convolution lasts. The cost in compiling is a program
  of many convolutions.

The zeros are multiplied, so an infinity or NaN in one channel becomes NaN in those
joined with it, where otherwise only its own group's would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Pairs = tuple[tuple[int, int], ...]

_WIDTH = 32
"""Channels of a dense part. 16 has more parts, 64 twice the work: both are slower."""

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolve(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "i j c_group k"],
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]] | str,
    *,
    feature_group_count: int = 1,
    **settings: Any,
) -> Float[Array, "n y x k"]:
    """Does what ``jax.lax.conv_general_dilated`` does, for images channels last.

    Args:
        x: images.
        kernel: of ``c / feature_group_count`` input channels.
        window_strides: over rows and columns.
        padding: before and after rows and columns, or ``"SAME"`` or ``"VALID"``.
        feature_group_count: how many groups of channels know nothing of each other.
        **settings: the rest of what ``conv_general_dilated`` takes.
    """
    # What jax.export knows by a symbol only, XLA's own takes.
    sized = all(isinstance(size, int) for size in x.shape)
    if padding == "SAME" and not sized:
        dilation = settings.get("rhs_dilation") or (1, 1)
        x = pad_same(x, 0, kernel.shape[:2], window_strides, dilation)
        padding = "VALID"
    if jax.default_backend() == "cpu" and sized and _plain(settings):
        strides, precision = tuple(window_strides), settings.get("precision")
        if feature_group_count > 1:
            return _grouped(
                *(x, kernel, feature_group_count, strides),
                padding if isinstance(padding, str) else tuple(padding),
                tuple(settings.get("rhs_dilation") or (1, 1)),
                precision,
            )
        if kernel.shape[:2] == (1, 1) and not _pads(padding):
            return _pointwise(x, kernel, strides, precision)
    return lax.conv_general_dilated(
        *(x, kernel, window_strides, padding),
        feature_group_count=feature_group_count,
        **{"dimension_numbers": _LAYOUT, **settings},
    )


def pad_same(
    x: Float[Array, "n h w c"],
    value: float,
    window: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int] = (1, 1),
) -> Float[Array, "n i j c"]:
    """Pads a map of symbolic size so that windows begin where SAME lets them.

    Behind, it pads what no window reaches too: all together is then known without the
    map's size, and the next size has the same symbol as behind other layers. jax.export
    sees no other sizes as equal.

    Args:
        x: images.
        value: what it pads with.
        window: rows and columns.
        strides: over rows and columns.
        dilation: of the window's rows and columns.
    """
    pads: list[Any] = [(0, 0, 0)]
    for length, size, stride, dilated in zip(
        x.shape[1:3], window, strides, dilation, strict=True
    ):
        reach = (size - 1) * dilated
        before = (reach + 1 - stride + -length % stride) // 2 if size > 1 else 0
        pads.append((before, reach - before, 0))
    return lax.pad(x, jnp.asarray(value, x.dtype), [*pads, (0, 0, 0)])


def _plain(settings: Mapping[str, Any]) -> bool:
    """Whether nothing is asked for that only XLA's own convolution has."""
    unusual = ("batch_group_count", "preferred_element_type", "out_sharding")
    scale = settings.get("lhs_dilation") or (1, 1)
    return tuple(scale) == (1, 1) and all(settings.get(k) in (None, 1) for k in unusual)


def _pads(padding: Sequence[tuple[int, int]] | str) -> bool:
    """Whether a window of one pixel is padded, which neither word does."""
    return not isinstance(padding, str) and any(map(any, padding))


# Compiled as one where nothing else is: without jit, each operation would be a program.
@partial(jax.jit, static_argnums=(2, 3))
def _pointwise(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "1 1 c k"],
    strides: tuple[int, ...],
    precision: Any,
) -> Float[Array, "n y x k"]:
    rows, columns = strides
    if strides != (1, 1):
        x = x[:, ::rows, ::columns, :]
    # As two matrices: over three axes, the gradient's sums would first transpose maps.
    y = lax.dot(x.reshape(-1, x.shape[3]), kernel[0, 0], precision=precision)
    return y.reshape(*x.shape[:3], kernel.shape[3])


@partial(jax.jit, static_argnums=(2, 3, 4, 5, 6))
def _grouped(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "i j c_group k"],
    groups: int,
    strides: tuple[int, ...],
    padding: Pairs | str,
    dilation: tuple[int, ...],
    precision: Any,
) -> Float[Array, "n y x k"]:
    width = kernel.shape[2]
    divisors = [n for n in range(1, groups + 1) if groups % n == 0]
    joined = max(n for n in divisors if n == 1 or n * width <= _WIDTH)
    parts = zip(
        jnp.split(x, groups // joined, axis=3),
        jnp.split(_dense(kernel, groups, joined), groups // joined, axis=3),
        strict=True,
    )
    outputs = [
        lax.conv_general_dilated(
            *(part, dense, strides, padding),
            rhs_dilation=dilation,
            dimension_numbers=_LAYOUT,
            precision=precision,
        )
        for part, dense in parts
    ]
    return jnp.concatenate(outputs, axis=3)


def _dense(
    kernel: Float[Array, "i j c_group k"], groups: int, joined: int
) -> Float[Array, "i j c k"]:
    """Writes each group's kernel into its place between zeros."""
    i, j, width, out = kernel.shape
    split = kernel.reshape(i, j, 1, width, groups // joined, joined, out // groups)
    shape = (i, j, joined, *split.shape[3:])
    source, target = (lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (2, 5))
    # Selected, not multiplied: the gradient takes nothing from between either.
    full = jnp.where(source == target, jnp.broadcast_to(split, shape), 0)
    return full.reshape(i, j, joined * width, out)
