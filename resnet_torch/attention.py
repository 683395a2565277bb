"""What weighs the channels of a block's result, each kind a class of its own.

Read beside ``resnet_flax/attention.py``: they are one text, and a test holds them to
it. A kind has its layers with weights in ``resnet_spec.attention.ATTENTION``.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from resnet_spec.attention import neighbours, squeezed
from resnet_torch.layers import Layers, as_map, as_row


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


KINDS = {"se": SqueezeExcite, "eca": EfficientAttention}


def attention(layers: Layers, channels: int) -> nn.Module | None:
    """Makes what weighs the channels; ``None`` if nothing does."""
    kind = layers.config.attention
    return None if kind == "none" else KINDS[kind](layers, channels)
