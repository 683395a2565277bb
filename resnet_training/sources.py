"""What can be trained on: images by number, with labels and the names of classes."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from parity.errors import InputError
from resnet_training.pictures import Items, picture

_SPLIT = 1  # tells the split's random numbers from those of an epoch


class Source(ABC):
    """Images with labels. Reading one needs no other, so any process can do it.

    Attributes:
        labels: int64 of shape (n,), each the place of a class.
        classes: their names.
        fingerprint: sha256 of the images' names, sizes and labels; of images in memory,
            of the pixels and labels.
    """

    labels: np.ndarray
    classes: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def items(self, indices: np.ndarray) -> Items:
        """Returns what some images are read from: paths, or their pixels."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Returns what an image is called in messages: its path, or its place."""

    def read(self, index: int) -> Image.Image:
        """Reads an image, in RGB.

        Raises:
            InputError: it cannot be read.
        """
        return picture(self.items(np.array([index]))[0])


class Part(Source):
    """Some of a source's images.

    Args:
        whole: the source.
        rows: which of its images.
    """

    def __init__(self, whole: Source, rows: np.ndarray) -> None:
        self.whole, self.rows = whole, rows
        self.labels, self.classes = whole.labels[rows], whole.classes
        digest = hashlib.sha256(whole.fingerprint.encode())
        digest.update(np.asarray(rows, "<i8").tobytes())
        self.fingerprint = digest.hexdigest()

    def items(self, indices: np.ndarray) -> Items:
        """Returns what some images are read from."""
        return self.whole.items(self.rows[indices])

    def name(self, index: int) -> str:
        """Returns what an image is called in messages."""
        return self.whole.name(int(self.rows[index]))


@dataclass(frozen=True)
class Data:
    """What a run trains on, and what it is evaluated on.

    Args:
        train: images to learn from.
        validation: others, of the same classes.
    """

    train: Source
    validation: Source

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the network's outputs."""
        return self.train.classes

    @property
    def fingerprint(self) -> str:
        """Sha256 that tells these data from others."""
        parts = (self.train.fingerprint, self.validation.fingerprint, *self.classes)
        text = "\0".join(parts).encode("utf-8", "surrogateescape")
        return hashlib.sha256(text).hexdigest()


def both(train: Source, validation: Source, where: str) -> Data:
    """Puts two sources together.

    Raises:
        InputError: a class has no image in one of them, or they have other classes.
    """
    missing = _named(c for c in train.classes if c not in validation.classes)
    further = _named(c for c in validation.classes if c not in train.classes)
    if missing or further:
        said = [f"has no class {missing}"] if missing else []
        said += [f"has {further} besides, which training has not"] if further else []
        raise InputError(
            f"validation {' and '.join(said)}",
            path=where,
            advice="Both must have the same classes",
        )
    for part, source in (("training", train), ("validation", validation)):
        require_all_classes(source, f"{where} ({part})")
    return Data(train, validation)


def require_all_classes(source: Source, where: str) -> None:
    """Checks that there are two classes and each has an image.

    Raises:
        InputError: it is not so, or a label is no class's.
    """
    labels, count = source.labels, len(source.classes)
    if len(labels) == 0:
        raise InputError(
            "has no images", path=where, advice="Check that it is the right path"
        )
    if count < 2:
        raise InputError(
            f"has one class, {_named(source.classes)}, and nothing to tell it from",
            path=where,
            advice="Give a folder for each class",
        )
    if labels.min() < 0 or labels.max() >= count:
        wrong = int(labels.min() if labels.min() < 0 else labels.max())
        raise InputError(
            f"has the label {wrong}, and labels of {count} classes go from 0 to "
            f"{count - 1}",
            path=where,
            advice="Number the classes from 0",
        )
    images = np.bincount(labels, minlength=count)
    if empty := _named(c for c, n in zip(source.classes, images, strict=True) if not n):
        raise InputError(
            f"has no image of class {empty}",
            path=where,
            advice="Add images, or take the class out",
        )


def split(source: Source, part: float, seed: int, where: str) -> Data:
    """Keeps a part of each class for validation.

    Which images, the seed and the class alone decide.

    Args:
        source: all images.
        part: of each class, between 0 and 1; at least one image, and never all.
        seed: of the choice.
        where: the source comes from, for messages.

    Raises:
        InputError: a class has one image only.
        ValueError: the part is no number between 0 and 1.
    """
    if isinstance(part, bool) or not isinstance(part, int | float) or not 0 < part < 1:
        raise ValueError(f"val_split is {part!r}; it must be a number between 0 and 1")
    require_all_classes(source, where)
    chosen = np.zeros(len(source), bool)
    for label, name in enumerate(source.classes):
        rows = np.flatnonzero(source.labels == label)
        if len(rows) < 2:
            raise InputError(
                f"has one image of class {_named([name])}, and a split needs two",
                path=where,
                advice="Add images, or take the class out",
            )
        count = min(max(round(part * len(rows)), 1), len(rows) - 1)
        numbers = np.random.default_rng([seed, label, _SPLIT])
        chosen[numbers.permutation(rows)[:count]] = True
    return Data(
        Part(source, np.flatnonzero(~chosen)), Part(source, np.flatnonzero(chosen))
    )


def _named(classes: Sequence[str] | object, most: int = 5) -> str:
    names = [repr(name) for name in classes]  # type: ignore[attr-defined]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
