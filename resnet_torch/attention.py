"""What weighs the channels of a block's result, each kind a class of its own.

Read beside ``resnet_flax/attention.py``: they are one text, and a test holds them to
it. A kind has its layers with weights in ``resnet_spec.attention.ATTENTION``.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from resnet_spec.attention import neighbours, split_squeezed, squeezed
from resnet_spec.plan import BlockPlan
from resnet_torch.dropping import drop_block
from resnet_torch.layers import Layers, as_map, as_row, joined, split


class SqueezeExcite(nn.Module):
    """Weighs each channel by what all their means say (arXiv 1709.01507)."""

    def __init__(self, layers: Layers, channels: int) -> None:
        super().__init__()
        inner = squeezed(channels, layers.config.attention_ratio)
        self.avgpool = layers.avgpool()
        self.fc1 = layers.conv(channels, inner, 1, bias=True)
        self.relu = layers.relu()
        self.fc2 = layers.conv(inner, channels, 1, bias=True)
        self.gate = layers.sigmoid()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Weighs."""
        out = self.relu(self.fc1(self.avgpool(x)))
        return x * self.gate(self.fc2(out))


class EfficientAttention(nn.Module):
    """Weighs each channel by the means of its neighbours (arXiv 1910.03151)."""

    def __init__(self, layers: Layers, channels: int) -> None:
        super().__init__()
        self.avgpool = layers.avgpool()
        self.conv = layers.conv_along(neighbours(channels))
        self.gate = layers.sigmoid()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Weighs."""
        out = self.conv(as_row(self.avgpool(x)))
        return x * as_map(self.gate(out))


class SplitAttention(nn.Module):
    """A 3x3 convolution whose splits are weighed by channel (arXiv 2004.08955).

    It has the norm and the rectifier behind it inside.
    """

    def __init__(self, layers: Layers, plan: BlockPlan, stride: int) -> None:
        super().__init__()
        channels, groups, radix = plan.inner, layers.config.groups, layers.config.radix
        inner = split_squeezed(channels, radix)
        self.radix = radix
        self.conv = layers.conv(
            plan.first,
            channels * radix,
            3,
            stride=stride,
            dilation=plan.first_dilation,
            groups=groups * radix,
        )
        self.bn0 = layers.norm(channels * radix)
        self.drop_block = drop_block(layers, plan)
        self.relu = layers.relu()
        self.avgpool = layers.avgpool()
        self.fc1 = layers.conv(channels, inner, 1, groups=groups, bias=True)
        self.bn1 = layers.norm(inner)
        self.fc2 = layers.conv(inner, channels * radix, 1, groups=groups, bias=True)
        several = radix > 1
        self.gate = layers.shares(radix, groups) if several else layers.sigmoid()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k i j"]:
        """Convolves and weighs."""
        out = self.bn0(self.conv(x))
        out = out if self.drop_block is None else self.drop_block(out)
        splits = split(self.relu(out), self.radix)
        means = self.avgpool(joined(splits))
        weights = self.fc2(self.relu(self.bn1(self.fc1(means))))
        return joined(splits * split(self.gate(weights), self.radix))


KINDS = {"se": SqueezeExcite, "eca": EfficientAttention}


def attention(layers: Layers, channels: int) -> nn.Module | None:
    """Makes what weighs the channels; ``None`` if nothing does."""
    kind = layers.config.attention
    return None if kind == "none" else KINDS[kind](layers, channels)
