"""Runs of either twin as it is, without imports of the other's framework."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from parity.state import adapter
from parity.taps import Call, Shape


def run(model: Any, images: np.ndarray) -> np.ndarray:
    """Runs a model as it is on images (n, c, h, w) and returns its result."""
    return _runs(model).run(model, images)


def calls(model: Any, shape: Shape) -> list[Call]:
    """Lists the calls of modules without children, for images of shape (n, c, h, w)."""
    return _runs(model).calls(model, shape)


def _runs(model: Any) -> ModuleType:
    if adapter(model).FRAMEWORK == "torch":
        from parity import runs_torch

        return runs_torch
    from parity import runs_flax

    return runs_flax
