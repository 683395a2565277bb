"""Batch normalisation as torch computes it, which nnx's own does not."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt


class BatchNorm2d(nnx.BatchNorm):
    """Batch normalisation with torch's semantics, which ``nnx.BatchNorm`` lacks.

    The running variance is the unbiased one, the momentum weighs the new value, the
    batch's variance is that of centred values, the statistics have the parameters'
    dtype, batches are counted, and one value per channel is refused in training mode.

    It is nnx's to ``isinstance``, ``nnx.view`` and ``set_attributes``; beware of the
    momentum, of which nnx's own is one minus this.

    Args:
        num_features: size of the last axis.
        eps: added to the variance under the root.
        momentum: weight of the batch in the running statistics (torch's convention).
        zero_init: start the scale at zero instead of one.
        dtype: of the result; inferred from input and parameters if ``None``.
        param_dtype: of parameters and statistics.
    """

    scale: nnx.Param[jax.Array]  # type: ignore[assignment]  nnx's may be None
    bias: nnx.Param[jax.Array]  # type: ignore[assignment]
    num_batches_tracked: nnx.BatchStat[jax.Array]
    eps: float

    # What nnx's own could have otherwise.
    axis = -1
    use_scale = use_bias = True
    use_fast_variance = False
    axis_name = axis_index_groups = None

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
        zero_init: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
    ) -> None:
        # By numpy: of jnp.zeros, every size would be a program. torch counts in int64,
        # which JAX does not have outside x64 mode: low and high word, so that a count
        # survives whatever it is.
        # Five arrays, not two: what is put on a CPU may share the memory.
        values = (0 if zero_init else 1, 0, 0, 1)
        arrays = [np.full(num_features, value, param_dtype) for value in values]
        scale, bias, mean, var, count = jax.device_put(
            [*arrays, np.zeros(2, np.uint32)]
        )
        # nnx looks through what is assigned at once, and again through all at the end:
        # most of the time in which a network with a thousand norms is made.
        vars(self).update(
            scale=nnx.Param(scale),
            bias=nnx.Param(bias),
            mean=nnx.BatchStat(mean),
            var=nnx.BatchStat(var),
            num_batches_tracked=nnx.BatchStat(count),
            num_features=num_features,
            eps=eps,
            momentum=momentum,
            dtype=dtype,
            param_dtype=param_dtype,
            use_running_average=False,  # the name that train() and eval() switch
        )

    @property
    def epsilon(self) -> float:
        """What nnx calls ``eps``."""
        return self.eps

    def __call__(  # type: ignore[override]  nnx's takes a mask
        self, x: Float[Array, "n h w c"], use_running_average: bool | None = None
    ) -> Float[Array, "n h w c"]:
        """Normalises; in training mode by the batch's statistics, noting them.

        Args:
            x: images.
            use_running_average: instead of what the layer is set to, if given.

        Raises:
            ValueError: in training mode there is only one value per channel.
        """
        if use_running_average is None:
            use_running_average = self.use_running_average
        scale, bias = self.scale[...], self.bias[...]
        dtype = jnp.dtype(self.dtype or jnp.promote_types(x.dtype, scale.dtype))
        # Half types are computed in float32, as torch does.
        x = x.astype(jnp.float32 if dtype.itemsize < 4 else dtype)
        if use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            centre = _centre(x)
            x = _minus(x, centre)
            mean, var = self._batch_statistics(x, centre)
        return _normal(x, scale, bias, mean, var, self.eps, dtype)

    def _batch_statistics(
        self, x: Float[Array, "n h w c"], centre: Float[Array, " c"]
    ) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
        count = x.size // x.shape[-1]
        if count < 2:
            raise ValueError(
                f"batch normalisation in training mode got shape {x.shape}: it needs "
                "more than one value per channel. Use a larger batch, or call eval()"
            )
        mean, var = _moments(x)
        self._track(self.mean, centre + mean)
        self._track(self.var, var * (count / (count - 1)))
        self.num_batches_tracked.set_value(_plus_one(self.num_batches_tracked[...]))
        return mean, var

    def _track(self, running: nnx.BatchStat, batch: Float[Array, " c"]) -> None:
        running.set_value(_moved(running[...], batch, self.momentum))


class GroupNorm(nnx.Module):
    """Normalisation of groups of channels as torch computes it: in two passes.

    Args:
        num_groups: of neighbouring channels.
        num_channels: size of the last axis.
        eps: added to the variance under the root.
        zero_init: start the scale at zero instead of one.
        dtype: of the result; inferred from input and parameters if ``None``.
        param_dtype: of parameters.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        *,
        eps: float = 1e-5,
        zero_init: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
    ) -> None:
        values = (0 if zero_init else 1, 0)
        arrays = [np.full(num_channels, value, param_dtype) for value in values]
        scale, bias = jax.device_put(arrays)
        self.scale = nnx.Param(scale)
        self.bias = nnx.Param(bias)
        self.num_groups = num_groups
        self.num_channels = num_channels
        self.eps = eps
        self.dtype = dtype
        self.param_dtype = param_dtype

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Normalises each image's groups."""
        scale, bias = self.scale[...], self.bias[...]
        dtype = jnp.dtype(self.dtype or jnp.promote_types(x.dtype, scale.dtype))
        x = x.astype(jnp.float32 if dtype.itemsize < 4 else dtype)
        return _in_groups(x, scale, bias, self.num_groups, self.eps, dtype)


