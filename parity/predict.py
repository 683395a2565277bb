"""What a network says of a photograph."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from parity import runs


class Guess(NamedTuple):
    """A class, by the index of its logit, and how likely the network takes it to be."""

    label: int
    probability: float


def logits(model: Any, images: np.ndarray) -> np.ndarray:
    """Runs either twin as it is; the Flax twin jitted.

    Args:
        model: a torch or Flax NNX module, in evaluation mode.
        images: floats of shape (n, c, h, w), for both.

    Returns:
        What the network returns: (n, classes), or maps (n, c, h, w) if it has no top.
    """
    return runs.run(model, images)


def top(scores: np.ndarray, k: int = 5) -> list[Guess]:
    """Returns the k likeliest classes of one image, the likeliest first.

    Args:
        scores: logits of one image, shape (classes,).
        k: how many.
    """
    scores = scores.astype(np.float64)
    likelihood = np.exp(scores - scores.max())
    likelihood /= likelihood.sum()
    best = np.argsort(-likelihood, kind="stable")[:k]
    return [Guess(int(label), float(likelihood[label])) for label in best]
