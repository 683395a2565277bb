"""Channel attention: what there is, and how large it is for so many channels."""

from __future__ import annotations

import math
from collections.abc import Mapping

ATTENTION: Mapping[str, tuple[str, ...]] = {
    "se": ("fc1", "fc2"),
    "eca": ("conv",),
}
"""Kind → its layers with weights, by which a state shows that it has it."""


def squeezed(channels: int, ratio: float) -> int:
    """Returns the channels between both layers of squeeze-and-excitation.

    They are a multiple of 8, the nearest one, and not none (timm's rounding).

    Args:
        channels: of the map.
        ratio: of those, before rounding.
    """
    return max(8, int(channels * ratio + 4) // 8 * 8)


def neighbours(channels: int) -> int:
    """Returns how many channels ECA weighs for one (arXiv 1910.03151, equation 12).

    Args:
        channels: of the map.
    """
    # By this logarithm, not log2: where they differ, timm's kernels have its size.
    size = int(abs(math.log(channels, 2) + 1) / 2)
    return max(size if size % 2 else size + 1, 3)


def weight_count(kind: str, channels: int, ratio: float) -> int:
    """Returns how many parameters an attention has.

    Args:
        kind: one of ``ATTENTION``, or ``"none"``.
        channels: of the map.
        ratio: of those between both layers of squeeze-and-excitation.
    """
    if kind == "se":
        inner = squeezed(channels, ratio)
        return 2 * channels * inner + inner + channels
    return neighbours(channels) if kind == "eca" else 0
