"""torchvision's names, which are the twins' own; timm's are the same."""

from __future__ import annotations

from parity.weights.dialects.dialect import Dialect
from parity.weights.dialects.leaves import TORCH

DIALECT = Dialect(
    name="torchvision",
    what="torchvision, timm, and the twins themselves",
    path=lambda place: place.own,
    leaves=TORCH,
    formats=("pth", "safetensors"),
    every=True,
)
