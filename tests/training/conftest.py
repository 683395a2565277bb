"""Images that tests of the loader and of its processes share; not to be changed."""

from __future__ import annotations

import numpy as np
import pytest

from resnet_training.arrays import of_arrays
from resnet_training.folders import ImageFolder
from resnet_training.sources import Data, Source
from tests.support.photographs import folder_of, noise


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """30 photographs of two classes."""
    return ImageFolder(folder_of(tmp_path_factory.mktemp("data"), {"a": 14, "b": 16}))


@pytest.fixture(scope="session")
def arrays() -> Data:
    """40 images of four classes to train on, 10 to validate on."""
    labels = np.arange(40) % 4
    return of_arrays(
        noise(40, 36, 33, 3),
        labels,
        val_images=noise(10, 40, 44, seed=1),
        val_labels=labels[:10],
    )
