"""Keras: the ResNets of keras.applications, and KerasHub's backbone."""

from __future__ import annotations

from parity.weights.dialects.dialect import Dialect
from parity.weights.dialects.leaves import KERAS
from parity.weights.dialects.places import Place


def _layer(place: Place, block: str) -> str:
    """Returns a layer's name; a deep stem's, which only KerasHub has, are counted."""
    leaf = place.choose(conv="conv", norm="bn")
    if place.part == "stem":
        return f"conv{place.index + 1}_{leaf}"
    if place.part == "head":
        return "predictions"
    index = 0 if place.part == "projection" else place.index + 1
    return f"{block}_{index}_{leaf}"


APPLICATIONS = Dialect(
    name="keras",
    what="keras.applications ResNet50, ResNet101 and ResNet152",
    path=lambda place: _layer(place, f"conv{place.stage + 2}_block{place.block + 1}"),
    leaves=KERAS,
    formats=("h5", "weights.h5"),
    kernel="HWIO",
    linear="IO",
    slashed=True,
    only={
        "block": ("bottleneck",),
        "conv_bias": (True,),
        "norm_eps": (1.001e-5,),
        "stride_on": ("1x1",),
        "groups": (1,),
        "width_per_group": (64,),
    },
)

HUB = Dialect(
    name="keras-hub",
    what="KerasHub's ResNetBackbone",
    path=lambda place: _layer(place, f"stack{place.stage}_block{place.block}"),
    leaves={leaf: form for leaf, form in KERAS.items() if leaf != "conv.bias"},
    formats=("h5", "weights.h5"),
    kernel="HWIO",
    linear="IO",
    slashed=True,
    only={
        "stem": ("7x7", "deep"),
        "shortcut": ("B", "D"),
        "groups": (1,),
        "width_per_group": (64,),
    },
)
