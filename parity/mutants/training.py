"""Faults that only training shows: statistics, and gradients."""

from __future__ import annotations

import numpy as np

from parity.mutants import layers, norms, pools
from parity.mutants.mutant import Mutant, all_become, become, set_all, set_at
from resnet_flax.layers import BatchNorm2d, ReLU

_GATES = ("G1 training isolated", "G1 training")


def _far_from_zero(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gives the first norm maps of mean 1000 and deviation about 1.

    Images of mean 1000 would not: zeros around them put values at the rim so far off
    that the deviation is large too.
    """
    bias = state["conv1.bias"]
    return state | {"conv1.bias": bias + bias.dtype.type(1000)}


TRAINING = (
    Mutant(
        number=43,
        name="biased running variance",
        gates=_GATES,
        culprit="bn1",
        apply=all_become(BatchNorm2d, norms.BiasedRunningVariance),
    ),
    Mutant(
        number=43,
        name="biased running variance in one layer",
        gates=_GATES,
        culprit="layer1.0.bn2",
        network="biased",
        size=(16, 12),
        apply=become("layer1.0.bn2", norms.BiasedRunningVariance),
    ),
    Mutant(
        number=43,
        name="normalised by the unbiased variance",
        gates=_GATES,
        culprit="bn1",
        apply=all_become(BatchNorm2d, norms.UnbiasedVariance),
    ),
    *(
        Mutant(
            number=44,
            name=f"momentum {momentum}",
            gates=_GATES,
            culprit="bn1",
            apply=set_all(BatchNorm2d, momentum=momentum),
        )
        for momentum in (0.99, 0.9, 0.01)
    ),
    Mutant(
        number=44,
        name="momentum 0.9 in one layer",
        gates=_GATES,
        culprit="layer2.0.downsample.1",
        apply=set_at("layer2.0.downsample.1", momentum=0.9),
    ),
    Mutant(
        number=44,
        name="batches not counted",
        gates=_GATES,
        culprit="layer1.0.bn2",
        apply=become("layer1.0.bn2", norms.Uncounted),
    ),
    Mutant(
        number=45,
        name="fast variance",
        gates=("G1 training isolated", "G2 training isolated"),
        culprit="bn1",
        network="biased",
        size=(16, 12),
        state=_far_from_zero,
        apply=become("bn1", norms.FastVariance),
    ),
    Mutant(
        number=46,
        name="no gradient through batch statistics",
        gates=_GATES,
        culprit="bn1",
        apply=all_become(BatchNorm2d, norms.ConstantStatistics),
    ),
    Mutant(
        number=47,
        name="gradient ½ at 0 for ReLU",
        gates=_GATES[:1],
        culprit="relu",
        network="biased",
        size=(16, 12),
        apply=all_become(ReLU, layers.HalfAtZero),
    ),
    Mutant(
        number=48,
        name="max-pool shares the gradient of equal maxima",
        gates=_GATES[:1],
        culprit="maxpool",
        apply=become("maxpool", pools.SharedAtTies),
    ),
    Mutant(
        number=48,
        name="max-pool gives the gradient to the last of equal maxima",
        gates=_GATES[:1],
        culprit="maxpool",
        apply=become("maxpool", pools.LastAtTies),
    ),
)
"""Mutants of training mode; all but one of them pass every gate of evaluation."""
