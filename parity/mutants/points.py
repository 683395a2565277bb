"""Faults of norms, rectifiers and blocks; the weights are right."""

from __future__ import annotations

from typing import Any

import numpy as np

from parity.mutants import blocks, layers, norms
from parity.mutants.mutant import (
    Change,
    Mutant,
    all_become,
    become,
    both,
    set_all,
    set_at,
)
from parity.on_flax import modules
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
        Mutant(
            number=number,
            name=f"eps {eps:.0e}",
            culprit="bn1",
            apply=set_all(BatchNorm2d, eps=eps),
        )
        for number, eps in ((13, 1e-3), (14, 1e-4), (15, 1e-6))
    ),
    Mutant(
        number=16,
        name="eps outside the root",
        culprit="bn1",
        apply=all_become(BatchNorm2d, norms.EpsOutsideRoot),
    ),
    Mutant(
        number=17,
        name="eps wrong in one layer",
        culprit="layer2.0.bn2",
        apply=set_at("layer2.0.bn2", eps=1e-6),
    ),
    Mutant(
        number=17,
        name="eps a hundredth off in one layer",
        culprit="layer2.0.downsample.1",
        apply=set_at("layer2.0.downsample.1", eps=1.01e-5),
    ),
    Mutant(
        number=18,
        name="two layers' BN statistics swapped",
        culprit="layer1.0.bn1",
        apply=_others_statistics("layer1.0.bn1", "layer1.0.bn2"),
    ),
    Mutant(
        number=19,
        name="scale/bias swapped",
        culprit="bn1",
        apply=all_become(BatchNorm2d, norms.ScaleBiasSwapped),
    ),
    Mutant(
        number=20,
        name="mean/var swapped",
        culprit="layer1.0.bn2",
        apply=become("layer1.0.bn2", norms.MeanVarSwapped),
    ),
    Mutant(
        number=21,
        name="divided by var",
        culprit="bn1",
        apply=all_become(BatchNorm2d, norms.ByVariance),
    ),
    Mutant(
        number=22,
        name="running mean ignored",
        culprit="bn1",
        apply=all_become(BatchNorm2d, norms.WithoutMean),
    ),
    Mutant(
        number=23,
        name="batch statistics at eval",
        culprit="bn1",
        apply=all_become(BatchNorm2d, norms.AlwaysBatchStatistics),
    ),
    Mutant(
        number=24,
        name="shortcut BN without bias",
        culprit="layer2.0.downsample.1",
        apply=become("layer2.0.downsample.1", norms.WithoutBias),
    ),
    Mutant(
        number=26,
        name="two convs of a block swapped",
        culprit="layer1.0",
        apply=become("layer1.0", blocks.ConvsExchanged),
    ),
    Mutant(
        number=26,
        name="two norms of a block swapped",
        culprit="layer1.0",
        apply=become("layer1.0", blocks.NormsExchanged),
    ),
    Mutant(
        number=30,
        name="one residual missing",
        culprit="layer1.0",
        apply=set_at("layer1.0", residual=False),
    ),
    Mutant(
        number=30,
        name="one projected residual missing",
        culprit="layer2.0",
        apply=set_at("layer2.0", residual=False),
    ),
    Mutant(
        number=30,
        name="one residual halved with its branch",
        culprit="layer2.0",
        apply=become("layer2.0", blocks.HalvedResidual),
    ),
    Mutant(
        number=31,
        name="ReLU before the addition",
        culprit="layer1.0",
        apply=become("layer1.0", blocks.ReluBeforeAddition),
    ),
    Mutant(
        number=32,
        name="last ReLU missing",
        culprit="layer2.0",
        apply=become("layer2.0", blocks.WithoutLastRelu),
    ),
    Mutant(
        number=32,
        name="a bottleneck's middle ReLU missing",
        culprit="layer1.0",
        network="bottleneck",
        apply=become("layer1.0", blocks.WithoutMiddleRelu),
    ),
    Mutant(
        number=33,
        name="relu6",
        culprit="relu",
        scale=4.0,  # so that every rectifier has something beyond 6
        apply=all_become(ReLU, layers.ReLU6),
    ),
    Mutant(
        number=34,
        name="leaky ReLU 0.01",
        culprit="relu",
        apply=all_become(ReLU, layers.LeakyReLU),
    ),
)
"""Faults of norms, rectifiers and blocks."""
