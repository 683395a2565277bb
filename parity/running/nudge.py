"""Values moved by one roundoff, to see how a network magnifies it."""

from __future__ import annotations

import numpy as np

NUDGE = float(np.finfo(np.float64).eps)
"""What :func:`nudged` moves a value by, relatively."""


def nudged(array: np.ndarray, draw: int) -> np.ndarray:
    """Returns a float64 array with every value moved up or down by ``NUDGE``."""
    up = np.random.default_rng((array.size, draw)).integers(0, 2, array.shape, bool)
    return np.asarray(np.where(up, 1 + NUDGE, 1 - NUDGE) * array)


def moved(array: np.ndarray, draw: int) -> np.ndarray:
    """Does what :func:`nudged` does, and leaves integers as they are."""
    return nudged(array, draw) if array.dtype.kind == "f" else array
