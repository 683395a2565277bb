"""Networks in Flax Linen, whose blocks are counted: Flax's example and AlgoPerf's."""

from __future__ import annotations

from functools import partial
from typing import Any

from parity.weights.dialects.dialect import Dialect
from parity.weights.dialects.leaves import LINEN, TRAINING
from parity.weights.dialects.places import Place


def path(place: Place, *, stem: tuple[str, str], projection: tuple[str, str]) -> str:
    """Returns a layer's path, with the names that a network gives itself."""
    norm = place.role == "norm"
    if place.part == "stem":
        return stem[norm]
    if place.part == "head":
        return "Dense_0"
    block = f"{'' if place.basic else 'Bottleneck'}ResNetBlock_{place.number}"
    if place.part == "projection":
        return f"{block}.{projection[norm]}"
    return f"{block}.{place.choose(conv='Conv', norm='BatchNorm')}_{place.index}"


SHARED: dict[str, Any] = {
    "leaves": LINEN,
    "formats": ("msgpack", "orbax"),
    "kernel": "HWIO",
    "linear": "IO",
    "counted": True,
    "slashed": True,
    "beside": TRAINING,
}

EXAMPLE = Dialect(
    name="flax-example",
    what="Flax's own ImageNet example",
    path=partial(
        path, stem=("conv_init", "bn_init"), projection=("conv_proj", "norm_proj")
    ),
    **SHARED,
    only={
        "groups": (1,),
        "width_per_group": (64,),
        "block_padding": ("same",),
        "pool_padding": ("same",),
    },
)

ALGOPERF = Dialect(
    name="algoperf",
    what="MLCommons AlgoPerf's imagenet_resnet in JAX",
    path=partial(
        path,
        stem=("Conv_init", "BatchNorm_init"),
        projection=("Conv_proj", "BatchNorm_proj"),
    ),
    **SHARED,
    only={
        "groups": (1,),
        "width_per_group": (64,),
        "block_padding": ("same",),
    },
)
