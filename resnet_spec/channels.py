"""How many channels the maps of a network have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resnet_spec.sizes import Sizes

EXPANSION: Mapping[str, int] = {"basic": 1, "bottleneck": 4}
"""Output channels of a block over its width (He et al. 2015, Table 1)."""


class Channels(Sizes):
    """What a configuration says of the channels of maps, and of what makes them."""

    # What the configuration has.
    block: Any
    widths: tuple[int, ...]
    groups: int
    radix: int
    width_per_group: int
    stem_channels: int | None
    stem_pool: Any
    shortcut: Any
    attention: str
    attention_ratio: float
    reduce_first: int
    conv_bias: bool
    in_channels: int
    num_classes: int
    drop_path_rate: float
    drop_block_rate: float

    @property
    def stem_out(self) -> int:
        """Channels of the stem's map."""
        return self.stem_channels or self.widths[0]

    @property
    def stem_widths(self) -> tuple[int, int]:
        """Channels of the first two convolutions of a deep stem."""
        half = self.stem_out // 2
        return (half // 4 * 3 if self.stem == "tiered" else half, half)

    @property
    def expansion(self) -> int:
        """Output channels of a block over its stage's width."""
        return EXPANSION[self.block]

    @property
    def num_features(self) -> int:
        """Channels of the last stage's map."""
        widths = self.widths[: self.stage_count]
        return widths[-1] * self.expansion if widths else self.stem_out

    def inner_width(self, width: int) -> int:
        """Channels of the 3x3 convolution in a block of a stage of this width."""
        return int(width * (self.width_per_group / 64.0)) * self.groups
