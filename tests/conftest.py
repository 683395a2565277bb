"""What all tests share: strictness, torchvision as the oracle, one real photograph."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import matplotlib.cbook
import pytest
import torch
from hypothesis import settings

# A mixed dtype or rank in the Flax twin is a bug, never a convenience.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Deadlines measure compilers here, not code.
settings.register_profile("default", deadline=None, print_blob=True)
settings.load_profile("default")


def _import_torchvision() -> None:
    """Imports torchvision, whose compiled operators do not load beside a CPU torch."""
    try:
        import torchvision
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        boxes = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(f"nms{boxes}")
        library.define(f"qnms{boxes}")
        _LIBRARIES.append(library)  # torch forgets the operators with the object
        import torchvision  # noqa: F401


_LIBRARIES: list[torch.library.Library] = []
_import_torchvision()


@pytest.fixture(scope="session")
def photo() -> Path:
    """A real photograph, 512 pixels wide and 600 high."""
    return Path(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
