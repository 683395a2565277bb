"""The blocks of a residual network, and the parts that they are made of.

Read beside ``resnet_torch/blocks.py``: they are one text, and a test holds them to it.
"""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Float

from resnet_flax.attention import SplitAttention, attention
from resnet_flax.dropping import drop_block, drop_path
from resnet_flax.layers import Layers, Sequential
from resnet_spec.plan import BlockPlan


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut (paper, figure 5, left)."""

    def __init__(self, layers: Layers, plan: BlockPlan) -> None:
        super().__init__()
        config, width = layers.config, plan.out_channels
        self.aa = anti_alias(layers, plan, plan.stride)
        self.conv1 = layers.conv(
            plan.in_channels,
            plan.first,
            3,
            stride=1 if self.aa else plan.stride,
            dilation=plan.first_dilation,
        )
        self.bn1 = layers.norm(plan.first)
        self.drop_block = drop_block(layers, plan)
        self.relu = layers.relu()
        self.conv2 = layers.conv(plan.first, width, 3, dilation=plan.dilation)
        self.bn2 = layers.norm(width, zero_init=config.zero_init_residual)
        self.se = attention(layers, width)
        self.drop_path = drop_path(layers, plan)
        self.downsample = shortcut(layers, plan)
        self.residual = config.shortcut != "none"

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n i j k"]:
        """Computes relu(F(x) + shortcut(x))."""
        out = self.bn1(self.conv1(x))
        out = out if self.drop_block is None else self.drop_block(out)
        out = self.relu(out)
        out = out if self.aa is None else self.aa(out)
        out = self.bn2(self.conv2(out))
        return self.relu(added(self, out, x))


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (paper, figure 5, right)."""

    def __init__(self, layers: Layers, plan: BlockPlan) -> None:
        super().__init__()
        config, inner = layers.config, plan.inner
        stride = plan.stride
        # Both load the same weights without complaint and compute different numbers.
        stride1, stride2 = (stride, 1) if config.stride_on == "1x1" else (1, stride)
        aa = anti_alias(layers, plan, stride2)
        before = config.anti_alias == "avd_first"
        self.avd_first, self.aa = (aa, None) if before else (None, aa)
        stride2 = 1 if aa else stride2
        self.conv1 = layers.conv(plan.in_channels, plan.first, 1, stride=stride1)
        self.bn1 = layers.norm(plan.first)
        if config.radix:
            self.conv2, self.bn2 = SplitAttention(layers, plan, stride2), None
        else:
            self.conv2 = layers.conv(
                plan.first,
                inner,
                3,
                stride=stride2,
                dilation=plan.first_dilation,
                groups=config.groups,
            )
            self.bn2 = layers.norm(inner)
            self.drop_block = drop_block(layers, plan)
        self.conv3 = layers.conv(inner, plan.out_channels, 1)
        self.bn3 = layers.norm(plan.out_channels, zero_init=config.zero_init_residual)
        self.relu = layers.relu()
        self.se = attention(layers, plan.out_channels)
        self.drop_path = drop_path(layers, plan)
        self.downsample = shortcut(layers, plan)
        self.residual = config.shortcut != "none"

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n i j k"]:
        """Computes relu(F(x) + shortcut(x))."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = out if self.avd_first is None else self.avd_first(out)
        out = self.conv2(out)
        if self.bn2 is not None:
            out = self.bn2(out)
            out = out if self.drop_block is None else self.drop_block(out)
            out = self.relu(out)
        out = out if self.aa is None else self.aa(out)
        out = self.bn3(self.conv3(out))
        return self.relu(added(self, out, x))


BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}


def added(
    block: BasicBlock | Bottleneck,
    out: Float[Array, "n i j k"],
    x: Float[Array, "n h w c"],
) -> Float[Array, "n i j k"]:
    """Weighs the channels of a block's branch, and adds what stands beside it."""
    out = out if block.se is None else block.se(out)
    out = out if block.drop_path is None else block.drop_path(out)
    if block.residual:
        out += x if block.downsample is None else block.downsample(x)
    return out


def shortcut(layers: Layers, plan: BlockPlan) -> nnx.Module | None:
    """Makes what stands beside a block; ``None`` is the identity."""
    option, stride = layers.config.shortcut, plan.stride
    in_channels, out_channels = plan.in_channels, plan.out_channels
    same = stride == 1 and in_channels == out_channels
    if option == "none" or (same and option != "C"):
        return None
    if option == "A":
        return layers.pad_channels(out_channels - in_channels, stride=stride)
    norm = layers.norm(out_channels)
    if option == "D":  # the pool sees every pixel; a strided 1x1 sees one in four
        conv = layers.conv(in_channels, out_channels, 1)
        finer = stride == 1 and plan.dilation > 1
        pool = layers.pool_same() if finer else layers.pool_down(stride)
        return Sequential(pool, conv, norm)
    wide = option == "B3" and (stride > 1 or plan.dilation > 1)
    conv = layers.conv(
        in_channels,
        out_channels,
        3 if wide else 1,
        stride=stride,
        dilation=plan.first_dilation if wide else 1,
    )
    return Sequential(conv, norm)


def anti_alias(layers: Layers, plan: BlockPlan, stride: int) -> nnx.Module | None:
    """Makes what halves a map instead of a convolution; ``None`` if that does."""
    option = layers.config.anti_alias
    # A map that a dilation keeps is blurred all the same.
    if option == "blur" and (stride > 1 or plan.first_dilation != plan.dilation):
        return layers.blur(stride)
    if option in ("avd", "avd_first") and stride > 1:
        return layers.average_around(stride)
    return layers.average(stride) if option == "average" and stride > 1 else None
