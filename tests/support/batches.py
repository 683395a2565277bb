"""Recipes of batches, and batches told apart by the digest of all that they are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np

from resnet_spec import TrainingRecipe, get_recipe
from resnet_training.loader import Batch

MIXED = {"mixup": 0.2, "cutmix": 1.0, "erasing": 0.5, "augment": "trivial"}


def recipe_of(**given: Any) -> TrainingRecipe:
    return get_recipe("reference", **{"size": 32, "batch": 12, "seed": 5, **given})


def digest(batch: Batch) -> str:
    found = hashlib.sha256()
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, np.ndarray):
            found.update(repr((value.dtype, value.shape)).encode())
            value = np.ascontiguousarray(value).tobytes()
        found.update(value if isinstance(value, bytes) else repr(value).encode())
    return found.hexdigest()


def digests(batches: Iterator[Batch]) -> list[str]:
    return [digest(batch) for batch in batches]
