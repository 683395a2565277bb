"""OpenMMLab's mmdetection and mmsegmentation, whose deep stems are only counted."""

from __future__ import annotations

from parity.weights.dialects.dialect import Dialect
from parity.weights.dialects.leaves import TORCH
from parity.weights.dialects.places import Place


def path(place: Place) -> str:
    """Returns a layer's path; all but the stem is called as in torchvision."""
    if place.part == "stem":
        return f"stem.{3 * place.index + (place.role == 'norm')}"
    return place.own


DIALECT = Dialect(
    name="mmdetection",
    what="OpenMMLab's mmdetection and mmsegmentation, backbones with a deep stem",
    path=path,
    leaves=TORCH,
    formats=("pth",),
    only={
        "stride_on": ("3x3", "1x1"),
        "stem": ("deep",),
        "shortcut": ("B", "D"),
        "include_top": (False,),
    },
)
