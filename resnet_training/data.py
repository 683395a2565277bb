"""Opens whatever data there are under a path."""

from __future__ import annotations

import os

from parity.errors import InputError
from resnet_training.arrays import open_npz
from resnet_training.cifar import find_cifar, open_cifar
from resnet_training.folders import ImageFolder, class_folders
from resnet_training.sources import Data, both, split


def is_npz(path: str) -> bool:
    """Says whether it is the name of a .npz, and of no folder."""
    return path.lower().endswith(".npz") and not os.path.isdir(path)


def open_data(
    path: str | os.PathLike[str], *, val_split: float | None = None, seed: int = 0
) -> Data:
    """Opens images to train on and others to validate on.

    Args:
        path: a folder with ``train/CLASS/*`` and ``val/CLASS/*``; or with ``CLASS/*``
            alone, and ``val_split``; CIFAR-10 or CIFAR-100 as unpacked, the binary or
            the python version; or a ``.npz`` with ``images`` and ``labels``.
        val_split: the part of each class that is validated on, where nothing else is.
        seed: of that split.

    Raises:
        InputError: there is nothing of the kind, a class has no image, validation has
            other classes than training, or nothing, or two things, say what to
            validate on.
    """
    path = os.fspath(path)
    if is_npz(path):
        return open_npz(path, val_split=val_split, seed=seed)
    folders = class_folders(path)
    if (cifar := find_cifar(path)) is not None:
        if val_split is not None:
            raise InputError(
                "is CIFAR, which has images for validation, and val_split is given",
                path=path,
                advice="Leave out val_split (--val-split)",
            )
        return open_cifar(cifar)
    if "train" in folders and "val" in folders:
        if val_split is not None:
            raise InputError(
                "has train and val, and val_split is given besides",
                path=path,
                advice="Leave out val_split (--val-split), or name one folder in it",
            )
        train, validation = (
            ImageFolder(os.path.join(path, part)) for part in ("train", "val")
        )
        return both(train, validation, path)
    if lone := [name for name in ("train", "val") if name in folders]:
        other = "val" if lone == ["train"] else "train"
        way = "name its train with val_split (--val-split)"
        raise InputError(
            f"has {lone[0]} and no {other}",
            path=path,
            advice=f"Add {other}/CLASS/…" + (f", or {way}" if other == "val" else ""),
        )
    whole = ImageFolder(path)
    if val_split is None:
        raise InputError(
            "has nothing to validate on",
            path=path,
            advice="Make train/CLASS/… and val/CLASS/… in it, or give val_split "
            "(--val-split 0.1 keeps a tenth of each class)",
        )
    return split(whole, val_split, seed, path)
