"""What all tests share: strictness, torchvision as the oracle, one real photograph."""

from __future__ import annotations

from pathlib import Path

import jax
import matplotlib.cbook
import pytest
from hypothesis import settings

from benchmarks.torchvision_import import import_torchvision

# A mixed dtype or rank in the Flax twin is a bug, never a convenience.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Deadlines measure compilers here, not code.
settings.register_profile("default", deadline=None, print_blob=True)
settings.load_profile("default")


import_torchvision()


@pytest.fixture(scope="session")
def photo() -> Path:
    """A real photograph, 512 pixels wide and 600 high."""
    return Path(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
