"""jax-resnet (Flax Linen): a row of numbered layers. Its ResNeSt is another table."""

from __future__ import annotations

from dataclasses import replace

from parity.weights.dialects.dialect import Dialect
from parity.weights.dialects.linen import SHARED
from parity.weights.dialects.places import Place


def path(place: Place, *, kind: str = "ResNet") -> str:
    """Returns a layer's path: the stem, its pool, the blocks, the mean, the head."""
    leaf = place.choose(conv="Conv_0", norm="BatchNorm_0")
    if place.part == "stem":
        return f"layers_0.ConvBlock_{place.index}.{leaf}"
    if place.part == "head":
        return f"layers_{place.blocks + 3}"
    block = f"layers_{place.number + 2}"
    if place.part == "projection":
        kind += "D" if place.pooled and kind == "ResNet" else ""
        return f"{block}.{kind}SkipConnection_0.ConvBlock_0.{leaf}"
    return f"{block}.ConvBlock_{place.index}.{leaf}"


def path_of_splits(place: Place) -> str:
    """Returns a layer's path where a split attention is a block's second layer."""
    splits = f"layers_{place.number + 2}.SplAtConv2d_0"
    if place.part == "attention":
        leaf = place.choose(conv="Conv_0", norm="BatchNorm_0")
        return f"{splits}.{f'ConvBlock_{place.index}.' * (place.index < 2)}{leaf}"
    if place.part == "block" and place.index == 1:
        return splits  # no layer has weights of its own there
    last = place.part == "block" and place.index == 2
    return path(replace(place, index=1) if last else place, kind="ResNeSt")


DIALECT = Dialect(
    name="jax-resnet",
    what="jax-resnet: ResNet, ResNet-D, ResNeXt, Wide ResNet",
    path=path,
    **SHARED,
    only={"stem": ("7x7", "deep"), "shortcut": ("B", "D")},
)

SPLITS = Dialect(
    name="jax-resnest",
    what="jax-resnet's ResNeSt, with the reference's bias (match_reference)",
    path=path_of_splits,
    **SHARED,
    only={
        "block": ("bottleneck",),
        "stem": ("deep",),
        "stem_channels": (None, 128),
        "shortcut": ("D",),
        "groups": (1,),
        "radix": (2,),
        "anti_alias": ("avd", "avd_first"),
    },
    splits=True,
)