# What a layer computes is compiled as one where nothing else is: without jit, each
# operation would be a program. Under jit it is as if it stood where it is called.


@partial(jax.jit, static_argnums=(5, 6))
def _normal(
    x: Float[Array, "n h w c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    mean: Float[Array, " c"],
    var: Float[Array, " c"],
    eps: float,
    dtype: DTypeLike,
) -> Float[Array, "n h w c"]:
    scale, bias, mean, var = (
        v.astype(x.dtype).reshape(1, 1, 1, -1) for v in (scale, bias, mean, var)
    )
    # 1/sqrt, not rsqrt: the latter is an approximation on some devices.
    return ((x - mean) * (scale / jnp.sqrt(var + eps)) + bias).astype(dtype)


@jax.jit
def _centre(x: Float[Array, "n h w c"]) -> Float[Array, " c"]:
    """Returns nearly the mean, a constant to the gradient: that of a few pixels.

    What rounding takes from a mean that is large beside the deviation shifts every
    value by a part of the deviation; torch holds means in float64. About this centre
    the mean is small. Of every fourth pixel each way, it costs a sixteenth of a pass.
    """
    return jax.lax.stop_gradient(x[:, ::4, ::4].mean((0, 1, 2)))


@jax.jit
def _minus(
    x: Float[Array, "n h w c"], centre: Float[Array, " c"]
) -> Float[Array, "n h w c"]:
    return x - centre.reshape(1, 1, 1, -1)


@jax.jit
def _moments(
    x: Float[Array, "n h w c"],
) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
    """Returns mean and variance of what has been centred, in one pass over it.

    E[x²] - E[x]² loses digits as the mean is large beside the deviation. About that of
    a sixteenth of the values it is at most √15 deviations, and hardly ever above one.
    """
    mean = x.mean((0, 1, 2))
    return mean, jnp.square(x).mean((0, 1, 2)) - jnp.square(mean)


@partial(jax.jit, static_argnums=2)
def _moved(
    old: Float[Array, " c"], batch: Float[Array, " c"], momentum: float
) -> Float[Array, " c"]:
    new = (1 - momentum) * old.astype(batch.dtype) + momentum * batch
    return jax.lax.stop_gradient(new).astype(old.dtype)


@jax.jit
def _plus_one(words: UInt[Array, " words"]) -> UInt[Array, " words"]:
    low, high = words
    low = low + jnp.uint32(1)
    return jnp.stack([low, high + (low == 0).astype(jnp.uint32)])


@partial(jax.jit, static_argnums=(3, 4, 5))
def _in_groups(
    x: Float[Array, "n h w c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    groups: int,
    eps: float,
    dtype: DTypeLike,
) -> Float[Array, "n h w c"]:
    n, h, w, c = x.shape
    scale, bias = (v.astype(x.dtype).reshape(1, 1, 1, -1) for v in (scale, bias))
    split = x.reshape(n, h, w, groups, c // groups)
    split = split - split.mean((1, 2, 4), keepdims=True)
    var = jnp.square(split).mean((1, 2, 4), keepdims=True)
    normal = (split / jnp.sqrt(var + eps)).reshape(x.shape)
    return (normal * scale + bias).astype(dtype)
