"""mixup and cutmix: each image of a batch with the one before it, as torchvision."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from resnet_spec import TrainingRecipe
from resnet_training.order import numbers_of_step


class Mix(NamedTuple):
    """How the images of one step are mixed with their partners.

    Args:
        own: float32 of shape (size, size): how much of each pixel is the image's own;
            the rest is its partner's, the image before it.
        share: how much of the label is its own, from 0 to 1.
    """

    own: np.ndarray
    share: float


def mix_of_step(recipe: TrainingRecipe, step: int) -> Mix | None:
    """Draws how a step's images are mixed; ``None`` if they are not.

    The numbers are the step's own, so all devices mix alike. With both mixup and
    cutmix each step has one of them, as likely as the other.
    """
    if recipe.mixup == recipe.cutmix == 0:
        return None
    numbers = numbers_of_step(recipe.seed, step)
    cut = recipe.mixup == 0
    if recipe.mixup and recipe.cutmix:
        cut = bool(numbers.integers(2))
    draw = cutmix if cut else mixup
    return draw(recipe.cutmix if cut else recipe.mixup, recipe.size, numbers)


def mixup(alpha: float, size: int, numbers: np.random.Generator) -> Mix:
    """Draws one share for all pixels and the label (Zhang et al. 2017)."""
    share = _share(alpha, numbers)
    return Mix(np.full((size, size), share, np.float32), share)


def cutmix(alpha: float, size: int, numbers: np.random.Generator) -> Mix:
    """Draws a box that is the partner's (Yun et al. 2019), clipped at the rim.

    The label's share is what is left of the area.
    """
    share = _share(alpha, numbers)
    x, y = (int(numbers.integers(size)) for _ in range(2))
    half = int(0.5 * math.sqrt(1 - share) * size)
    left, right = max(x - half, 0), min(x + half, size)
    top, bottom = max(y - half, 0), min(y + half, size)
    own = np.ones((size, size), np.float32)
    own[top:bottom, left:right] = 0
    return Mix(own, 1.0 - (right - left) * (bottom - top) / (size * size))


def _share(alpha: float, numbers: np.random.Generator) -> float:
    """Draws from Beta(alpha, alpha), in float32 as torch does."""
    return float(np.float32(numbers.beta(alpha, alpha)))
