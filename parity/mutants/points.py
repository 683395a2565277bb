"""Faults of norms, rectifiers and blocks; the weights are right."""

from __future__ import annotations

from typing import Any

import numpy as np

from parity.mutants import blocks, layers, norms
from parity.mutants.mutant import Change, Mutant, at, become, both, everywhere
from parity.weights.flax_state import modules
from resnet_flax.layers import BatchNorm2d, ReLU


def _others_statistics(first: str, second: str) -> Change:
    def change(model: Any) -> None:
        found = dict(modules(model))
        both(*(become(path, norms.WithOthersStatistics) for path in (first, second)))(
            model
        )
        for one, other in ((first, second), (second, first)):
            norm: Any = found[other]
            others = (norm.mean, norm.var)
            values = tuple(tuple(np.asarray(v[...]).tolist()) for v in others)
            found[one].others = values  # type: ignore[attr-defined]

    return change


POINTS = (
    *(
        everywhere(number, f"eps {eps:.0e}", "bn1", BatchNorm2d, {"eps": eps})
        for number, eps in ((13, 1e-3), (14, 1e-4), (15, 1e-6))
    ),
    everywhere(16, "eps outside the root", "bn1", BatchNorm2d, norms.EpsOutsideRoot),
    at(17, "eps wrong in one layer", "layer2.0.bn2", {"eps": 1e-6}),
    at(
        17,
        "eps a hundredth off in one layer",
        "layer2.0.downsample.1",
        {"eps": 1.01e-5},
    ),
    Mutant(
        number=18,
        name="two layers' BN statistics swapped",
        culprit="layer1.0.bn1",
        apply=_others_statistics("layer1.0.bn1", "layer1.0.bn2"),
    ),
    everywhere(19, "scale/bias swapped", "bn1", BatchNorm2d, norms.ScaleBiasSwapped),
    at(20, "mean/var swapped", "layer1.0.bn2", norms.MeanVarSwapped),
    everywhere(21, "divided by var", "bn1", BatchNorm2d, norms.ByVariance),
    everywhere(22, "running mean ignored", "bn1", BatchNorm2d, norms.WithoutMean),
    everywhere(
        23, "batch statistics at eval", "bn1", BatchNorm2d, norms.AlwaysBatchStatistics
    ),
    at(24, "shortcut BN without bias", "layer2.0.downsample.1", norms.WithoutBias),
    at(26, "two convs of a block swapped", "layer1.0", blocks.ConvsExchanged),
    at(26, "two norms of a block swapped", "layer1.0", blocks.NormsExchanged),
    at(30, "one residual missing", "layer1.0", {"residual": False}),
    at(30, "one projected residual missing", "layer2.0", {"residual": False}),
    at(30, "one residual halved with its branch", "layer2.0", blocks.HalvedResidual),
    at(31, "ReLU before the addition", "layer1.0", blocks.ReluBeforeAddition),
    at(32, "last ReLU missing", "layer2.0", blocks.WithoutLastRelu),
    at(
        32,
        "a bottleneck's middle ReLU missing",
        "layer1.0",
        blocks.WithoutMiddleRelu,
        network="bottleneck",
    ),
    everywhere(33, "relu6", "relu", ReLU, layers.ReLU6),
    everywhere(34, "leaky ReLU 0.01", "relu", ReLU, layers.LeakyReLU),
)
"""Faults of norms, rectifiers and blocks."""
