"""Everything in which the two frameworks differ, on PyTorch's side.

The mirror of ``resnet_flax/layers.py``: whatever is written here is what
``resnet.py`` need not say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import Sequential as Sequential  # with torch's own names: "0", "1", …

from resnet_spec import ResNetConfig
from resnet_spec.config import Padding


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Makes every layer of one network: shapes from the caller, the rest from here.

    All parameters are drawn as torchvision draws them (kernels: He et al. 2015, arXiv
    1502.01852, section 2.2, by the fan-out; the linear layer: torch's default).

    Args:
        config: the network's settings.
        generator: source of all random numbers; torch's global one if ``None``.
        device: of all tensors; torch's default if ``None``.
        dtype: of parameters and statistics; torch's default if ``None``.
    """

    config: ResNetConfig
    generator: torch.Generator | None = None
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None

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
    ) -> nn.Conv2d:
        """A convolution that keeps the map's size at stride 1; padded as in a block."""
        same = (padding or self.config.block_padding) == "same"
        same = same and stride > 1 and kernel_size > 1  # else both pad alike
        conv = self._build(
            Conv2d if same else nn.Conv2d,
            in_channels,
            out_channels,
            self._window(kernel_size),
            stride=stride,
            padding=self._padding(kernel_size, dilation),
            dilation=dilation,
            groups=groups,
            bias=self.config.conv_bias if bias is None else bias,
        )
        if same:
            conv.padding = SAME
        if conv.weight.is_meta:  # nothing to draw, which takes torch its time
            return conv
        nn.init.kaiming_normal_(
            conv.weight, mode="fan_out", nonlinearity="relu", generator=self.generator
        )
        if conv.bias is not None:  # torch's default, which torchvision leaves as it is
            bound = conv.weight[0].numel() ** -0.5
            nn.init.uniform_(conv.bias, -bound, bound, generator=self.generator)
        return conv

    def conv_along(self, kernel_size: int) -> nn.Conv1d:
        """A convolution along a row of numbers, without bias, that keeps its length."""
        conv = self._build(
            nn.Conv1d, 1, 1, kernel_size, padding=kernel_size // 2, bias=False
        )
        bound = kernel_size**-0.5
        nn.init.uniform_(conv.weight, -bound, bound, generator=self.generator)
        return conv

    def norm(self, channels: int, *, zero_init: bool = False) -> nn.Module:
        """Normalisation; with ``zero_init`` its scale starts at zero."""
        config = self.config
        how: Any = {"device": self.device, "dtype": self.dtype, "eps": config.norm_eps}
        norm: nn.BatchNorm2d | nn.GroupNorm
        if config.norm == "group":
            norm = GroupNorm(config.norm_groups, channels, **how)
        else:
            norm = nn.BatchNorm2d(channels, momentum=config.norm_momentum, **how)
        if zero_init:
            nn.init.zeros_(norm.weight)
        return norm

    def relu(self) -> nn.ReLU:
        """The rectifier; in place, so that it holds no map of its own."""
        return nn.ReLU(inplace=True)

    def sigmoid(self) -> nn.Sigmoid:
        """The logistic function."""
        return nn.Sigmoid()

    def shares(self, radix: int, groups: int) -> Shares:
        """The softmax over splits, for each channel of each group."""
        return Shares(radix, groups)

    def maxpool(
        self, kernel_size: int, *, stride: int, padding: Padding = "torch"
    ) -> nn.MaxPool2d:
        """The maximum over a window; padded positions never win."""
        if padding == "same":
            return MaxPool2d(self._window(kernel_size), stride=(stride, stride))
        if self.config.dimensions == 2:  # by integers, as torchvision prints it
            return nn.MaxPool2d(kernel_size, stride=stride, padding=kernel_size // 2)
        window, around = self._window(kernel_size), self._padding(kernel_size)
        return nn.MaxPool2d(window, stride=stride, padding=around)

    def avgpool(self) -> nn.AdaptiveAvgPool2d:
        """The mean over the whole map, whatever its size."""
        return nn.AdaptiveAvgPool2d((1, 1))

    def avgpool_along(self, width: int) -> nn.AvgPool2d:
        """The mean over windows of one row that do not overlap."""
        return nn.AvgPool2d((1, width), stride=(1, width))

    def pool_down(self, stride: int) -> nn.Module:
        """The mean over 2x2 windows; the last of a row may hang over the rim."""
        if stride == 1:
            return nn.Identity()
        window = self._window(2)
        return nn.AvgPool2d(window, stride, ceil_mode=True, count_include_pad=False)

    def pool_same(self) -> AvgPool2dSame:
        """The mean over 2x2 windows, one for each pixel; behind the rim are zeros."""
        return AvgPool2dSame(self._window(2))

    def average(self, width: int) -> nn.AvgPool2d:
        """The mean over squares that do not overlap; what is left of a row is lost."""
        return nn.AvgPool2d(width)

    def average_around(self, stride: int) -> nn.AvgPool2d:
        """The mean over 3x3 pixels around every stride-th; zeros at the rim count."""
        return nn.AvgPool2d(self._window(3), stride, self._padding(3))

    def blur(self, stride: int) -> BlurPool2d:
        """Every stride-th pixel of a blurred map."""
        return BlurPool2d(stride=stride)

    def pad_channels(self, channels: int, *, stride: int) -> PadChannels:
        """Every stride-th pixel, with channels of zeros behind its own."""
        return PadChannels(channels, stride=stride)

    def flatten(self, features: int) -> Flatten:
        """All values of an image in one row, if there are as many as expected."""
        rows = 1 if self.config.dimensions == 1 else None
        return Flatten(features, rows=rows, fitting=self.config.fitting_inputs())

    def linear(self, in_features: int, out_features: int) -> nn.Linear:
        """A linear layer with bias, both drawn from ±1/√in_features."""
        linear = self._build(nn.Linear, in_features, out_features)
        bound = in_features**-0.5
        nn.init.uniform_(linear.weight, -bound, bound, generator=self.generator)
        nn.init.uniform_(linear.bias, -bound, bound, generator=self.generator)
        return linear

    def _build(self, layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # Without torch's own initialisation, which would draw from the global generator
        # even when the caller has brought one. (torch's skip_init does so too, and
        # loads sympy for it, which takes as long as a whole network.)
        built = layer(*args, device="meta", dtype=self.dtype, **kwargs)
        device = self.device or torch.get_default_device()
        for name, parameter in built.named_parameters():
            empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
            setattr(built, name, nn.Parameter(empty))
        return built

    def _window(self, size: int) -> tuple[int, int]:
        return (size if self.config.dimensions == 2 else 1, size)

    def _padding(self, size: int, dilation: int = 1) -> tuple[int, int]:
        rows, columns = (dilation * (n - 1) // 2 for n in self._window(size))
        return (rows, columns)


class Shares(nn.Module):
    """The softmax over splits: of groups of splits of channels, splits of channels."""

    def __init__(self, radix: int, groups: int) -> None:
        super().__init__()
        self.radix = radix
        self.groups = groups

    def forward(self, x: Float[Tensor, "n c 1 1"]) -> Float[Tensor, "n c 1 1"]:
        """Computes it, and puts the groups into each split."""
        x = x.flatten(1).unflatten(1, (self.groups, self.radix, -1))
        return x.softmax(2).transpose(1, 2).flatten(1)[:, :, None, None]


SAME = "SAME"
"""What a layer has for its padding if the size of each map decides it."""


class Conv2d(nn.Conv2d):
    """A convolution that pads as XLA's SAME does."""

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k i j"]:
        """Pads and convolves."""
        window = zip(self.kernel_size, self.stride, self.dilation, strict=True)
        rows, columns = same_padding(input, *window)
        x = nn.functional.pad(input, (*columns, *rows))
        return nn.functional.conv2d(
            *(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)
        )


class MaxPool2d(nn.MaxPool2d):
    """The maximum over a window, padded as XLA's SAME does."""

    kernel_size: Any  # pairs, here
    stride: Any

    def __init__(
        self, kernel_size: tuple[int, int], *, stride: tuple[int, int]
    ) -> None:
        super().__init__(kernel_size, stride=stride)
        self.padding: Any = SAME

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c i j"]:
        """Pools."""
        window = zip(self.kernel_size, self.stride, (1, 1), strict=True)
        rows, columns = same_padding(input, *window)
        if isinstance(input.shape[2], int) and isinstance(input.shape[3], int):
            # A last window that hangs over is padded behind: no map is copied, and the
            # winners' places are those of the map itself.
            before = rows[0], columns[0]
            return nn.functional.max_pool2d(
                input, self.kernel_size, self.stride, before, ceil_mode=True
            )
        # What torch.export and torch.fx know by a symbol only, no pool pads by.
        x = nn.functional.pad(input, (*columns, *rows), value=-float("inf"))
        return nn.functional.max_pool2d(x, self.kernel_size, self.stride)


def same_padding(
    x: Float[Tensor, "n c h w"],
    rows: tuple[int, int, int],
    columns: tuple[int, int, int],
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns what is padded before and behind rows and columns, as SAME does.

    Args:
        x: images.
        rows: size, stride and dilation of the window.
        columns: the same.
    """
    sides = []
    for length, (size, stride, dilation) in zip(
        (x.shape[2], x.shape[3]), (rows, columns), strict=True
    ):
        if size == 1:
            sides.append((0, 0))
            continue
        reach = (size - 1) * dilation
        before = (reach + 1 - stride + -length % stride) // 2
        # Behind, what no window reaches too, so that all together is known without x.
        sides.append((before, reach - before))
    return sides[0], sides[1]


class GroupNorm(nn.GroupNorm):
    """torch's, without its look at the map's size, which torch.jit.trace would note."""

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Normalises each image's groups."""
        return torch.group_norm(
            input, self.num_groups, self.weight, self.bias, self.eps
        )


class BlurPool2d(nn.Module):
    """The mean over 3x3 pixels by the weights 1-2-1 both ways (arXiv 1904.11486).

    It is the mean over 2x2 pixels of means over 2x2 pixels: no constants to carry.
    """

    def __init__(self, *, stride: int) -> None:
        super().__init__()
        self.kernel_size = (3, 3)
        self.stride = stride
        self.padding = 1

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c i j"]:
        """Pads by reflection and pools."""
        x = nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")
        x = nn.functional.avg_pool2d(x, 2, stride=1)
        return nn.functional.avg_pool2d(x, 2, stride=self.stride)


class AvgPool2dSame(nn.AvgPool2d):
    """The mean over a window that begins at each pixel; behind the rim are zeros."""

    def __init__(self, kernel_size: tuple[int, int]) -> None:
        super().__init__(kernel_size, stride=1)
        self.padding: Any = SAME

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Pads and pools."""
        rows, columns = self.kernel_size  # type: ignore[misc]  a pair, here
        x = nn.functional.pad(input, (0, columns - 1, 0, rows - 1))
        return nn.functional.avg_pool2d(x, self.kernel_size, stride=1)


class PadChannels(nn.Module):
    """The shortcut without parameters between maps of other shape (paper, option A)."""

    def __init__(self, channels: int, *, stride: int) -> None:
        super().__init__()
        self.channels = channels
        self.stride = stride

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k i j"]:
        """Subsamples and pads."""
        x = x[:, :, :: self.stride, :: self.stride]
        return nn.functional.pad(x, (0, 0, 0, 0, 0, self.channels))


class Flatten(nn.Module):
    """:func:`flatten` before a linear layer that has a weight for each position."""

    def __init__(self, features: int, *, rows: int | None, fitting: str) -> None:
        super().__init__()
        self.features = features
        self.rows = rows
        self.fitting = fitting

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n chw"]:
        """Flattens; raises ValueError, with the sizes that fit, for other maps."""
        if isinstance(x, torch.fx.Proxy):  # a graph of torch.fx has no shapes
            return flatten(x)
        _, c, h, w = x.shape
        if h * w * c != self.features or self.rows not in (None, h):
            raise ValueError(
                f"the map before the linear layer is {(c, h, w)}, {h * w * c} values "
                f"instead of {self.features}; {self.fitting}"
            )
        return flatten(x)


def split(x: Float[Tensor, "n rc h w"], radix: int) -> Float[Tensor, "n r c h w"]:
    """Neighbouring channels in so many splits."""
    return x.unflatten(1, (radix, -1))


def joined(x: Float[Tensor, "n r c h w"]) -> Float[Tensor, "n c h w"]:
    """The sum of splits."""
    return x.sum(1)


def as_row(x: Float[Tensor, "n c 1 1"]) -> Float[Tensor, "n 1 c"]:
    """One value of each channel, in a row."""
    return torch.flatten(x, 1)[:, None]


def as_map(x: Float[Tensor, "n 1 c"]) -> Float[Tensor, "n c 1 1"]:
    """A row as one value of each channel."""
    return x[:, 0, :, None, None]


def as_signal(x: Float[Tensor, "n k"]) -> Float[Tensor, "n 1 1 k"]:
    """Scores as a signal of height 1 with one channel."""
    return x[:, None, None, :]


def flatten(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n chw"]:
    """All values of an image in one row: channels, then rows, then columns."""
    return torch.flatten(x, 1)
