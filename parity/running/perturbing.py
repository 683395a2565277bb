"""Values moved by one roundoff, to see how a network magnifies it."""

from __future__ import annotations

import numpy as np

PERTURBATION = float(np.finfo(np.float64).eps)
"""What :func:`perturbed` moves a value by, relatively."""


def perturbed(array: np.ndarray, draw: int) -> np.ndarray:
    """Returns a float64 array with every value moved up or down by ``PERTURBATION``."""
    up = np.random.default_rng((array.size, draw)).integers(0, 2, array.shape, bool)
    return np.asarray(np.where(up, 1 + PERTURBATION, 1 - PERTURBATION) * array)


def moved(array: np.ndarray, draw: int) -> np.ndarray:
    """Does what :func:`perturbed` does, and leaves integers as they are."""
    return perturbed(array, draw) if array.dtype.kind == "f" else array
