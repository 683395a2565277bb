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
from torch.nn.utils import skip_init

from resnet_spec import ResNetConfig


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Makes every layer of one network: shapes from the caller, the rest from here.

    All parameters are drawn as torchvision draws them (kernels: He et al. 2015, arXiv
    1502.01852, section 2.2, by the fan-out; the linear layer: torch's default).

    Args:
        config: the network's settings.
        generator: source of all random numbers; torch's global one if ``None``.
    """

    config: ResNetConfig
    generator: torch.Generator | None = None

    def conv(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
    ) -> nn.Conv2d:
        """A square convolution that keeps the map's size at stride 1."""
        conv = _build(
            nn.Conv2d,
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=_padding(kernel_size, dilation),
            dilation=dilation,
            groups=groups,
            bias=False,
        )
        nn.init.kaiming_normal_(
            conv.weight, mode="fan_out", nonlinearity="relu", generator=self.generator
        )
        return conv

    def norm(self, channels: int, *, zero_init: bool = False) -> nn.BatchNorm2d:
        """Batch normalisation; with ``zero_init`` its scale starts at zero."""
        norm = nn.BatchNorm2d(
            channels, eps=self.config.norm_eps, momentum=self.config.norm_momentum
        )
        if zero_init:
            nn.init.zeros_(norm.weight)
        return norm

    def relu(self) -> nn.ReLU:
        """The rectifier; in place, so that it holds no map of its own."""
        return nn.ReLU(inplace=True)

    def maxpool(self, kernel_size: int, *, stride: int) -> nn.MaxPool2d:
        """The maximum over a window; padded positions never win."""
        padding = _padding(kernel_size)
        return nn.MaxPool2d(kernel_size, stride=stride, padding=padding)

    def avgpool(self) -> nn.AdaptiveAvgPool2d:
        """The mean over the whole map, whatever its size."""
        return nn.AdaptiveAvgPool2d((1, 1))

    def linear(self, in_features: int, out_features: int) -> nn.Linear:
        """A linear layer with bias, both drawn from ±1/√in_features."""
        linear = _build(nn.Linear, in_features, out_features)
        bound = in_features**-0.5
        nn.init.uniform_(linear.weight, -bound, bound, generator=self.generator)
        nn.init.uniform_(linear.bias, -bound, bound, generator=self.generator)
        return linear


def flatten(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n chw"]:
    """All values of an image in one row: channels, then rows, then columns."""
    return torch.flatten(x, 1)


def _padding(kernel_size: int, dilation: int = 1) -> int:
    return dilation * (kernel_size - 1) // 2


def _build(layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    # Without torch's own initialisation, which would draw from the global generator
    # even when the caller has brought one. The device stays the one in force.
    device = torch.get_default_device()
    return skip_init(layer, *args, device=device, **kwargs)  # type: ignore[arg-type]
