"""Images that are arrays already: of one's own, or in a .npz."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from parity.errors import InputError
from parity.inputs import open_regular
from resnet_training.sources import Data, Source, both, split

_MOST_BYTES = 2**38


class Arrays(Source):
    """Images in memory, or mapped from a file.

    Args:
        images: uint8 of shape (n, h, w), (n, h, w, 1) or (n, h, w, 3).
        labels: integers of shape (n,).
        classes: names; ``None`` for the numbers from 0 to the largest label.
        where: they come from, for messages.

    Raises:
        InputError: an array has another type or shape.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray | Sequence[int],
        classes: Sequence[str] | None = None,
        where: str = "images",
    ) -> None:
        labels = np.asarray(labels)
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
            got = images.dtype if isinstance(images, np.ndarray) else type(images)
            raise _unfit("images", f"are of type {got}", "uint8, from 0 to 255", where)
        gray = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 1)
        if not gray and not (images.ndim == 4 and images.shape[3] == 3):
            allowed = "(n, h, w), (n, h, w, 1) or (n, h, w, 3)"
            raise _unfit("images", f"have shape {images.shape}", allowed, where)
        if 0 in images.shape[1:3]:
            raise _unfit("images", f"have shape {images.shape}", "pixels", where)
        if labels.dtype.kind not in "iu" and len(labels):
            raise _unfit("labels", f"are of type {labels.dtype}", "integers", where)
        if labels.shape != images.shape[:1]:
            allowed = f"({len(images)},), one label for each image"
            raise _unfit("labels", f"have shape {labels.shape}", allowed, where)
        self.images = images[..., 0] if gray and images.ndim == 4 else images
        self.labels, self.where = labels.astype(np.int64), where
        if classes is None:
            classes = [str(i) for i in range(int(max(self.labels, default=-1)) + 1)]
        self.classes = tuple(map(str, classes))
        digest = hashlib.sha256(repr(self.images.shape).encode())
        for start in range(0, len(images), 1024):  # a mapped file need not fit at once
            some = np.ascontiguousarray(self.images[start : start + 1024])
            digest.update(some.data)
        digest.update(self.labels.astype("<i8").tobytes())
        self.fingerprint = digest.hexdigest()

    def items(self, indices: np.ndarray) -> np.ndarray:
        """Returns the pixels of some images."""
        return np.ascontiguousarray(self.images[indices])

    def name(self, index: int) -> str:
        """Returns where an image stands."""
        return f"{self.where}[{index}]"


def _unfit(name: str, got: str, allowed: str, where: str) -> InputError:
    return InputError(
        f"{name} {got}; they must be {allowed}" if "shape" not in got
        else f"{name} {got}; it must be {allowed}",
        path=where,
        advice="Change the array",
    )  # fmt: skip


def of_arrays(
    images: np.ndarray,
    labels: np.ndarray | Sequence[int],
    *,
    val_images: np.ndarray | None = None,
    val_labels: np.ndarray | Sequence[int] | None = None,
    classes: Sequence[str] | None = None,
    val_split: float | None = None,
    seed: int = 0,
    where: str = "images",
) -> Data:
    """Returns data that are arrays.

    Args:
        images: uint8 of shape (n, h, w), (n, h, w, 1) or (n, h, w, 3).
        labels: integers of shape (n,).
        val_images: for validation; of any size.
        val_labels: for validation.
        classes: names; ``None`` for the numbers from 0 to the largest label.
        val_split: the part of each class that is validated on, if nothing else is.
        seed: of the split.
        where: they come from, for messages.

    Raises:
        InputError: an array does not fit, a class has no image, or nothing, or two
            things, say what to validate on.
    """
    if (val_images is None) != (val_labels is None):
        lacking = "val_images" if val_images is None else "val_labels"
        raise InputError(f"has no {lacking}", path=where, advice=f"Give {lacking}")
    if (val_images is None) == (val_split is None):
        raise InputError(
            "has nothing to validate on" if val_split is None
            else "has images for validation, and val_split is given besides",
            path=where,
            advice="Give either val_images and val_labels, or val_split (--val-split)",
        )  # fmt: skip
    train = Arrays(images, labels, classes, where)
    if val_images is None or val_labels is None:
        return split(train, val_split or 0.0, seed, where)
    # A label that training has not shall be called so, not become a class.
    validation = Arrays(val_images, val_labels, train.classes, f"{where}, validation")
    return both(train, validation, where)


def open_npz(path: str, *, val_split: float | None = None, seed: int = 0) -> Data:
    """Reads ``images``, ``labels``, and perhaps ``val_images``, ``val_labels`` and
    ``classes``, from a .npz. Nothing in it is run: arrays of objects are refused.

    Raises:
        InputError: it is no such file, or as :func:`of_arrays`.
    """  # noqa: D205  the names are one list
    arrays, classes = _read_npz(path)
    return of_arrays(
        **arrays, classes=classes, val_split=val_split, seed=seed, where=path
    )


def validation_of_npz(path: str) -> Source:
    """Reads the images of a .npz to validate on; all, if none are set apart for it.

    Raises:
        InputError: it is no such file, or an array does not fit.
    """
    arrays, classes = _read_npz(path)
    if len(arrays) > 2:
        return of_arrays(**arrays, classes=classes, where=path).validation
    return Arrays(arrays["images"], arrays["labels"], classes, path)


def _read_npz(path: str) -> tuple[dict[str, Any], list[str] | None]:
    known = ("images", "labels", "val_images", "val_labels", "classes")
    with open_regular(path, _MOST_BYTES) as file:
        try:
            with np.load(file, allow_pickle=False) as found:
                arrays = {name: found[name] for name in known if name in found.files}
                names = list(found.files)
        except Exception as error:  # a damaged zip has many
            what = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"cannot be read as a .npz ({what})", path=path) from error
    for name in ("images", "labels"):
        if name not in arrays:
            there = ", ".join(map(repr, names)) or "nothing"
            raise InputError(
                f"has no array {name!r}; there is {there}",
                path=path,
                advice="Save it with numpy.savez(path, images=…, labels=…)",
            )
    classes = arrays.pop("classes", None)
    return arrays, None if classes is None else [str(c) for c in np.ravel(classes)]
