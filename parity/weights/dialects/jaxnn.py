"""jaxnn: timm's networks in Flax NNX."""

from __future__ import annotations

from dataclasses import replace

from parity.weights.dialects.dialect import Dialect
from parity.weights.dialects.leaves import NNX
from parity.weights.dialects.places import Place


def path(place: Place) -> str:
    """Returns a layer's path."""
    if place.part == "head":
        return "fc.fc"
    if place.part == "stem":
        return place.own.replace("conv1.", "conv1.layers.")
    block = f"stage_modules.{place.stage}.layers.{place.block}"
    leaf = place.choose(conv="conv", norm="bn")
    if place.part == "projection":
        return f"{block}.downsample.{leaf}"
    return f"{block}.{leaf}{place.index + 1}"


DIALECT = Dialect(
    name="jaxnn",
    what="jaxnn, timm's networks in Flax NNX",
    path=path,
    leaves=NNX,
    formats=("orbax", "safetensors"),
    kernel="HWIO",
    linear="IO",
    only={
        "stem": ("7x7", "deep", "tiered"),
        "stem_channels": (None, 128),
        "shortcut": ("B", "D"),
    },
    # Its resnetaa and resnetblur both take the mean of 2x2, in the stem behind a pool.
    foreign=("anti_alias",),
    beside=("*.rngs.*", "*.rngs"),
)

GROUPS = replace(
    DIALECT,
    name="jaxnn-gn",
    what="jaxnn's networks with GroupNorm, whose eps is 1e-6",
    only={
        **DIALECT.only,
        "norm": ("group",),
        "norm_groups": (32,),
        "norm_eps": (1e-6,),
    },
)
