"""Faults of convolutions, pools and what is handed to them; the weights are right."""

from __future__ import annotations

from typing import Any

from flax import nnx

from parity.mutants import blocks, layers, pools
from parity.mutants.mutant import (
    Change,
    Mutant,
    become,
    both,
    set_at,
)
from parity.on_flax import modules
from resnet_flax.layers import Conv2d


def _large_kernels(cls: type[nnx.Module]) -> Change:
    def change(model: Any) -> None:
        for path, module in modules(model):
            if isinstance(module, Conv2d) and module.kernel_size != (1, 1):
                become(path, cls)(model)

    return change


def _unstrided(path: str, cls: type[nnx.Module]) -> Change:
    return both(set_at(path, strides=(1, 1)), become(path, cls))


_SHORTCUT = "layer2.0.downsample.0"

MAPS = (
    Mutant(
        number=1,
        name="stem padded SAME",
        culprit="conv1",
        apply=set_at("conv1", padding="SAME"),
    ),
    Mutant(
        number=1,
        name="deep stem padded SAME",
        culprit="conv1.0",
        network="D",
        apply=set_at("conv1.0", padding="SAME"),
    ),
    Mutant(
        number=2,
        name="strided 3x3 padded SAME",
        culprit="layer2.0.conv1",
        apply=set_at("layer2.0.conv1", padding="SAME"),
    ),
    Mutant(
        number=2,
        name="strided 3x3 of a bottleneck padded SAME",
        culprit="layer2.0.conv2",
        network="bottleneck",
        apply=set_at("layer2.0.conv2", padding="SAME"),
    ),
    Mutant(
        number=3,
        name="max-pool padded SAME",
        culprit="maxpool",
        apply=set_at("maxpool", padding="SAME"),
    ),
    Mutant(
        number=4,
        name="max-pool in ceil mode",
        culprit="maxpool",
        apply=become("maxpool", pools.InCeilMode),
    ),
    Mutant(
        number=5,
        name="2x2 max-pool, even size",
        culprit="maxpool",
        apply=set_at("maxpool", kernel_size=(2, 2), padding=((0, 0), (0, 0))),
    ),
    Mutant(
        number=5,
        name="2x2 max-pool, odd size",
        culprit="maxpool",
        size=(65, 49),
        apply=set_at("maxpool", kernel_size=(2, 2), padding=((0, 0), (0, 0))),
    ),
    Mutant(
        number=6,
        name="average for max-pool",
        culprit="maxpool",
        apply=become("maxpool", pools.AverageForMax),
    ),
    Mutant(
        number=8,
        name="kernels H/W swapped",
        culprit="conv1",
        apply=_large_kernels(layers.Turned),
    ),
    Mutant(
        number=9,
        name="one kernel H/W swapped",
        culprit="layer2.0.conv1",
        size=(65, 49),
        apply=become("layer2.0.conv1", layers.Turned),
    ),
    Mutant(
        number=10,
        name="kernels flipped",
        culprit="conv1",
        apply=_large_kernels(layers.Flipped),
    ),
    Mutant(
        number=11,
        name="in/out swapped in a square layer",
        culprit="layer1.0.conv1",
        apply=become("layer1.0.conv1", layers.InOutSwapped),
    ),
    Mutant(
        number=12,
        name="RGB/BGR",
        culprit="output",
        apply=become("", blocks.BlueFirst),
    ),
    Mutant(
        number=25,
        name="input H/W swapped",
        culprit="output",
        apply=become("", blocks.OnItsSide),
    ),
    Mutant(
        number=25,
        name="input H/W swapped, square image",
        culprit="output",
        size=(48, 48),
        apply=become("", blocks.OnItsSide),
    ),
    Mutant(
        number=27,
        name="stride on the other conv",
        culprit="layer2.0.conv1",
        network="bottleneck",
        apply=both(
            set_at("layer2.0.conv1", strides=(2, 2)),
            set_at("layer2.0.conv2", strides=(1, 1)),
        ),
    ),
    Mutant(
        number=27,
        name="stride on the other conv of a basic block",
        culprit="layer2.0.conv1",
        apply=both(
            set_at("layer2.0.conv1", strides=(1, 1)),
            set_at("layer2.0.conv2", strides=(2, 2)),
        ),
    ),
    Mutant(
        number=28,
        name="average-pooled shortcut",
        culprit=_SHORTCUT,
        apply=_unstrided(_SHORTCUT, layers.Pooled),
    ),
    Mutant(
        number=28,
        name="strided shortcut where it is pooled",
        culprit=_SHORTCUT,
        network="D",
        apply=become(_SHORTCUT, pools.Subsampled),
    ),
    Mutant(
        number=28,
        name="pooled shortcut counts what hangs over the rim",
        culprit=_SHORTCUT,
        network="D",
        size=(65, 49),
        apply=become(_SHORTCUT, pools.CountsWhatHangsOver),
    ),
    Mutant(
        number=29,
        name="shortcut at odd offset",
        culprit=_SHORTCUT,
        apply=become(_SHORTCUT, layers.AtOddOffset),
    ),
    Mutant(
        number=29,
        name="shortcut without parameters at odd offset",
        culprit="layer2.0.downsample",
        network="A",
        apply=become("layer2.0.downsample", layers.PaddedAtOddOffset),
    ),
    Mutant(
        number=29,
        name="shortcut without parameters pads in front",
        culprit="layer2.0.downsample",
        network="A",
        apply=become("layer2.0.downsample", layers.PaddedInFront),
    ),
    Mutant(
        number=35,
        name="fixed 7x7 average pool",
        culprit="avgpool",
        size=(72, 64),
        apply=become("avgpool", pools.Fixed7x7),
    ),
    Mutant(
        number=36,
        name="max for global average",
        culprit="avgpool",
        apply=become("avgpool", pools.GlobalMax),
    ),
    Mutant(
        number=36,
        name="sum for global average",
        culprit="avgpool",
        apply=become("avgpool", pools.GlobalSum),
    ),
    Mutant(
        number=37,
        name="order of groups",
        culprit="layer1.0.conv2",
        network="bottleneck",
        apply=become("layer1.0.conv2", layers.GroupsPermuted),
    ),
    Mutant(
        number=37,
        name="channels of groups interleaved",
        culprit="layer1.0.conv2",
        network="bottleneck",
        apply=become("layer1.0.conv2", layers.GroupsInterleaved),
    ),
    Mutant(
        number=68,
        name="dilation 2",
        culprit="layer1.0.conv2",
        apply=set_at("layer1.0.conv2", kernel_dilation=(2, 2), padding=2),
    ),
    Mutant(
        number=38,
        name="fc bias dropped",
        culprit="fc",
        apply=become("fc", layers.LinearWithoutBias),
    ),
    Mutant(
        number=61,
        name="NHWC flatten order before a convolutional head",
        culprit="flatten",
        network="conv head",
        size=(12, 16),
        apply=become("flatten", layers.FlattenedNHWC),
    ),
    Mutant(
        number=61,
        name="NHWC flatten order before a signal head",
        culprit="flatten",
        network="signal",
        size=(1, 64),
        apply=become("flatten", layers.FlattenedNHWC),
    ),
)
"""Faults of convolutions, pools and what is handed to them."""
