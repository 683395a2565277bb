"""torch's random functions, taking their numbers from one of numpy's generators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch


@contextmanager
def torch_draws_from(numbers: np.random.Generator) -> Iterator[None]:
    """Feeds torchvision's transforms the draws that ours would get."""

    def rand(*_: Any) -> torch.Tensor:
        return torch.from_numpy(numbers.random(1, np.float32))

    def randint(*ends: Any, size: tuple[int, ...] = (1,), **_: Any) -> torch.Tensor:
        numbered = [end for end in ends if isinstance(end, int)]  # the rest is a size
        assert size == (1,)
        return torch.from_numpy(numbers.integers(*numbered, size=1))

    def uniform_(into: torch.Tensor, low: Any = 0, high: Any = 1) -> torch.Tensor:
        # As torch's kernel: one rounding of the sum, which test_augment holds to.
        ends = np.float32(float(low)), np.float32(float(high))
        unit = float(numbers.random(dtype=np.float32))
        value = float(ends[1] - ends[0]) * unit + float(ends[0])
        return into.copy_(torch.tensor([np.float32(value)]))

    with (
        mock.patch("torch.rand", rand),
        mock.patch("torch.randint", randint),
        mock.patch("torch.Tensor.uniform_", uniform_),
    ):
        yield
