"""What a training run differentiates: the same in both frameworks, from numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import floor, inf, log2
from zlib import crc32

import numpy as np

from parity.running.taps import OUTPUT
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
        by_inputs: whether the network's inputs are differentiated by, too.
        outputs: shape of each part of the output, in torch's layout, by name.
    """

    labels: np.ndarray | None = None
    label_smoothing: float = 0.1
    scale: float = 1.0
    seed: int = 0
    by_inputs: bool = False
    outputs: Mapping[str, Shape] = field(default_factory=dict)

    def weights_like(self, shape: Shape, name: str = OUTPUT) -> np.ndarray:
        """Draws the weights for an output, or a part of it, in torch's layout."""
        part = [crc32(name.encode())] if name != OUTPUT else []
        return np.random.default_rng([self.seed, *part]).standard_normal(shape)


def objective_for(
    outputs: Shape | Mapping[str, Shape],
    *,
    seed: int,
    label_smoothing: float = 0.1,
    scale: float = 1.0,
    by_inputs: bool = False,
) -> Objective:
    """Chooses what to differentiate of an output: cross-entropy where it has classes.

    Args:
        outputs: shape of the network's output, in torch's layout, or of its parts.
        seed: of labels or weights.
        label_smoothing: of the cross-entropy.
        scale: see :class:`Objective`.
        by_inputs: see :class:`Objective`.
    """
    if not isinstance(outputs, Mapping):
        outputs = {OUTPUT: outputs}
    whole = outputs.get(OUTPUT, ())
    classes = has_classes(whole)
    labels = None
    if classes:
        labels = np.random.default_rng(seed).integers(0, classes, whole[0])
    return Objective(labels, label_smoothing, scale, seed, by_inputs, outputs)


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
