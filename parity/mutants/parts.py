"""Faults of what only some networks have: attention, group norms, stems, drops."""

from __future__ import annotations

from parity.mutants import attentions, drops, layers, pools, splits
from parity.mutants.mutant import at, everywhere
from resnet_flax.layers import GroupNorm

PARTS = (
    at(
        69,
        "half of the channels that attention squeezes",
        "layer1.0.se",
        attentions.ReducedTwice,
        network="SE",
    ),
    at(
        70,
        "attention without its gate",
        "layer1.0.se",
        attentions.WithoutGate,
        network="SE",
    ),
    at(
        70,
        "hard sigmoid for sigmoid",
        "layer2.0.se.gate",
        attentions.HardSigmoid,
        network="SE",
    ),
    at(
        71,
        "attention behind the addition",
        "layer1.0",
        attentions.BehindAddition,
        network="SE",
    ),
    at(
        72,
        "three neighbours for five",
        "layer1.0.se.conv",
        attentions.ThreeNeighbours,
        network="ECA",
    ),
    at(
        72,
        "neighbours in a ring",
        "layer1.0.se.conv",
        attentions.Circular,
        network="ECA",
    ),
    at(
        73,
        "blur one pixel further",
        "layer2.0.aa",
        attentions.OnePixelFurther,
        network="blur",
    ),
    at(
        73,
        "blur padded with zeros",
        "layer2.0.aa",
        attentions.PaddedWithZeros,
        network="blur",
    ),
    at(
        74,
        "blurred before ReLU",
        "layer2.0",
        attentions.BlurredBeforeRelu,
        network="blur",
    ),
    everywhere(
        75, "half as many groups", "bn1", GroupNorm, {"num_groups": 2}, network="group"
    ),
    at(
        75, "group norm over the batch", "bn1", attentions.OverTheBatch, network="group"
    ),
    at(
        76,
        "unbiased variance in groups",
        "layer2.0.bn2",
        attentions.UnbiasedInGroups,
        network="group",
    ),
    at(
        77,
        "the convolution that halves the stem's map padded SAME",
        "maxpool.0",
        {"padding": "SAME"},
        network="RS",
    ),
    at(
        78,
        "3x3 shortcut padded SAME",
        "layer2.0.downsample.0",
        {"padding": "SAME"},
        network="RS",
    ),
    at(
        79,
        "sigmoid for the softmax over splits",
        "layer1.0.conv2.gate",
        splits.SigmoidForShares,
        network="split",
    ),
    at(
        79,
        "splits of groups for groups of splits",
        "layer1.0.conv2.gate",
        splits.GroupsInSplits,
        network="split",
    ),
    at(
        80,
        "splits added without their weights",
        "layer1.0.conv2",
        splits.WithoutWeights,
        network="split",
    ),
    at(
        81,
        "the mean that halves a map before the convolution",
        "layer2.0",
        splits.AveragedBefore,
        network="split",
    ),
    at(
        82,
        "the rim of that mean without its zeros",
        "layer2.0.aa",
        splits.WithoutZeros,
        network="split",
    ),
    at(
        71,
        "attention behind a bottleneck's addition",
        "layer1.0",
        attentions.BehindBottlenecksAddition,
        network="ECA",
    ),
    at(
        74,
        "a bottleneck blurred before ReLU",
        "layer2.0",
        attentions.BottleneckBlurredBeforeRelu,
        network="blurred bottleneck",
    ),
    at(
        83,
        "tiered stem padded SAME",
        "conv1.0",
        {"padding": "SAME"},
        network="tiered",
    ),
    at(
        84,
        "a wide stem's second ReLU missing",
        "conv1.5",
        layers.NoReLU,
        network="wide",
    ),
    at(
        85,
        "one pixel of four for their mean",
        "layer2.0.aa",
        pools.Subsampled,
        network="average",
    ),
    at(
        86,
        "a first convolution reduced twice",
        "layer1.0.conv1",
        layers.HalfOfItsChannels,
        network="reduced",
    ),
    at(
        87,
        "a branch scaled by its chance in evaluation",
        "layer2.0.drop_path",
        drops.ScaledPath,
        network="drops",
    ),
    at(
        87,
        "another share of images that pass by",
        "layer2.0.drop_path",
        {"drop_prob": 0.3},
        gates=("G1 training",),
        network="drops",
    ),
    at(
        88,
        "a map scaled by its chance in evaluation",
        "layer3.0.drop_block",
        drops.ScaledBlock,
        network="drops",
    ),
    at(
        88,
        "another share of a map that is dropped",
        "layer3.0.drop_block",
        {"drop_prob": 0.3},
        gates=("G1 training",),
        network="drops",
    ),
)
"""Faults of what only some networks have."""
