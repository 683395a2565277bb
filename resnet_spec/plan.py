"""What each block of a network is like: the one place where its numbers are derived."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from resnet_spec.channels import Channels
from resnet_spec.settings import invalid

DROPPED_SQUARES = ((5, 0.25), (3, 1.0))
"""Side and weight of drop-block's squares, in the last two of four stages (timm's)."""


@dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """One block.

    Args:
        in_channels: of what it is given.
        first: channels behind its first convolution.
        inner: channels of a bottleneck's 3x3.
        out_channels: of what it returns.
        stride: by which it makes the map smaller.
        dilation: of its 3x3 kernels, but for the first of a stage: what comes before
            the finer map keeps its dilation.
        first_dilation: of the first of them.
        drop_path: share of the images that it passes by in training.
        drop_block: share of a map's pixels that it drops in training.
        square: side of the squares that are dropped together, in pixels.
        square_weight: of the share, for squares of this side.
        number: of the block, counted through all stages from 0.
    """

    in_channels: int
    first: int
    inner: int
    out_channels: int
    stride: int
    dilation: int
    first_dilation: int
    drop_path: float
    drop_block: float
    square: int
    square_weight: float
    number: int


@dataclass(frozen=True, kw_only=True)
class FeatureInfo:
    """One of the maps that a detector or a segmenter takes.

    Args:
        module: whose result it is.
        channels: of the map.
        stride: pixels of an image for one of the map, both ways.
    """

    module: str
    channels: int
    stride: int


class FeatureInfos(tuple[FeatureInfo, ...]):
    """What every map is like and, as timm says it, what those that are wanted are.

    Attributes:
        out_indices: of those that are wanted.
    """

    out_indices: tuple[int, ...]

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        """Returns the channels of one map, of several, or of those that are wanted."""
        return self._get("channels", idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        """Returns how many pixels of an image one of the map stands for, both ways."""
        return self._get("stride", idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        """Returns whose result the map is."""
        return self._get("module", idx)

    def _get(self, field: str, idx: int | Sequence[int] | None) -> Any:
        if isinstance(idx, int):
            return getattr(self[idx], field)
        indices = self.out_indices if idx is None else idx
        return [getattr(self[index], field) for index in indices]


def feature_info(config: Channels) -> FeatureInfos:
    """Returns what the maps are like: the stem's before its pool, then each stage's.

    Args:
        config: the network.
    """
    stem = config.stem != "3x3"
    stride = 2 if stem else 1
    found = [FeatureInfo(module="relu", channels=config.stem_out, stride=stride)]
    stride *= 2 if stem else 1
    dilated = (True, *config.replace_stride_with_dilation)  # the first strides nothing
    for index, width in enumerate(config.widths[: config.stage_count]):
        stride *= 1 if dilated[index] else 2
        name, channels = f"layer{index + 1}", width * config.expansion
        found.append(FeatureInfo(module=name, channels=channels, stride=stride))
    infos = FeatureInfos(found)
    infos.out_indices = chosen(len(found), config.out_indices)
    return infos


def chosen(count: int, out_indices: int | Sequence[int] | None) -> tuple[int, ...]:
    """Returns which of so many maps are meant, counted from 0.

    Args:
        count: of the maps.
        out_indices: of those that are meant, from the end if negative; a number is the
            last so many; ``None`` is all.

    Raises:
        ValueError: there is no such map.
    """
    indices: tuple[int, ...] = ()
    if out_indices is None:
        indices = tuple(range(count))
    elif isinstance(out_indices, Sequence):
        indices = tuple(out_indices)
    elif type(out_indices) is int and 0 < out_indices <= count:
        indices = tuple(range(-out_indices, 0))
    within = range(-count, count)
    if not indices or not all(type(i) is int and i in within for i in indices):
        allowed = f"a number from 1 to {count}, or indices from {-count} to {count - 1}"
        raise invalid("out_indices", out_indices, allowed)
    return tuple(index % count for index in indices)


def left_out(config: Channels) -> tuple[str, ...]:
    """Returns the parts of a whole network that its maps do not need.

    Args:
        config: the network of maps.
    """
    count = len(config.layers)
    parts = [f"layer{i + 1}" for i in range(config.stage_count, count)]
    parts += [] if config.stage_count else ["maxpool"]
    head = ("conv2", "fc1", "fc2") if config.head == "conv" else ("fc",)
    return (*parts, *head)


def stages(config: Channels) -> Iterator[list[BlockPlan]]:
    """Yields the blocks of each stage.

    Args:
        config: the network.
    """
    channels, number, dilation = config.stem_out, 0, 1
    last = max(sum(config.layers) - 1, 1)
    dilated = (False, *config.replace_stride_with_dilation)
    several = [*zip(config.layers, config.widths, strict=True)][: config.stage_count]
    for index, (many, width) in enumerate(several):
        stride, first_dilation = 1 if index == 0 else 2, dilation
        if dilated[index]:
            dilation, stride = dilation * stride, 1
        inner, out = config.inner_width(width), width * config.expansion
        square, weight, share = 0, 0.0, 0.0
        if index >= 2:
            square, weight = DROPPED_SQUARES[min(index - 2, 1)]
            share = config.drop_block_rate
        blocks = []
        for block in range(many):
            blocks.append(
                BlockPlan(
                    in_channels=channels,
                    first=(width if config.block == "basic" else inner)
                    // config.reduce_first,
                    inner=inner,
                    out_channels=out,
                    stride=1 if block else stride,
                    dilation=dilation,
                    first_dilation=dilation if block else first_dilation,
                    drop_path=config.drop_path_rate * number / last,
                    drop_block=share,
                    square=square,
                    square_weight=weight,
                    number=number,
                )
            )
            channels, number = out, number + 1
        yield blocks
