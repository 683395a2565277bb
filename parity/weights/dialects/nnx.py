"""The Flax twin itself: torchvision's paths, the leaves of Flax NNX."""

from __future__ import annotations

from parity.weights.dialects.dialect import Dialect
from parity.weights.dialects.leaves import NNX

DIALECT = Dialect(
    name="nnx",
    what="resnet_flax, as nnx.to_pure_dict(nnx.state(model)) has it",
    path=lambda place: place.own,
    leaves={**NNX, "norm.num_batches_tracked": "{}.num_batches_tracked"},
    formats=("orbax", "safetensors", "msgpack"),
    kernel="HWIO",
    linear="IO",
    words=True,
    every=True,
)
