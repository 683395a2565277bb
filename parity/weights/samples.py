"""Seeded weights and images that hide no bug: nothing zero, constant or default.

At initialisation a batch norm's mean is 0, its scale 1 and its bias 0, so that swapped
statistics or a missing shortcut bias leave no trace. Here every value is its own.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np

from parity.weights.names import COUNTER, Entry
from parity.weights.state import DTYPES

_RANGES = {"running_mean": (-0.5, 0.5), "running_var": (0.5, 2.0), "bias": (-0.5, 0.5)}


def random_state(entries: Mapping[str, Entry], *, seed: int) -> dict[str, np.ndarray]:
    """Draws a state for a model.

    Kernels are normal with He's variance for the fan-in, norm scales in [0.5, 1.5],
    biases and running means in [-0.5, 0.5], running variances in [0.5, 2]. Random
    statistics do not normalise, so each block would multiply what passes through it;
    the last kernel of a block is therefore divided by the root of the number of blocks
    in its stages (as Fixup, arXiv 1901.09321, does), which keeps maps of any depth
    within what half types hold and still beyond 6, where a relu6 would show.

    Args:
        entries: names, shapes and dtypes, as ``parity.entries(model)`` gives them.
        seed: of the random numbers. An entry's values depend on it, on the entry's name
            and shape, and on nothing else.

    Returns:
        Arrays in torch's names and layouts.
    """
    blocks = {path for name in entries if (path := _block(name))}
    state = {}
    for name, entry in entries.items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        leaf = name.rpartition(".")[2]
        if leaf == COUNTER:
            values = np.array(rng.integers(1, 1000))
        elif len(entry.shape) > 1:
            fan_in = int(np.prod(entry.shape[1:]))
            values = rng.standard_normal(entry.shape) * (2 / fan_in) ** 0.5
            if name == _last_kernel(_block(name), entries):
                values /= len(blocks) ** 0.5
        else:
            low, high = _RANGES.get(leaf, (0.5, 1.5))
            values = rng.uniform(low, high, entry.shape)
        state[name] = values.astype(DTYPES[entry.dtype])
    return state


def _block(name: str) -> str:
    stage, _, rest = name.partition(".")
    return f"{stage}.{rest.partition('.')[0]}" if stage.startswith("layer") else ""


def _last_kernel(block: str, entries: Mapping[str, Entry]) -> str:
    names = (f"{block}.conv3.weight", f"{block}.conv2.weight")
    return next((name for name in names if name in entries), "")
