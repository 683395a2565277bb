"""What weighs the channels of a block's result. See ``resnet_torch/attention.py``."""

from __future__ import annotations

from resnet_onnx.layers import Layers
from resnet_spec.plan import BlockPlan


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


def split_attention(layers: Layers, plan: BlockPlan, x: str, stride: int) -> str:
    """A 3x3 convolution whose splits are weighed by channel (arXiv 2004.08955)."""
    groups, radix = layers.config.groups, layers.config.radix
    out = layers.conv(
        *("conv", x),
        stride=stride,
        dilation=plan.first_dilation,
        groups=groups * radix,
    )
    out = layers.relu("relu", layers.norm("bn0", out))
    splits = layers.split("split", out, radix)
    means = layers.avgpool("avgpool", layers.joined("joined", splits))
    weights = layers.conv("fc1", means, groups=groups, bias=True)
    weights = layers.relu("relu@2", layers.norm("bn1", weights))
    weights = layers.conv("fc2", weights, groups=groups, bias=True)
    if radix == 1:
        weights = layers.sigmoid("gate", weights)
    else:
        weights = layers.reshaped("by_group", weights, [0, groups, radix, -1])
        weights = layers.add("Softmax", "shares", weights, axis=2)
        weights = layers.add("Transpose", "by_split", weights, perm=[0, 2, 1, 3])
        weights = layers.reshaped("gate", weights, [0, -1, 1, 1])
    weighed = [
        layers.add("Mul", f"weighed.{index}", *both)
        for index, both in enumerate(
            zip(splits, layers.split("weights", weights, radix), strict=True)
        )
    ]
    return layers.joined("", weighed)


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
