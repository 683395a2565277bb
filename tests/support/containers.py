"""Arrays in containers of others, and how to refuse one that is made to harm."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ml_dtypes
import numpy as np

from tests.support.corpus import refused

TREE: dict[str, np.ndarray] = {
    "params/conv_init/kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "params/Dense_0/bias": np.array([-0.0, np.nan, np.inf], np.float16),
    "batch_stats/bn_init/var": np.arange(6.0)[::-1].reshape(2, 3).T,
    "step": np.array(7),
}
HALF = {"params/half": np.arange(5).astype(ml_dtypes.bfloat16)}
LAYERS: dict[str, np.ndarray] = {
    "conv1_conv/kernel": np.arange(108, dtype=np.float32).reshape(3, 3, 3, 4),
    "conv1_conv/bias": np.arange(4, dtype=np.float32),
    **{
        f"conv1_bn/{leaf}": np.full(4, number, np.float32)
        for number, leaf in enumerate(("gamma", "beta", "moving_mean"))
    },
    "conv1_bn/moving_variance": np.ones(4, ml_dtypes.bfloat16),
    "predictions/kernel": np.ones((4, 2), np.float64),
}
KERAS = {name: np.asarray(value, np.float32) for name, value in LAYERS.items()}
SMALL = {"params/conv/kernel": np.arange(12, dtype=np.float32).reshape(3, 4)}


@contextmanager
def little_memory(most: int = 2**26) -> Iterator[None]:
    """Within it Python and numpy may hold this many bytes more, and no more."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def refused_cheaply(path: Path, *parts: str) -> None:
    """Loads a bad file as ``refused`` does, and without making room for its claims."""
    with little_memory():
        refused(path, *parts)
