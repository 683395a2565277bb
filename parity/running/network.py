"""Runs of either twin as it is, without imports of the other's framework."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from parity.running.taps import Call
from parity.weights.names import Shape
from parity.weights.state import adapter


def run(model: Any, images: np.ndarray) -> np.ndarray:
    """Runs a model as it is on images (n, c, h, w) and returns its result."""
    return _runs(model).run(model, images)


def calls(model: Any, shape: Shape) -> list[Call]:
    """Lists the calls of modules without children, for images of shape (n, c, h, w)."""
    return _runs(model).calls(model, shape)


def _runs(model: Any) -> ModuleType:
    if adapter(model).FRAMEWORK == "torch":
        from parity.running import torch_runs

        return torch_runs
    from parity.running import flax_runs

    return flax_runs


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
    return run(model, images)


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
