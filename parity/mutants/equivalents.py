"""Changes that change nothing: the check must pass them."""

from __future__ import annotations

from parity.mutants import layers, norms, pools
from parity.mutants.mutant import Mutant, all_become, become, both, set_all
from resnet_flax.layers import BatchNorm2d, Conv2d, MaxPool2d

CONTROLS = (
    Mutant(
        number=0,
        name="no fault",
        gates=(),
        proof="These are the twins.",
        apply=lambda model: None,
    ),
    Mutant(
        number=0,
        name="no fault, training",
        gates=(),
        passes=("G1 training isolated",),
        network="biased",
        size=(16, 12),
        proof="These are the twins.",
        apply=lambda model: None,
    ),
)
"""Pairs without a fault."""

EQUIVALENTS = (
    Mutant(
        number=0,
        name="faulty layers' own formulas without a fault",
        gates=(),
        proof="The norm in pieces and the convolution with another kernel compute the "
        "same as the twin's; so what kills the mutants made of them is their fault.",
        apply=both(
            all_become(BatchNorm2d, norms.Norm),
            all_become(Conv2d, layers.WithKernel),
        ),
    ),
    Mutant(
        number=1,
        name="all padded SAME on odd sizes",
        gates=(),
        size=(65, 49),
        proof="With stride 2 on an odd size n, SAME pads ((n+1)/2 - 1)·2 + k - n = k-1 "
        "in all, half on each side, as torch does; with stride 1 it does so on any.",
        apply=both(set_all(Conv2d, padding="SAME"), set_all(MaxPool2d, padding="SAME")),
    ),
    Mutant(
        number=4,
        name="max-pool in ceil mode on odd sizes",
        gates=(),
        size=(65, 49),
        proof="n + 2 - 3 is even where n is odd, so nothing is left to round up. (The "
        "stem has made 33x25 of 65x49.)",
        apply=become("maxpool", pools.InCeilMode),
    ),
    Mutant(
        number=7,
        name="zero-padded max-pool after ReLU",
        gates=(),
        proof="What a rectifier gives is not negative, and every window has a pixel of "
        "the map: max(0, a, …) = max(a, …) for a ≥ 0.",
        apply=become("maxpool", pools.ZeroPadded),
    ),
    Mutant(
        number=35,
        name="fixed 7x7 average pool on a 7x7 map",
        gates=(),
        size=(56, 56),
        proof="A network that divides sizes by 8 has a map of 7x7 there: one window, "
        "the whole map. (In larger networks this is 224x224, so test at 288.)",
        apply=become("avgpool", pools.Fixed7x7),
    ),
)
"""Changes that change nothing, each with its proof."""
