"""How many parameters a network has, before there is one."""

from __future__ import annotations

from resnet_spec import attention
from resnet_spec.channels import Channels
from resnet_spec.plan import BlockPlan, stages
from resnet_spec.sizes import CONV_HEAD_CHANNELS, CONV_HEAD_POSITIONS


def weight_count(config: Channels) -> int:
    """Returns the number of parameters, those of norms and biases too.

    Args:
        config: the network.
    """
    blocks = sum(
        _branch(config, plan)
        + _shortcut(config, plan)
        + attention.weight_count(
            config.attention, plan.out_channels, config.attention_ratio
        )
        for stage in stages(config)
        for plan in stage
    )
    return _stem(config) + blocks + (_head(config) if config.include_top else 0)


def _stem(config: Channels) -> int:
    ins, outs = config.in_channels, config.stem_out
    if config.stem in ("deep", "tiered"):
        first, second = config.stem_widths
        count = _conv(config, ins, first, 3) + _norm(first)
        count += _conv(config, first, second, 3) + _norm(second)
        count += _conv(config, second, outs, 3)
    else:
        count = _conv(config, ins, outs, 7 if config.stem == "7x7" else 3)
    if config.stem_pool == "conv" and config.stage_count:
        count += _conv(config, outs, outs, 3) + _norm(outs)
    return count + _norm(outs)


def _branch(config: Channels, plan: BlockPlan) -> int:
    ins, first, inner = plan.in_channels, plan.first, plan.inner
    outs = plan.out_channels
    if config.block == "basic":
        count = _conv(config, ins, first, 3) + _conv(config, first, outs, 3)
    else:
        count = _conv(config, ins, first, 1) + _conv(config, inner, outs, 1)
        count += _split(config, inner) if config.radix else _norm(inner)
        splits = max(config.radix, 1)
        count += _conv(config, first, inner * splits, 3, groups=config.groups * splits)
    return count + _norm(first) + _norm(outs)


def _split(config: Channels, inner: int) -> int:
    """What split attention has beside its convolution."""
    every, groups = inner * config.radix, config.groups
    squeezed = attention.split_squeezed(inner, config.radix)
    weighing = squeezed * (inner // groups + 1) + every * (squeezed // groups + 1)
    return _norm(every) + _norm(squeezed) + weighing


def _shortcut(config: Channels, plan: BlockPlan) -> int:
    option, ins, outs = config.shortcut, plan.in_channels, plan.out_channels
    same = plan.stride == 1 and ins == outs
    if option in ("none", "A") or (same and option != "C"):
        return 0
    wide = option == "B3" and (plan.stride > 1 or plan.dilation > 1)
    return _conv(config, ins, outs, 3 if wide else 1) + _norm(outs)


def _head(config: Channels) -> int:
    features, classes = config.num_features, config.num_classes
    if config.head == "linear":
        return _linear(features, classes)
    if config.head == "signal":
        return _linear(features * config.signal_positions, classes)
    width = CONV_HEAD_CHANNELS
    count = _conv(config, features, width, 1)
    return count + _linear(width * CONV_HEAD_POSITIONS, width) + _linear(width, classes)


def _conv(config: Channels, ins: int, outs: int, size: int, *, groups: int = 1) -> int:
    kernel = ins // groups * size**config.dimensions
    return outs * (kernel + config.conv_bias)


def _norm(channels: int) -> int:
    return 2 * channels


def _linear(ins: int, outs: int) -> int:
    return (ins + 1) * outs
