"""The blocks of a residual network, and their parts. See ``resnet_torch/blocks.py``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from resnet_onnx.attention import attention, split_attention
from resnet_onnx.layers import Layers
from resnet_spec.plan import BlockPlan


def basic_block(layers: Layers, plan: BlockPlan, x: str) -> str:
    """Two 3x3 convolutions and a shortcut (paper, figure 5, left)."""
    aa = anti_alias(layers, plan, plan.stride)
    out = layers.conv(
        *("conv1", x),
        stride=1 if aa else plan.stride,
        dilation=plan.first_dilation,
    )
    out = layers.relu("relu", layers.norm("bn1", out))
    out = out if aa is None else aa("aa", out)
    out = layers.norm("bn2", layers.conv("conv2", out, dilation=plan.dilation))
    return layers.relu("", added(layers, plan, out, x))


def bottleneck(layers: Layers, plan: BlockPlan, x: str) -> str:
    """1x1, 3x3 and 1x1 convolutions and a shortcut (paper, figure 5, right)."""
    config, stride = layers.config, plan.stride
    stride1, stride2 = (stride, 1) if config.stride_on == "1x1" else (1, stride)
    aa = anti_alias(layers, plan, stride2)
    out = layers.conv("conv1", x, stride=stride1)
    out = layers.relu("relu", layers.norm("bn1", out))
    stride2 = 1 if aa else stride2
    before = config.anti_alias == "avd_first"
    out = aa("avd_first", out) if aa and before else out
    if config.radix:
        out = split_attention(layers.inside("conv2"), plan, out, stride2)
    else:
        out = layers.conv(
            *("conv2", out),
            stride=stride2,
            dilation=plan.first_dilation,
            groups=config.groups,
        )
        out = layers.relu("relu@2", layers.norm("bn2", out))
    out = aa("aa", out) if aa and not before else out
    out = layers.norm("bn3", layers.conv("conv3", out))
    return layers.relu("", added(layers, plan, out, x))


BLOCKS = {"basic": basic_block, "bottleneck": bottleneck}


def added(layers: Layers, plan: BlockPlan, out: str, x: str) -> str:
    """Weighs the channels of a block's branch, and adds what stands beside it."""
    out = attention(layers.inside("se"), out)
    if layers.config.shortcut == "none":
        return out
    return layers.add("Add", "sum", out, shortcut(layers, plan, x))


def shortcut(layers: Layers, plan: BlockPlan, x: str) -> str:
    """Adds what stands beside a block, or returns what the block was given."""
    option, stride = layers.config.shortcut, plan.stride
    in_channels, out_channels = plan.in_channels, plan.out_channels
    if stride == 1 and in_channels == out_channels and option != "C":
        return x
    if option == "A":
        more = out_channels - in_channels
        return layers.pad_channels("downsample", x, more, stride=stride)
    row = layers.inside("downsample")
    if option == "D":  # the pool sees every pixel; a strided 1x1 sees one in four
        finer = stride == 1 and plan.dilation > 1
        x = row.pool_same("0", x) if finer else row.pool_down("0", x, stride)
        return row.norm("2", row.conv("1", x))
    wide = option == "B3" and (stride > 1 or plan.dilation > 1)
    x = row.conv("0", x, stride=stride, dilation=plan.first_dilation if wide else 1)
    return row.norm("1", x)


def anti_alias(
    layers: Layers, plan: BlockPlan, stride: int
) -> Callable[[str, str], str] | None:
    """Returns what halves a map instead of a convolution; ``None`` if that does."""
    option = layers.config.anti_alias
    if option == "blur" and (stride > 1 or plan.first_dilation != plan.dilation):
        return partial(layers.blur, stride=stride)
    if option in ("avd", "avd_first") and stride > 1:
        return partial(layers.average_around, stride=stride)
    if option == "average" and stride > 1:
        return partial(layers.average, width=stride)
    return None
