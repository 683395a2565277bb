"""What weighs the channels of a block's result. See ``resnet_torch/attention.py``."""

from __future__ import annotations

from resnet_onnx.layers import Layers


def squeeze_excite(layers: Layers, x: str) -> str:
    """Weighs each channel by what all their means say (arXiv 1709.01507)."""
    out = layers.conv("fc1", layers.avgpool("avgpool", x), bias=True)
    out = layers.conv("fc2", layers.relu("relu", out), bias=True)
    return layers.add("Mul", "", x, layers.sigmoid("gate", out))


def efficient_attention(layers: Layers, x: str) -> str:
    """Weighs each channel by the means of its neighbours (arXiv 1910.03151)."""
    out = layers.reshaped("as_row", layers.avgpool("avgpool", x), [0, 1, -1])
    out = layers.sigmoid("gate", layers.conv_along("conv", out))
    out = layers.reshaped("as_map", out, [0, -1, 1, 1])
    return layers.add("Mul", "", x, out)


KINDS = {"se": squeeze_excite, "eca": efficient_attention}


def attention(layers: Layers, x: str) -> str:
    """Adds what weighs the channels, if anything does."""
    kind = layers.config.attention
    if kind == "none":
        return x
    if kind not in KINDS:
        raise ValueError(
            f"attention {kind!r} has no graph; resnet_onnx.attention.KINDS is its place"
        )
    return KINDS[kind](layers, x)
