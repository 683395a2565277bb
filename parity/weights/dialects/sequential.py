"""A network's children in a row, which torch numbers: fastai's and Lightly's."""

from __future__ import annotations

from parity.weights.dialects.dialect import Dialect
from parity.weights.dialects.leaves import TORCH
from parity.weights.dialects.places import Place


def path(place: Place) -> str:
    """Returns a layer's path; 2 and 3 are the rectifier and the pool."""
    first, _, rest = place.own.partition(".")
    numbers = {"conv1": 0, "bn1": 1}
    number = numbers.get(first, place.stage + 4)
    return f"{number}.{rest}" if rest else str(number)


DIALECT = Dialect(
    name="sequential",
    what="nn.Sequential of a network's children: fastai's bodies, Lightly's backbones",
    path=path,
    leaves=TORCH,
    formats=("pth", "safetensors"),
    only={
        "include_top": (False,),
        "stem": ("7x7", "deep", "tiered"),
        "stem_channels": (None, 128),
        "shortcut": ("B", "D"),
    },
)
