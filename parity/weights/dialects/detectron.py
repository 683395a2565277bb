"""Detectron2's backbone; it reads torchvision's names only once these are renamed."""

from __future__ import annotations

from parity.weights.dialects.dialect import Dialect
from parity.weights.dialects.leaves import TORCH
from parity.weights.dialects.places import Place


def path(place: Place) -> str:
    """Returns a layer's path: a norm is its convolution's."""
    norm = ".norm" if place.role == "norm" else ""
    if place.part == "stem":
        return f"stem.conv1{norm}"
    if place.part == "head":
        return "linear"
    block = f"res{place.stage + 2}.{place.block}"
    leaf = "shortcut" if place.part == "projection" else f"conv{place.index + 1}"
    return f"{block}.{leaf}{norm}"


DIALECT = Dialect(
    name="detectron2",
    what="Detectron2's ResNet backbone",
    path=path,
    leaves=TORCH,
    formats=("pth",),
    only={"stride_on": ("3x3", "1x1"), "shortcut": ("B",)},
)
