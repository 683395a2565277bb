"""Everything in which the two frameworks differ, on Flax NNX's side.

The mirror of ``resnet_torch/layers.py``: whatever is written here is what
``resnet.py`` need not say.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from resnet_flax.convolution import convolve
from resnet_flax.draws import Draws, first_key, kaiming_normal, uniform
from resnet_flax.norm import BatchNorm2d, GroupNorm
from resnet_flax.pools import (
    SAME,
    AdaptiveAvgPool2d,
    AvgPool2d,
    AvgPool2dSame,
    BlurPool2d,
    MaxPool2d,
)
from resnet_spec import ResNetConfig
from resnet_spec.config import Padding


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Makes every layer of one network: shapes from the caller, the rest from here.

    All parameters are drawn as torchvision draws them (kernels: He et al. 2015, arXiv
    1502.01852, section 2.2, by the fan-out; the linear layer: torch's default).

    Args:
        config: the network's settings.
        rngs: source of all random numbers; one key is taken, for all layers. A seed or
            a key stands for an ``nnx.Rngs`` of it.
        dtype: what the network computes in; inferred from input and parameters if
            ``None``.
        param_dtype: what the parameters and the running statistics are stored in.
    """

    config: ResNetConfig
    rngs: nnx.Rngs | int | Array
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @cached_property
    def _draws(self) -> Any:  # to nnx's layers, an nnx.Rngs
        rngs: Any = self.rngs
        if isinstance(rngs, int | np.integer) and not isinstance(rngs, bool):
            return Draws(first_key(int(rngs)))
        if isinstance(rngs, Array) and jnp.issubdtype(rngs.dtype, jax.dtypes.prng_key):
            rngs = nnx.Rngs(rngs)
        params = getattr(rngs, "params", None)  # the stream, or the default one
        if params is None:
            raise ValueError(
                f"rngs is a {type(rngs).__name__} without params; it must be an "
                "nnx.Rngs that has them, a seed, or a key of jax.random"
            )
        return Draws(params())

    def conv(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        padding: Padding | None = None,
        bias: bool | None = None,
    ) -> Conv2d:
        """A convolution that keeps the map's size at stride 1; padded as in a block."""
        same = (padding or self.config.block_padding) == "same"
        same = same and stride > 1 and kernel_size > 1  # else both pad alike
        window = self._window(kernel_size)
        return Conv2d(
            in_channels,
            out_channels,
            window,
            strides=(stride, stride),
            # 'SAME', Flax's default, pads one-sidedly at stride 2 on even sizes.
            padding=SAME if same else self._padding(kernel_size, dilation),
            kernel_dilation=(dilation, dilation),
            feature_group_count=groups,
            use_bias=self.config.conv_bias if bias is None else bias,
            kernel_init=kaiming_normal,
            bias_init=uniform((in_channels // groups * prod(window)) ** -0.5),
            conv_general_dilated=convolve,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            rngs=self._draws,
        )

    def conv_along(self, kernel_size: int) -> Conv1d:
        """A convolution along a row of numbers, without bias, that keeps its length."""
        return Conv1d(
            1,
            1,
            (kernel_size,),
            padding=kernel_size // 2,
            use_bias=False,
            kernel_init=uniform(kernel_size**-0.5),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            rngs=self._draws,
        )

    def norm(
        self, channels: int, *, zero_init: bool = False
    ) -> BatchNorm2d | GroupNorm:
        """Normalisation; with ``zero_init`` its scale starts at zero."""
        config = self.config
        how: Any = {"eps": config.norm_eps, "zero_init": zero_init}
        how |= {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if config.norm == "group":
            return GroupNorm(config.norm_groups, channels, **how)
        return BatchNorm2d(channels, momentum=config.norm_momentum, **how)

    def relu(self) -> ReLU:
        """The rectifier."""
        return ReLU()

    def sigmoid(self) -> Sigmoid:
        """The logistic function."""
        return Sigmoid()

    def shares(self, radix: int, groups: int) -> Shares:
        """The softmax over splits, for each channel of each group."""
        return Shares(radix, groups)

    def maxpool(
        self, kernel_size: int, *, stride: int, padding: Padding = "torch"
    ) -> MaxPool2d:
        """The maximum over a window; padded positions never win."""
        around = SAME if padding == "same" else self._padding(kernel_size)
        window = self._window(kernel_size)
        return MaxPool2d(window, strides=(stride, stride), padding=around)

    def avgpool(self) -> AdaptiveAvgPool2d:
        """The mean over the whole map, whatever its size."""
        return AdaptiveAvgPool2d()

    def avgpool_along(self, width: int) -> AvgPool2d:
        """The mean over windows of one row that do not overlap."""
        return AvgPool2d((1, width), strides=(1, width))

    def pool_down(self, stride: int) -> nnx.Module:
        """The mean over 2x2 windows; the last of a row may hang over the rim."""
        if stride == 1:
            return Identity()
        return AvgPool2d(self._window(2), strides=(stride, stride), ceil_mode=True)

    def pool_same(self) -> AvgPool2dSame:
        """The mean over 2x2 windows, one for each pixel; behind the rim are zeros."""
        return AvgPool2dSame(self._window(2))

    def average(self, width: int) -> AvgPool2d:
        """The mean over squares that do not overlap; what is left of a row is lost."""
        return AvgPool2d((width, width), strides=(width, width))

    def average_around(self, stride: int) -> AvgPool2d:
        """The mean over 3x3 pixels around every stride-th; zeros at the rim count."""
        window, around = self._window(3), self._padding(3)
        return AvgPool2d(window, strides=(stride, stride), padding=around)

    def blur(self, stride: int) -> BlurPool2d:
        """Every stride-th pixel of a blurred map."""
        return BlurPool2d(strides=(stride, stride))

    def pad_channels(self, channels: int, *, stride: int) -> PadChannels:
        """Every stride-th pixel, with channels of zeros behind its own."""
        return PadChannels(channels, stride=stride)

    def flatten(self, features: int) -> Flatten:
        """All values of an image in one row, if there are as many as expected."""
        rows = 1 if self.config.dimensions == 1 else None
        return Flatten(features, rows=rows, fitting=self.config.fitting_inputs())

    def linear(self, in_features: int, out_features: int) -> nnx.Linear:
        """A linear layer with bias, both drawn from ±1/√in_features."""
        init = uniform(in_features**-0.5)
        return nnx.Linear(
            in_features,
            out_features,
            kernel_init=init,
            bias_init=init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            rngs=self._draws,
        )

    def _window(self, size: int) -> tuple[int, int]:
        return (size if self.config.dimensions == 2 else 1, size)

    def _padding(self, size: int, dilation: int = 1) -> tuple[tuple[int, int], ...]:
        both = (dilation * (n - 1) // 2 for n in self._window(size))
        return tuple((side, side) for side in both)


class Sequential(nnx.List):
    """Layers in a row by torch's paths, ``layer1.0``; nnx's own adds ``.layers``."""

    def __init__(self, *modules: nnx.Module) -> None:
        super().__init__(modules)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n i j k"]:
        """Applies one after the other."""
        for module in self:
            x = module(x)
        return x


class Conv2d(nnx.Conv):
    """nnx's convolution, with an error that a user of torch's layout understands."""

    bias: nnx.Param[jax.Array] | None = nnx.data()

    # What nnx's own could have otherwise.
    input_dilation = 1
    mask = precision = preferred_element_type = None
    promote_dtype = staticmethod(promote_dtype)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: tuple[int, int],
        *,
        strides: tuple[int, int],
        padding: tuple[tuple[int, int], ...] | str,
        kernel_dilation: tuple[int, int],
        feature_group_count: int,
        use_bias: bool,
        kernel_init: Any,
        bias_init: Any,
        conv_general_dilated: Any,
        dtype: DTypeLike | None,
        param_dtype: DTypeLike,
        rngs: Any,
    ) -> None:
        shape = (*kernel_size, in_features // feature_group_count, out_features)
        kernel = nnx.Param(kernel_init(rngs.params(), shape, param_dtype))
        bias = None
        if use_bias:
            bias = nnx.Param(bias_init(rngs.params(), (out_features,), param_dtype))
        # At once, as BatchNorm2d does and why.
        vars(self).update(
            kernel=kernel,
            bias=bias,
            in_features=in_features,
            out_features=out_features,
            kernel_size=kernel_size,
            strides=strides,
            padding=padding,
            kernel_dilation=kernel_dilation,
            feature_group_count=feature_group_count,
            conv_general_dilated=conv_general_dilated,
            dtype=dtype,
            param_dtype=param_dtype,
        )

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """The kernel's."""
        return self.kernel.shape

    @property
    def use_bias(self) -> bool:
        """Whether there is one."""
        return self.bias is not None

    def __call__(self, inputs: Float[Array, "n h w c"], out_sharding=None) -> Array:
        """Convolves images; raises ValueError for another shape."""
        if inputs.ndim != 4 or inputs.shape[-1] != self.in_features:
            raise ValueError(
                f"the input has shape {inputs.shape}; this layer takes images of shape "
                f"(n, h, w, {self.in_features}), channels last"
            )
        return super().__call__(inputs, out_sharding)


class Conv1d(nnx.Conv):
    """nnx's convolution along rows (n, 1, length), which torch has so too."""

    def __call__(self, inputs: Float[Array, "n 1 l"], out_sharding=None) -> Array:
        """Convolves."""
        return super().__call__(inputs[:, 0, :, None], out_sharding)[:, None, :, 0]


class Sigmoid(nnx.Module):
    """1 / (1 + exp(-x))."""

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Computes it."""
        return nnx.sigmoid(x)


class Shares(nnx.Module):
    """The softmax over splits: of groups of splits of channels, splits of channels."""

    def __init__(self, radix: int, groups: int) -> None:
        self.radix = radix
        self.groups = groups

    def __call__(self, x: Float[Array, "n 1 1 c"]) -> Float[Array, "n 1 1 c"]:
        """Computes it, and puts the groups into each split."""
        n, *_, channels = x.shape
        y = nnx.softmax(x.reshape(n, self.groups, self.radix, -1), axis=2)
        return y.transpose(0, 2, 1, 3).reshape(n, 1, 1, channels)


class ReLU(nnx.Module):
    """max(x, 0); its derivative at 0 is 0, as torch's (``jnp.maximum`` has ½)."""

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Rectifies."""
        return nnx.relu(x)


class Identity(nnx.Module):
    """What it is given."""

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Returns it."""
        return x


class PadChannels(nnx.Module):
    """The shortcut without parameters between maps of other shape (paper, option A)."""

    def __init__(self, channels: int, *, stride: int) -> None:
        self.channels = channels
        self.strides = (stride, stride)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n i j k"]:
        """Subsamples and pads."""
        rows, columns = self.strides
        if all(isinstance(size, int) for size in x.shape):
            x = x[:, ::rows, ::columns, :]
        else:  # jax.export's symbols are the convolution's only if a window makes them
            x = nnx.max_pool(x, (1, 1), self.strides)
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.channels)))


class Flatten(nnx.Module):
    """:func:`flatten` before a linear layer that has a weight for each position."""

    def __init__(self, features: int, *, rows: int | None, fitting: str) -> None:
        self.features = features
        self.rows = rows
        self.fitting = fitting

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n chw"]:
        """Flattens; raises ValueError, with the sizes that fit, for other maps."""
        _, h, w, c = x.shape
        if h * w * c != self.features or self.rows not in (None, h):
            raise ValueError(
                f"the map before the linear layer is {(c, h, w)}, {h * w * c} values "
                f"instead of {self.features}; {self.fitting}"
            )
        return flatten(x)


def split(x: Float[Array, "n h w rc"], radix: int) -> Float[Array, "n h w r c"]:
    """Neighbouring channels in so many splits."""
    return x.reshape(*x.shape[:3], radix, -1)


def joined(x: Float[Array, "n h w r c"]) -> Float[Array, "n h w c"]:
    """The sum of splits."""
    return x.sum(3)


def as_row(x: Float[Array, "n 1 1 c"]) -> Float[Array, "n 1 c"]:
    """One value of each channel, in a row."""
    return x[:, 0]


def as_map(x: Float[Array, "n 1 c"]) -> Float[Array, "n 1 1 c"]:
    """A row as one value of each channel."""
    return x[:, None]


def as_signal(x: Float[Array, "n k"]) -> Float[Array, "n 1 k 1"]:
    """Scores as a signal of height 1 with one channel."""
    return x[:, None, :, None]


def flatten(x: Float[Array, "n h w c"]) -> Float[Array, "n chw"]:
    """All values of an image in one row: channels, then rows, then columns."""
    # torch's order, so that a linear layer's weights mean the same in both twins.
    return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)


def clone(model: Any) -> Any:
    """A copy that shares no array, so that one's may be donated: nnx's shares all."""
    graph, state = nnx.split(model)
    copied = jax.tree.map(
        lambda x: jax.device_put(x, x.sharding, may_alias=False), state
    )
    return nnx.merge(graph, copied)
