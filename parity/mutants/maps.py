"""Faults of convolutions, pools and what is handed to them; the weights are right."""

from __future__ import annotations

from typing import Any

from flax import nnx

from parity.mutants import blocks, layers, pools
from parity.mutants.mutant import Change, Mutant, at, become, both, set_at
from parity.weights.flax_state import modules
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
_TWO_BY_TWO = {"kernel_size": (2, 2), "padding": ((0, 0), (0, 0))}

MAPS = (
    at(1, "stem padded SAME", "conv1", {"padding": "SAME"}),
    at(1, "deep stem padded SAME", "conv1.0", {"padding": "SAME"}, network="D"),
    at(2, "strided 3x3 padded SAME", "layer2.0.conv1", {"padding": "SAME"}),
    at(
        2,
        "strided 3x3 of a bottleneck padded SAME",
        "layer2.0.conv2",
        {"padding": "SAME"},
        network="bottleneck",
    ),
    at(3, "max-pool padded SAME", "maxpool", {"padding": "SAME"}),
    at(4, "max-pool in ceil mode", "maxpool", pools.InCeilMode),
    at(5, "2x2 max-pool, even size", "maxpool", _TWO_BY_TWO),
    at(5, "2x2 max-pool, odd size", "maxpool", _TWO_BY_TWO, size=(65, 49)),
    at(6, "average for max-pool", "maxpool", pools.AverageForMax),
    Mutant(
        number=8,
        name="kernels H/W swapped",
        culprit="conv1",
        apply=_large_kernels(layers.Turned),
    ),
    at(9, "one kernel H/W swapped", "layer2.0.conv1", layers.Turned, size=(65, 49)),
    Mutant(
        number=10,
        name="kernels flipped",
        culprit="conv1",
        apply=_large_kernels(layers.Flipped),
    ),
    at(11, "in/out swapped in a square layer", "layer1.0.conv1", layers.InOutSwapped),
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
    at(
        28,
        "strided shortcut where it is pooled",
        _SHORTCUT,
        pools.Subsampled,
        network="D",
    ),
    at(
        28,
        "pooled shortcut counts what hangs over the rim",
        _SHORTCUT,
        pools.CountsWhatHangsOver,
        network="D",
        size=(65, 49),
    ),
    at(29, "shortcut at odd offset", _SHORTCUT, layers.AtOddOffset),
    at(
        29,
        "shortcut without parameters at odd offset",
        "layer2.0.downsample",
        layers.PaddedAtOddOffset,
        network="A",
    ),
    at(
        29,
        "shortcut without parameters pads in front",
        "layer2.0.downsample",
        layers.PaddedInFront,
        network="A",
    ),
    at(35, "fixed 7x7 average pool", "avgpool", pools.Fixed7x7, size=(72, 64)),
    at(36, "max for global average", "avgpool", pools.GlobalMax),
    at(36, "sum for global average", "avgpool", pools.GlobalSum),
    at(
        37,
        "order of groups",
        "layer1.0.conv2",
        layers.GroupsPermuted,
        network="bottleneck",
    ),
    at(
        37,
        "channels of groups interleaved",
        "layer1.0.conv2",
        layers.GroupsInterleaved,
        network="bottleneck",
    ),
    at(68, "dilation 2", "layer1.0.conv2", {"kernel_dilation": (2, 2), "padding": 2}),
    at(38, "fc bias dropped", "fc", layers.LinearWithoutBias),
    at(
        61,
        "NHWC flatten order before a convolutional head",
        "flatten",
        layers.FlattenedNHWC,
        network="conv head",
        size=(12, 16),
    ),
    at(
        61,
        "NHWC flatten order before a signal head",
        "flatten",
        layers.FlattenedNHWC,
        network="signal",
        size=(1, 64),
    ),
)
"""Faults of convolutions, pools and what is handed to them."""
