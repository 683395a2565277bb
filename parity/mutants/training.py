"""Faults that only training shows: statistics, and gradients."""

from __future__ import annotations

from functools import partial

import numpy as np

from parity.mutants import layers, norms, pools
from parity.mutants.mutant import at, everywhere
from resnet_flax.layers import BatchNorm2d, ReLU

_GATES = ("G1 training isolated", "G1 training")
_at, _everywhere = partial(at, gates=_GATES), partial(everywhere, gates=_GATES)


def _far_from_zero(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gives the first norm maps of mean 1000 and deviation about 1.

    Images of mean 1000 would not: zeros around them put values at the rim so far off
    that the deviation is large too.
    """
    bias = state["conv1.bias"]
    return state | {"conv1.bias": bias + bias.dtype.type(1000)}


TRAINING = (
    _everywhere(
        43, "biased running variance", "bn1", BatchNorm2d, norms.BiasedRunningVariance
    ),
    _at(
        43,
        "biased running variance in one layer",
        "layer1.0.bn2",
        norms.BiasedRunningVariance,
        network="biased",
        size=(16, 12),
    ),
    _everywhere(
        43,
        "normalised by the unbiased variance",
        "bn1",
        BatchNorm2d,
        norms.UnbiasedVariance,
    ),
    *(
        _everywhere(
            44, f"momentum {momentum}", "bn1", BatchNorm2d, {"momentum": momentum}
        )
        for momentum in (0.99, 0.9, 0.01)
    ),
    _at(44, "momentum 0.9 in one layer", "layer2.0.downsample.1", {"momentum": 0.9}),
    _at(44, "batches not counted", "layer1.0.bn2", norms.Uncounted),
    at(
        45,
        "fast variance",
        "bn1",
        norms.FastVariance,
        gates=("G1 training isolated", "G2 training isolated"),
        network="biased",
        size=(16, 12),
        state=_far_from_zero,
    ),
    _everywhere(
        46,
        "no gradient through batch statistics",
        "bn1",
        BatchNorm2d,
        norms.ConstantStatistics,
    ),
    everywhere(
        47,
        "gradient ½ at 0 for ReLU",
        "relu",
        ReLU,
        layers.HalfAtZero,
        gates=_GATES[:1],
        network="biased",
        size=(16, 12),
    ),
    at(
        48,
        "max-pool shares the gradient of equal maxima",
        "maxpool",
        pools.SharedAtTies,
        gates=_GATES[:1],
    ),
    at(
        48,
        "max-pool gives the gradient to the last of equal maxima",
        "maxpool",
        pools.LastAtTies,
        gates=_GATES[:1],
    ),
)
"""Mutants of training mode; all but one of them pass every gate of evaluation."""
