"""What a training run differentiates: the same in both frameworks, from numpy."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, inf, log2

import numpy as np

from parity.weights.names import Shape


@dataclass(frozen=True)
class Objective:
    """A scalar of a network's output.

    Args:
        labels: classes, int64 (n,): then it is the cross-entropy. Otherwise the mean of
            the output, each value weighted at random.
        label_smoothing: of the cross-entropy.
        scale: multiplies it, so that small gradients survive in half types, or meet an
            optimiser's eps.
        seed: of the random weights.
    """

    labels: np.ndarray | None = None
    label_smoothing: float = 0.1
    scale: float = 1.0
    seed: int = 0

    def weights_like(self, shape: Shape) -> np.ndarray:
        """Draws the weights for an output of this shape, in torch's layout."""
        return np.random.default_rng(self.seed).standard_normal(shape)


def objective_for(
    output: Shape, *, seed: int, label_smoothing: float = 0.1, scale: float = 1.0
) -> Objective:
    """Chooses what to differentiate of an output: cross-entropy where it has classes.

    Args:
        output: shape of the network's output, in torch's layout.
        seed: of labels or weights.
        label_smoothing: of the cross-entropy.
        scale: see :class:`Objective`.
    """
    classes = has_classes(output)
    labels = None
    if classes:
        labels = np.random.default_rng(seed).integers(0, classes, output[0])
    return Objective(labels, label_smoothing, scale, seed)


def loss_scale(largest: float) -> float:
    """Returns a power of two that keeps float16 gradients from both of its ends.

    Args:
        largest: of all gradients of the loss as it is.
    """
    if not 0 < largest < inf:
        return 1024.0
    return min(1024.0, 2.0 ** floor(log2(2.0**14 / largest)))  # float16 ends at 2^16


def has_classes(output: Shape) -> int:
    """Returns the number of classes that an output has scores for, or 0."""
    if len(output) == 4 and output[1:3] == (1, 1):  # a signal of scores
        output = (output[0], output[3])
    return output[1] if len(output) == 2 and output[1] > 1 else 0
