"""JAX Bonsai: ResNets in Flax NNX, made for Hugging Face's weights."""

from __future__ import annotations

from parity.weights.dialects.dialect import Dialect
from parity.weights.dialects.leaves import NNX
from parity.weights.dialects.places import Place


def path(place: Place) -> str:
    """Returns a layer's path; stages, blocks and convolutions are counted from 0."""
    leaf = place.choose(conv="conv", norm="bn")
    if place.part == "stem":
        return f"stem.{leaf}"
    if place.part == "head":
        return "fc"
    block = f"layer{place.stage}.blocks.{place.block}"
    if place.part == "projection":
        return f"{block}.downsample.{leaf}"
    return f"{block}.{leaf}{place.index}"


DIALECT = Dialect(
    name="bonsai",
    what="JAX Bonsai's ResNet, in Flax NNX",
    path=path,
    leaves=NNX,
    formats=("orbax", "safetensors"),
    kernel="HWIO",
    linear="IO",
    only={"block": ("bottleneck",), "groups": (1,), "width_per_group": (64,)},
)
