"""Layers that drop parts in training, with a fault each, for ``resnet_flax``'s own."""

from __future__ import annotations

from jax import Array

from resnet_flax.dropping import DropBlock2d, DropPath


class ScaledPath(DropPath):
    """Scales in evaluation, as if it did not in training."""

    def __call__(self, x: Array) -> Array:
        """Scales."""
        return x * (1 - self.drop_prob) if self.deterministic else super().__call__(x)


class ScaledBlock(DropBlock2d):
    """Scales in evaluation, as if it did not in training."""

    def __call__(self, x: Array) -> Array:
        """Scales."""
        return x * (1 - self.drop_prob) if self.deterministic else super().__call__(x)
