"""Which images fit a network, and how large its maps are."""

from __future__ import annotations

from typing import Any

from resnet_spec.settings import Settings

SIGNAL_POOL = 4
"""Width and stride of the signal head's pool."""

CONV_HEAD_CHANNELS = 128
"""Channels of the convolutional head's map, and width of the layer behind it."""

CONV_HEAD_POSITIONS = 48
"""Positions of the map that the convolutional head's linear layer weighs."""


class Sizes(Settings):
    """What a configuration says of the sizes of images and maps."""

    # What the configuration has.
    stem: Any
    head: Any
    anti_alias: Any
    dimensions: int
    signal_width: int | None
    include_top: bool
    layers: tuple[int, ...]
    out_indices: tuple[int, ...] | None
    replace_stride_with_dilation: tuple[bool, ...]

    @property
    def stage_count(self) -> int:
        """Stages that there are: none beyond the last map that is wanted."""
        return len(self.layers) if self.out_indices is None else max(self.out_indices)

    @property
    def output_stride(self) -> int:
        """Pixels of an image for one of the last map, both ways."""
        return 1 << self.halvings

    @property
    def halvings(self) -> int:
        """How often the body halves the map."""
        stages = self.stage_count
        stem = 0 if self.stem == "3x3" else min(2, stages + 1)  # of its map, no pool
        return stem + self._dilated[1:].count(False)

    @property
    def _dilated(self) -> tuple[bool, ...]:
        """Of each stage, whether it keeps its map's size; the first halves none."""
        return (False, *self.replace_stride_with_dilation)[: self.stage_count]

    @property
    def signal_positions(self) -> int:
        """Width of the map behind the signal head's pool."""
        return _halve(self.signal_width or 0, self.halvings) // SIGNAL_POOL

    @property
    def natural_size(self) -> tuple[int, int]:
        """Height and width of the images that the network was made for, in pixels."""
        if self.head == "signal":
            return (1, self.signal_width or 0)
        if self.head == "conv":
            return (6 << self.halvings + 1, 8 << self.halvings + 1)
        side = 32 if self.stem == "3x3" else 224
        if self.anti_alias != "none":  # which not every size fits
            side = _halve(side, self.halvings) << self.halvings
        return (side if self.dimensions == 2 else 1, side)

    @property
    def uneven_size(self) -> tuple[int, int]:
        """A size of that order whose sides differ, where the head allows it."""
        height, width = self.natural_size
        if self.anti_alias != "none":
            return (height, width + (1 << self.halvings))
        square = self.head == "linear" and height == width
        return (height, width - width // 7) if square else (height, width)

    def fitting_inputs(self) -> str:
        """Says which images fit the network."""
        if self.head == "signal":
            first = SIGNAL_POOL * self.signal_positions - 1 << self.halvings
            last = first + (SIGNAL_POOL << self.halvings)
            return f"signals of height 1 and width {first + 1} to {last} fit"
        if self.head == "conv":
            scale = 2 ** (self.halvings + 1)
            frames = ((6, 8), (8, 6), (4, 12))
            sizes = [f"{height * scale}x{width * scale}" for height, width in frames]
            return (
                f"frames whose map has {CONV_HEAD_POSITIONS} positions fit, as "
                f"{', '.join(sizes)} (height by width)"
            )
        if self.anti_alias == "average":
            return (
                f"images whose sides are multiples of {1 << self.halvings}, one pixel "
                "less, or up to two more fit"
            )
        if self.anti_alias == "blur":
            return f"images of more than {self._least_blurred} pixels a side fit"
        return "images of any size fit"

    @property
    def _least_blurred(self) -> int:
        """Pixels of a side of which the last map to be blurred would have one."""
        last = any(self._dilated[-1:])
        return 1 << self.halvings - (0 if last else 1)

    def map_size(self, height: int, width: int) -> tuple[int, int]:
        """Returns height and width of the last stage's map."""
        if self.anti_alias == "average":  # the pools of means alone round down
            return (height + 1 >> self.halvings, width + 1 >> self.halvings)
        return (_halve(height, self.halvings), _halve(width, self.halvings))

    def check_size(self, height: int, width: int) -> None:
        """Checks that images of this size fit the network.

        Raises:
            ValueError: they do not; the message says which do.
        """
        rows, columns = self.map_size(height, width)
        fits = True
        if self.anti_alias == "average":  # else a pool drops what a shortcut keeps
            sides = ((height, rows), (width, columns))
            fits = all(n > 0 and side - (n << self.halvings) < 3 for side, n in sides)
        elif self.anti_alias == "blur":  # a map of one pixel has nothing to reflect
            fits = min(height, width) > self._least_blurred
        elif self.include_top and self.head == "signal":
            fits = height == 1 and columns // SIGNAL_POOL == self.signal_positions
        elif self.include_top and self.head == "conv":
            fits = _halve(rows, 1) * _halve(columns, 1) == CONV_HEAD_POSITIONS
        if not fits:
            raise ValueError(f"{height}x{width} does not fit: {self.fitting_inputs()}")


def _halve(size: int, times: int) -> int:
    return -(-size >> times)
