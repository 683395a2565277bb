"""jax-resnet (Flax Linen): a row of numbered layers."""

from __future__ import annotations

from parity.weights.dialects.dialect import Dialect
from parity.weights.dialects.linen import SHARED
from parity.weights.dialects.places import Place


def path(place: Place) -> str:
    """Returns a layer's path: the stem, its pool, the blocks, the mean, the head."""
    leaf = place.choose(conv="Conv_0", norm="BatchNorm_0")
    if place.part == "stem":
        return f"layers_0.ConvBlock_{place.index}.{leaf}"
    if place.part == "head":
        return f"layers_{place.blocks + 3}"
    block = f"layers_{place.number + 2}"
    if place.part == "projection":
        kind = "ResNetDSkipConnection_0" if place.pooled else "ResNetSkipConnection_0"
        return f"{block}.{kind}.ConvBlock_0.{leaf}"
    return f"{block}.ConvBlock_{place.index}.{leaf}"


DIALECT = Dialect(
    name="jax-resnet",
    what="jax-resnet: ResNet, ResNet-D, ResNeXt, Wide ResNet",
    path=path,
    **SHARED,
    only={"stem": ("7x7", "deep"), "shortcut": ("B", "D")},
)
