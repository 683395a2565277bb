"""Where a layer stands in a residual network, of which little need be known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from parity.weights.names import COUNTER
from resnet_spec.attention import ATTENTION, SPLIT

Role = Literal["conv", "norm", "linear"]
Part = Literal["stem", "pool", "block", "attention", "projection", "head"]


@dataclass(frozen=True)
class Place:
    """A layer with weights, and where in a residual network it stands.

    Args:
        own: its path in the twins.
        role: what it is.
        part: what it belongs to.
        index: of the convolution in its part, from 0; a norm has that of its own.
        stage: from 0.
        block: in its stage, from 0.
        number: of the block, counted through all stages from 0.
        blocks: how many there are in all.
        basic: whether blocks are basic ones, not bottlenecks.
        deep: whether the stem is of three convolutions.
        pooled: whether projections stand behind an average pool (ResNet-D).
    """

    own: str
    role: Role
    part: Part
    index: int = 0
    stage: int = 0
    block: int = 0
    number: int = 0
    blocks: int = 0
    basic: bool = False
    deep: bool = False
    pooled: bool = False

    def choose(self, *, conv: str, norm: str) -> str:
        """Returns the word for what stands here."""
        return norm if self.role == "norm" else conv


@dataclass(frozen=True)
class Outline:
    """As much of a network as its layers' names depend on."""

    layers: tuple[int, ...]
    basic: bool = False
    deep: bool = False
    pooled: bool = False

    @property
    def first(self) -> Place:
        """The stem's first convolution."""
        return next(self.places())[1]

    @property
    def first_block(self) -> Place:
        """The first block's first convolution."""
        return dict(replace(self, layers=(1,)).places())["layer1.0.conv1"]

    def places(self) -> Iterator[tuple[str, Place]]:
        """Yields path in the twins, and place, of all that such a network may have."""
        kind: dict[str, Any] = {
            "basic": self.basic,
            "deep": self.deep,
            "pooled": self.pooled,
        }
        blocks = sum(self.layers)
        stem = ["conv1", "bn1"]
        if self.deep:
            stem = [f"conv1.{i}" for i in (0, 1, 3, 4, 6)] + ["bn1"]
        for position, path in enumerate(stem):
            role: Role = "norm" if position % 2 else "conv"
            yield path, Place(path, role, "stem", position // 2, blocks=blocks, **kind)
        # A convolution instead of the pool; what halves the map may stand behind it.
        for index in range(3):
            path, role = f"maxpool.{index}", "norm" if index else "conv"
            yield path, Place(path, role, "pool", index, blocks=blocks, **kind)
        number = 0
        for stage, many in enumerate(self.layers):
            for block in range(many):
                at: dict[str, Any] = {
                    "stage": stage,
                    "block": block,
                    "number": number,
                } | kind
                path = f"layer{stage + 1}.{block}"
                rows: list[tuple[str, Role, Part, int]] = []
                for i in range(2 if self.basic else 3):
                    rows.append((f"conv{i + 1}", "conv", "block", i))
                    rows.append((f"bn{i + 1}", "norm", "block", i))
                for i, leaf in enumerate(() if self.basic else SPLIT):
                    role = "norm" if leaf.startswith("bn") else "conv"
                    rows.append((f"conv2.{leaf}", role, "attention", i // 2))
                for layers in ATTENTION.values():
                    for i, leaf in enumerate(layers):
                        rows.append((f"se.{leaf}", "conv", "attention", i))
                first = int(self.pooled)
                rows.append((f"downsample.{first}", "conv", "projection", 0))
                rows.append((f"downsample.{first + 1}", "norm", "projection", 0))
                for leaf, role, part, i in rows:
                    own = f"{path}.{leaf}"
                    yield own, Place(own, role, part, i, blocks=blocks, **at)
                number += 1
        for index, own in enumerate(("fc", "fc1", "fc2")):
            yield own, Place(own, "linear", "head", index, blocks=blocks, **kind)
        yield "conv2", Place("conv2", "conv", "head", blocks=blocks, **kind)


OUTLINES = tuple(
    Outline((), basic, deep, pooled)
    for basic in (False, True)
    for deep, pooled in ((False, False), (True, True), (False, True), (True, False))
)
"""Of all kinds of networks, without their layers; the usual ones first."""

LEAVES: Mapping[Role, Sequence[str]] = {
    "conv": ("weight", "bias"),
    "linear": ("weight", "bias"),
    "norm": ("weight", "bias", "running_mean", "running_var", COUNTER),
}
