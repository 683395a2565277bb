"""Parts of a map that are dropped in training, the same ones in both twins.

Read beside ``resnet_flax/dropping.py``. What is dropped is drawn by numpy from a seed,
the block and the number of the call, so that two runs drop the same; see
``Network.seed_drops``.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from resnet_spec.plan import BlockPlan
from resnet_torch.layers import Layers


class Drop(nn.Module):
    """What drops something of its input in training mode, and counts its calls.

    Args:
        drop_prob: share that is dropped.
        number: of the block.
    """

    kind = 0

    def __init__(self, drop_prob: float, *, number: int) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.number = number
        self.restart(0)

    def restart(self, seed: int, calls: int = 0) -> None:
        """Begins anew with the masks of a seed, as after so many calls."""
        self.seed = seed
        self.count = calls

    def kept(self, count: int, shape: tuple[int, int, int, int]) -> np.ndarray:
        """Draws which parts of maps (n, c, h, w) are kept, 1, or dropped, 0."""
        raise NotImplementedError

    def _mask(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 i j"]:
        from resnet_torch.masking import mask

        return mask(self, x)

    def _uniform(self, count: int, shape: tuple[int, ...]) -> np.ndarray:
        return uniform(self.seed, 2 * self.number + self.kind, count, shape)


class DropPath(Drop):
    """Drops all of some images of a batch (stochastic depth, arXiv 1603.09382)."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Drops, and scales what is kept so that the mean stays."""
        if not self.training or not self.drop_prob:
            return x
        return x * (self._mask(x) / (1 - self.drop_prob)).to(x.dtype)

    def kept(self, count: int, shape: tuple[int, int, int, int]) -> np.ndarray:
        """Draws which images are kept."""
        drawn = self._uniform(count, (shape[0], 1, 1, 1))
        return (drawn >= self.drop_prob).astype(np.float32)


class DropBlock2d(Drop):
    """Drops squares of a map, of all channels (arXiv 1810.12890).

    Args:
        drop_prob: share that is dropped.
        number: of the block.
        square: side of the squares, in pixels.
        weight: of the share, for squares of this side.
    """

    kind = 1

    def __init__(
        self, drop_prob: float, *, number: int, square: int, weight: float
    ) -> None:
        super().__init__(drop_prob, number=number)
        self.square = square
        self.weight = weight

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Drops, and scales what is kept so that the mean stays."""
        if not self.training or not self.drop_prob:
            return x
        mask = self._mask(x)
        return x * (mask * (mask.numel() / (mask.sum() + 1e-7))).to(x.dtype)

    def kept(self, count: int, shape: tuple[int, int, int, int]) -> np.ndarray:
        """Draws which pixels are kept."""
        n, _, h, w = shape
        drawn = self._uniform(count, (n, 1, h, w))
        return outside_squares(drawn, self.drop_prob * self.weight, self.square)


def drop_path(layers: Layers, plan: BlockPlan) -> DropPath | None:
    """Makes what drops a block's branch; ``None`` if nothing does."""
    rate = plan.drop_path
    return DropPath(rate, number=plan.number) if rate else None


def drop_block(layers: Layers, plan: BlockPlan) -> DropBlock2d | None:
    """Makes what drops squares in a block; ``None`` if nothing does."""
    if not plan.drop_block:
        return None
    return DropBlock2d(
        plan.drop_block,
        number=plan.number,
        square=plan.square,
        weight=plan.square_weight,
    )


def uniform(seed: int, layer: int, count: int, shape: tuple[int, ...]) -> np.ndarray:
    """Draws from [0, 1) what a layer's call of this number is given."""
    philox = np.random.Philox(key=[seed, layer], counter=[0, 0, 0, count])
    return np.random.Generator(philox).random(shape, dtype=np.float32)


def outside_squares(drawn: np.ndarray, share: float, square: int) -> np.ndarray:
    """Returns 0 for what lies in one of the squares that are drawn, 1 for the rest.

    Args:
        drawn: maps (n, 1, h, w) from [0, 1), one value for each centre.
        share: of the map that the squares shall cover.
        square: their side, in pixels; no larger than the map.
    """
    h, w = drawn.shape[2:]
    rows, columns = min(square, h), min(square, w)
    places = (h - rows + 1) * (w - columns + 1)
    centres = drawn < share * h * w / (rows * columns) / places
    # Behind a centre there is as much of its square as before it, or one pixel less.
    before, after = (rows // 2, columns // 2), (-(-rows // 2) - 1, -(-columns // 2) - 1)
    rim = ((0, 0), (0, 0), *zip(after, before, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(centres, rim), (rows, columns), (2, 3)
    )
    return np.asarray(~windows.any((4, 5)), np.float32)
