"""Faults of what only some networks have: attention, group norms, blurs, stems."""

from __future__ import annotations

from parity.mutants import attentions, splits
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
)
"""Faults of what only some networks have."""
