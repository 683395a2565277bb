"""A residual network in plain functions of torch, whatever its layers are called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

Pair = tuple[str, str]
"""What a convolution is called, and the norm behind it."""


@dataclass(frozen=True)
class Names:
    """What a library calls its layers.

    Args:
        stem: of one convolution, or of three.
        block: stage, block, convolution (all from 0) → names.
        shortcut: stage → names in the stage's first block.
        head: the linear layer; empty if there is none.
    """

    stem: tuple[Pair, ...]
    block: Callable[[int, int, int], Pair]
    shortcut: Callable[[int], Pair]
    head: str = ""


@dataclass(frozen=True)
class Plain:
    """A network of stages that halve the map, but for the first.

    Args:
        names: of its layers.
        blocks: of every stage.
        basic: whether blocks are of two 3x3, not of 1x1, 3x3 and 1x1.
        small: whether it is for images of 32x32: nothing in the stem halves them.
        pooled: whether a mean of 2x2 halves the map before a projection.
        on_1x1: whether a bottleneck's first 1x1 strides.
    """

    names: Names
    blocks: tuple[int, ...]
    basic: bool = False
    small: bool = False
    pooled: bool = False
    on_1x1: bool = False
    width: int = 64

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of kernels, and the channels of norms, by path."""
        found: dict[str, tuple[int, ...]] = {}

        def layer(pair: Pair, shape: tuple[int, ...]) -> None:
            found[pair[0]], found[pair[1]] = shape, shape[:1]

        stem, width = self.names.stem, self.width
        if len(stem) == 1:
            size = 3 if self.small else 7
            layer(stem[0], (width, 3, size, size))
        else:
            half = width // 2
            for pair, outs, ins in zip(
                stem, (half, half, width), (3, half, half), strict=True
            ):
                layer(pair, (outs, ins, 3, 3))
        ins = width
        for stage, blocks in enumerate(self.blocks):
            inner = width << stage
            outs = inner if self.basic else 4 * inner
            for block in range(blocks):
                channels = [(inner, ins, 3), (outs, inner, 3)]
                if not self.basic:
                    channels = [(inner, ins, 1), (inner, inner, 3), (outs, inner, 1)]
                for i, (rows, columns, size) in enumerate(channels):
                    layer(
                        self.names.block(stage, block, i), (rows, columns, size, size)
                    )
                if block == 0 and ins != outs:
                    layer(self.names.shortcut(stage), (outs, ins, 1, 1))
                ins = outs
        if self.names.head:
            found[self.names.head] = (7, ins)
        return found

    def state(self) -> dict[str, np.ndarray]:
        """Returns values of its own for every entry, with torch's leaves, in float32.

        Norms have none of a fresh network's, so that no two can be taken for another.
        """
        rng = np.random.default_rng(5)
        found: dict[str, np.ndarray] = {}
        for path, shape in self.shapes().items():
            if len(shape) > 1:
                scale = np.sqrt(1 / np.prod(shape[1:]))
                found[f"{path}.weight"] = scale * rng.standard_normal(shape)
            else:
                for leaf, low in (("weight", 0.5), ("running_var", 0.5)):
                    found[f"{path}.{leaf}"] = rng.uniform(low, low + 1, shape)
                for leaf in ("bias", "running_mean"):
                    found[f"{path}.{leaf}"] = rng.uniform(-0.5, 0.5, shape)
        if self.names.head:
            found[f"{self.names.head}.bias"] = rng.uniform(-0.5, 0.5, 7)
        return {name: array.astype(np.float32) for name, array in found.items()}

    def __call__(
        self, arrays: Mapping[str, np.ndarray], images: np.ndarray
    ) -> np.ndarray:
        """Returns logits, or the last map where there is no head, in float64."""
        state = {n: torch.from_numpy(np.float64(a)) for n, a in arrays.items()}

        def layer(x: torch.Tensor, pair: Pair, stride: int = 1) -> torch.Tensor:
            kernel = state[f"{pair[0]}.weight"]
            x = functional.conv2d(x, kernel, None, stride, kernel.shape[-1] // 2)
            mean, var, weight, bias = (
                state[f"{pair[1]}.{leaf}"]
                for leaf in ("running_mean", "running_var", "weight", "bias")
            )
            return functional.batch_norm(x, mean, var, weight, bias)

        x = torch.from_numpy(np.float64(images))
        for index, pair in enumerate(self.names.stem):
            x = layer(x, pair, 1 if self.small or index else 2).relu()
        if not self.small:
            x = functional.max_pool2d(x, 3, 2, 1)
        strided = 0 if self.basic or self.on_1x1 else 1
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                stride, y = 2 if stage and not block else 1, x
                for i in range(2 if self.basic else 3):
                    pair = self.names.block(stage, block, i)
                    y = layer(y.relu() if i else y, pair, stride if i == strided else 1)
                pair = self.names.shortcut(stage)
                if block == 0 and f"{pair[0]}.weight" in state:
                    if self.pooled and stride == 2:
                        x = functional.avg_pool2d(x, 2, 2, 0, True, False)
                    x = layer(x, pair, 1 if self.pooled else stride)
                x = (x + y).relu()
        if not self.names.head:
            return x.numpy()
        head = self.names.head
        weight, bias = state[f"{head}.weight"], state[f"{head}.bias"]
        return functional.linear(x.mean((2, 3)), weight, bias).numpy()
