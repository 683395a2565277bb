"""flaxmodels (Flax Linen): blocks and their layers numbered by class."""

from __future__ import annotations

from parity.weights.dialects.dialect import Dialect
from parity.weights.dialects.linen import SHARED
from parity.weights.dialects.places import Place


def path(place: Place) -> str:
    """Returns a layer's path; the projection is counted behind the block's own."""
    leaf = place.choose(conv="Conv", norm="BatchNorm")
    if place.part == "stem":
        return f"{leaf}_0"
    if place.part == "head":
        return "Dense_0"
    block = f"{'BasicBlock' if place.basic else 'Bottleneck'}_{place.number}"
    own = 2 if place.basic else 3
    return f"{block}.{leaf}_{own if place.part == 'projection' else place.index}"


DIALECT = Dialect(
    name="flaxmodels",
    what="flaxmodels",
    path=path,
    **SHARED,
    only={"groups": (1,), "width_per_group": (64,)},
)
