"""jaxnn: timm's networks in Flax NNX."""

from __future__ import annotations

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
        "anti_alias": ("none", "average", "blur"),
    },
    beside=("*.rngs.*", "*.rngs"),
)
