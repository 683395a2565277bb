"""What networks of others need."""

from __future__ import annotations

from typing import Any

import jax
import pytest
import torch


@pytest.fixture
def loose() -> Any:
    """Others' networks need not be strict."""
    torch.manual_seed(0)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield
