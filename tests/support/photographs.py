"""Real photographs that packages ship, and folders of parts of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import matplotlib.cbook
import numpy as np
import sklearn.datasets
from PIL import Image


@functools.cache
def photographs() -> list[Image.Image]:
    """Three, of about 640x430 and 512x600."""
    shipped = sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))
    sample = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    found = [Image.open(path).convert("RGB") for path in (*shipped, Path(str(sample)))]
    assert len(found) == 3
    return found


def cut(number: int, width: int = 0, height: int = 0) -> Image.Image:
    """A part of a photograph; each number gives another one, of another size."""
    image = photographs()[number % 3]
    width, height = width or 90 + number * 17 % 140, height or 80 + number * 29 % 150
    left = number * 37 % (image.width - width)
    top = number * 53 % (image.height - height)
    return image.crop((left, top, left + width, top + height))


def folder_of(root: Path, classes: Mapping[str, int], first: int = 0) -> Path:
    """Writes JPEGs and PNGs into a folder for each class."""
    number = first
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            ending = ".png" if number % 5 == 4 else ".jpg"
            cut(number).save(root / name / f"{i:02}{ending}")
            number += 1
    return root


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Pixels of which no two rows are alike."""
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
