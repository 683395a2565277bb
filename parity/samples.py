"""Seeded weights and images that hide no bug: nothing zero, constant or default.

At initialisation a batch norm's mean is 0, its scale 1 and its bias 0, so that swapped
statistics or a missing shortcut bias leave no trace. Here every value is its own.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from parity.names import COUNTER
from parity.state import DTYPES
from parity.taps import Entry

_RANGES = {"running_mean": (-0.5, 0.5), "running_var": (0.5, 2.0), "bias": (-0.5, 0.5)}


def random_state(entries: Mapping[str, Entry], *, seed: int) -> dict[str, np.ndarray]:
    """Draws a state for a model.

    Kernels are normal with variance 1/fan-out, half of He's: these statistics do not
    normalise, and with all of it the maps of resnet152 grow to 1e8, past what half
    types hold (measured; so they stay below 1e3). Norm scales lie in [0.5, 1.5], biases
    and running means in [-0.5, 0.5], running variances in [0.5, 2].

    Args:
        entries: names, shapes and dtypes, as ``parity.entries(model)`` gives them.
        seed: of the random numbers; an entry's values depend on its place in order.

    Returns:
        Arrays in torch's names and layouts.
    """
    rng = np.random.default_rng(seed)
    state = {}
    for name, entry in entries.items():
        leaf = name.rpartition(".")[2]
        if leaf == COUNTER:
            values = np.array(rng.integers(1, 1000))
        elif len(entry.shape) > 1:
            fan_out = entry.shape[0] * int(np.prod(entry.shape[2:]))
            values = rng.standard_normal(entry.shape, np.float32) * fan_out**-0.5
        else:
            low, high = _RANGES.get(leaf, (0.5, 1.5))
            values = rng.uniform(low, high, entry.shape)
        state[name] = values.astype(DTYPES[entry.dtype])
    return state


def random_images(shape: tuple[int, int, int, int], *, seed: int) -> np.ndarray:
    """Draws normal images of shape (n, c, h, w), float32."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)
