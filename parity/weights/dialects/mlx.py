"""Apple's MLX: mlx-image, torchvision's names with "layers" in every sequence."""

from __future__ import annotations

from parity.weights.dialects.dialect import Dialect
from parity.weights.dialects.leaves import TORCH
from parity.weights.dialects.places import Place


def path(place: Place) -> str:
    """Returns a layer's path."""
    if place.part in ("stem", "head"):
        return place.own
    stage, block, *rest = place.own.split(".")
    return ".layers.".join((f"{stage}.layers.{block}.{rest[0]}", *rest[1:]))


DIALECT = Dialect(
    name="mlx",
    what="mlx-image, for Apple's MLX",
    path=path,
    leaves={leaf: form for leaf, form in TORCH.items() if "num_batches" not in leaf},
    formats=("safetensors", "npz"),
    kernel="OHWI",
)
