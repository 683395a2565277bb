"""A folder for each class, read as torchvision's ImageFolder reads it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

import numpy as np

from parity.errors import InputError
from resnet_training.sources import Source

EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"),
)
"""What torchvision takes for an image, in any case."""


class ImageFolder(Source):
    """``root/CLASS/…/image.jpg``: classes and files in torchvision's order.

    Args:
        root: the folder of the classes' folders.

    Raises:
        InputError: it is no folder, cannot be read, has no folders in it, or a link in
            it leads to a folder above itself.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.fspath(root)
        self.classes = tuple(class_folders(self.root))
        if not self.classes:
            raise InputError(
                "has no folders in it, and each class needs one",
                path=self.root,
                advice="Put the images of each class into a folder of its own",
            )
        found: list[tuple[str, int]] = []
        for label, name in enumerate(self.classes):
            found += [(file, label) for file in _files(self.root, name)]
        self.names = [file for file, _ in found]
        self.labels = np.array([label for _, label in found], np.int64)
        digest = hashlib.sha256()
        for file, label in sorted(found):
            there = file.replace(os.sep, "/")
            line = f"{there}\0{_size(os.path.join(self.root, file))}\0{label}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        self.fingerprint = digest.hexdigest()

    def items(self, indices: np.ndarray) -> list[str]:
        """Returns the paths of some images."""
        return [self.name(int(index)) for index in indices]

    def name(self, index: int) -> str:
        """Returns the path of an image."""
        return os.path.join(self.root, self.names[index])


def class_folders(root: str) -> list[str]:
    """Returns the names of the folders in a folder, sorted.

    Raises:
        InputError: there is no such folder, or it cannot be read.
    """
    try:
        with os.scandir(root) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise _unreadable(root, error) from error


def _files(root: str, name: str) -> list[str]:
    """Returns the images of a class, below the root, in torchvision's order.

    That sorts the folders by their whole names, and the files in each.
    """
    walked = sorted(_walk(root, name, ()))
    return [
        os.path.join(folder, file)
        for folder, files in walked
        for file in sorted(files)
        if file.lower().endswith(EXTENSIONS)
    ]


def _walk(
    root: str, folder: str, above: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, list[str]]]:
    """Yields a folder and those in it, through links, each with its files."""
    path = os.path.join(root, folder)
    try:
        found = os.stat(path)
        with os.scandir(path) as scanned:
            entries = [(entry.name, entry.is_dir()) for entry in scanned]
    except OSError as error:
        raise _unreadable(path, error) from error
    here = (found.st_dev, found.st_ino)
    if here in above:  # os.walk goes round forty times, and finds each image as often
        raise InputError(
            "is a link to a folder that it lies in",
            path=path,
            advice="Remove the link",
        )
    yield folder, [name for name, is_folder in entries if not is_folder]
    for name, is_folder in entries:
        if is_folder:
            yield from _walk(root, os.path.join(folder, name), (*above, here))


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # a link to nothing: broken, if it is ever read
        return -1


def _unreadable(path: str, error: Exception) -> InputError:
    missing = isinstance(error, FileNotFoundError)
    file = isinstance(error, NotADirectoryError)
    reason = getattr(error, "strerror", None) or str(error)
    problem = "is no folder" if file else f"cannot be read as a folder ({reason})"
    problem = "no such folder" if missing else problem
    return InputError(problem, path=path, advice="Check the path and its permissions")
