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


SPLIT = ("conv", "bn0", "fc1", "bn1", "fc2")
"""Layers of a split attention, which is itself a block's second convolution."""


def split_squeezed(channels: int, radix: int) -> int:
    """Returns the channels between both 1x1 layers of split attention.

    A quarter of those of all splits, as a multiple of 8 and 32 at least; rounded up
    where more than a tenth would be lost (timm's rounding).

    Args:
        channels: of its result.
        radix: how many splits there are.
    """
    quarter = channels * radix * 0.25
    nearest = max(32, int(quarter + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * quarter else nearest + 8


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
