"""Hugging Face transformers: ResNetForImageClassification and ResNetModel."""

from __future__ import annotations

from parity.weights.dialects.dialect import Dialect
from parity.weights.dialects.leaves import LINEN, TORCH
from parity.weights.dialects.places import Place


def path(place: Place) -> str:
    """Returns a layer's path."""
    leaf = place.choose(conv="convolution", norm="normalization")
    if place.part == "stem":
        return f"resnet.embedder.embedder.{leaf}"
    if place.part == "head":
        return "classifier.1"
    block = f"resnet.encoder.stages.{place.stage}.layers.{place.block}"
    if place.part == "projection":
        return f"{block}.shortcut.{leaf}"
    return f"{block}.layer.{place.index}.{leaf}"


def path_in_flax(place: Place) -> str:
    """Returns a layer's path in FlaxResNet, which names basic blocks otherwise."""
    found = path(place)
    old, new = f".layer.{place.index}.", f".layer.layer_{place.index}."
    return found.replace(old, new) if place.basic else found


DIALECT = Dialect(
    name="huggingface",
    what="Hugging Face transformers, ResNetForImageClassification",
    path=path,
    leaves=TORCH,
    formats=("huggingface", "safetensors", "pth"),
    only={"stride_on": ("3x3", "1x1"), "groups": (1,), "width_per_group": (64,)},
)

BARE = Dialect(
    name="huggingface-model",
    what="Hugging Face transformers, ResNetModel, which has no head",
    path=lambda place: path(place).removeprefix("resnet."),
    leaves=TORCH,
    formats=("huggingface", "safetensors", "pth"),
    only={**DIALECT.only, "include_top": (False,)},
)

IN_FLAX = Dialect(
    name="huggingface-flax",
    what="FlaxResNetForImageClassification, in transformers before 5",
    path=path_in_flax,
    leaves=LINEN,
    formats=("msgpack",),
    kernel="HWIO",
    linear="IO",
    slashed=True,
    only={"groups": (1,), "width_per_group": (64,)},
)
