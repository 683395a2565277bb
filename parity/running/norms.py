"""What the sums in a norm may lose: its mean and variance, and those of gradients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Norm:
    """What a norm sums over.

    Args:
        groups: into which it divides the channels of one image; ``None``: it takes each
            channel over the whole batch.
        eps: added to the variance.
    """

    groups: int | None
    eps: float

    def rows(self, x: np.ndarray) -> np.ndarray:
        """Returns what is summed up, (sums, terms)."""
        if self.groups is None:
            return x.swapaxes(0, 1).reshape(x.shape[1], -1)
        return x.reshape(len(x) * self.groups, -1)

    def spread(self, by_row: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Returns a figure of each sum where its terms are in a map."""
        channels = by_row.reshape(1 if self.groups is None else len(x), -1)
        channels = channels.repeat(x.shape[1] // channels.shape[1], axis=1)
        return channels.reshape(*channels.shape, *(1 for _ in x.shape[2:]))

    def normal(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns normal values, and what they were divided by."""
        rows = self.rows(x)
        mean, divisor = rows.mean(1), np.sqrt(rows.var(1) + self.eps)
        mean, divisor = (self.spread(v, x) for v in (mean, divisor))
        return (x - mean) / divisor, divisor


@dataclass(frozen=True)
class Lost:
    """What serial sums lose of a norm's normal values and of their gradients.

    Either is as much of every value as ``steady`` says, and as much of every normal
    value as ``scaled`` does; in roundoffs.

    Args:
        norm: what it sums over.
        weight: by which it multiplies, by channel.
        steady: of normal values, and of gradients by them.
        scaled: of normal values, and of gradients by them.
    """

    norm: Norm
    weight: np.ndarray
    steady: tuple[np.ndarray, np.ndarray]
    scaled: tuple[np.ndarray, np.ndarray]

    def of(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns what is lost of its output, and of the gradient by its input."""
        of_normal, of_gradient, divisor = self._parts(x)
        return of_normal * self.weight, -of_gradient / divisor

    def of_weight(self, x: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """Returns what its weight's gradient loses by its normal values."""
        axes = tuple(axis for axis in range(x.ndim) if axis != 1)
        return (gradient * self._parts(x)[0]).sum(axes)

    def _parts(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        normal, divisor = self.norm.normal(x)
        of_normal, of_gradient = (
            self.norm.spread(steady, x) + self.norm.spread(scaled, x) * normal
            for steady, scaled in zip(self.steady, self.scaled, strict=True)
        )
        return of_normal, of_gradient, divisor
