"""OpenMMLab's mmpretrain (before: mmcls)."""

from __future__ import annotations

from parity.weights.dialects.dialect import Dialect
from parity.weights.dialects.leaves import TORCH
from parity.weights.dialects.places import Place


def path(place: Place) -> str:
    """Returns a layer's path; an average pool is there only where a map is halved."""
    if place.part == "head":
        return "head.fc"
    if place.part == "stem" and place.deep:
        return f"backbone.stem.{place.index}.{place.choose(conv='conv', norm='bn')}"
    own = place.own
    if place.part == "projection" and place.pooled and place.stage == 0:
        own = own[:-1] + str(int(own[-1]) - 1)
    return f"backbone.{own}"


DIALECT = Dialect(
    name="mmpretrain",
    what="OpenMMLab's mmpretrain and mmcls",
    path=path,
    leaves=TORCH,
    formats=("pth",),
    only={
        "stride_on": ("3x3", "1x1"),
        "stem": ("7x7", "deep", "3x3"),
        "shortcut": ("B", "D"),
    },
)
