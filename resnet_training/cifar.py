"""CIFAR-10 and CIFAR-100 as their authors pack them; nothing in a file is ever run."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from parity.errors import InputError
from parity.inputs import open_regular
from resnet_training.arrays import Arrays
from resnet_training.sources import Data, both

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE
_MOST_BYTES = 2**29  # CIFAR-100's training images in one file: 155 MB


class Cifar(NamedTuple):
    """One of the four kinds of folders, and where it is."""

    folder: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels: str
    names: str
    classes: int
    bytes_before: int  # of a binary record, before its pixels: coarse label, label


_TEN = tuple(f"data_batch_{i}" for i in range(1, 6))
_KINDS = (
    Cifar("", _TEN, "test_batch", "batches.meta", "labels", "label_names", 10, 0),
    Cifar("", ("train",), "test", "meta", "fine_labels", "fine_label_names", 100, 0),
    Cifar(
        "",
        tuple(f"{name}.bin" for name in _TEN),
        *("test_batch.bin", "batches.meta.txt", "", ""),
        *(10, 1),
    ),
    Cifar("", ("train.bin",), "test.bin", "fine_label_names.txt", "", "", 100, 2),
)
_UNPACKED = (
    *("cifar-10-batches-py", "cifar-100-python"),
    *("cifar-10-batches-bin", "cifar-100-binary"),
)


def find_cifar(path: str) -> Cifar | None:
    """Says which kind of CIFAR lies in a folder, or in one in it that is named so."""
    folders = [path, *(os.path.join(path, name) for name in _UNPACKED)]
    for folder in folders:
        for kind in _KINDS:
            marks = (kind.train[0], kind.test)
            if all(os.path.isfile(os.path.join(folder, mark)) for mark in marks):
                return kind._replace(folder=folder)
    return None


def open_cifar(kind: Cifar) -> Data:
    """Reads CIFAR: its training images, and its test images for validation.

    Raises:
        InputError: a file is missing, damaged, or has something else in it.
    """
    classes = _class_names(kind)
    train, test = (
        _images(kind, files, classes) for files in (kind.train, (kind.test,))
    )
    return both(train, test, kind.folder)


def _images(kind: Cifar, files: Sequence[str], classes: Sequence[str]) -> Arrays:
    read = _of_binary if kind.bytes_before else _of_pickle
    parts = [read(kind, os.path.join(kind.folder, file)) for file in files]
    pixels, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    planes = pixels.reshape(-1, 3, _SIDE, _SIDE)
    where = os.path.join(kind.folder, files[0] if len(files) == 1 else files[0][:-1])
    return Arrays(planes.transpose(0, 2, 3, 1), labels, classes, where)


def _read(path: str) -> bytes:
    with open_regular(path, _MOST_BYTES) as file:
        return file.read()


def _of_binary(kind: Cifar, path: str) -> tuple[np.ndarray, np.ndarray]:
    data = np.frombuffer(_read(path), np.uint8)
    record = kind.bytes_before + _PIXELS
    if len(data) % record:
        raise InputError(
            f"has {len(data)} bytes, and records of CIFAR-{kind.classes} have {record}",
            path=path,
        )
    records = data.reshape(-1, record)
    return records[:, kind.bytes_before :], records[:, kind.bytes_before - 1]


def _of_pickle(kind: Cifar, path: str) -> tuple[np.ndarray, np.ndarray]:
    found = _inert(path)
    data, labels = found.get("data"), found.get(kind.labels)
    pixels = data.array() if isinstance(data, _Array) else None
    if pixels is None or pixels.dtype != np.uint8 or pixels.shape[1:] != (_PIXELS,):
        raise InputError(f"has no 'data' of uint8 and shape (n, {_PIXELS})", path=path)
    fits = isinstance(labels, list) and len(labels) == len(pixels)
    fits = fits and all(type(n) is int and 0 <= n < 2**31 for n in labels or [])
    if not fits:
        raise InputError(
            f"has no list {kind.labels!r} with an integer for each image", path=path
        )
    return pixels, np.array(labels, np.int64)


def _class_names(kind: Cifar) -> list[str]:
    path = os.path.join(kind.folder, kind.meta)
    if kind.bytes_before:
        if not os.path.exists(path):
            return [str(i) for i in range(kind.classes)]
        names = _read(path).decode("utf-8", "replace").splitlines()
        names = [name.strip() for name in names if name.strip()]
    else:
        names = _inert(path).get(kind.names)
    listed = names if isinstance(names, list) else []
    texts = [name for name in listed if isinstance(name, str)]
    if not len(set(texts)) == len(listed) == kind.classes:
        raise InputError(f"has no list of {kind.classes} names of classes", path=path)
    return texts


class _Dtype:
    """Stands for ``numpy.dtype``: what it is called."""

    def __init__(self, name: object = None, *_: object) -> None:
        self.name = name

    def __setstate__(self, state: object) -> None:
        pass


class _Array:
    """Stands for a numpy array: what is said of it, unchecked until it is asked for."""

    def __init__(self, *said: object) -> None:
        self.said: object = said  # by the newest protocol; older ones set a state

    def __setstate__(self, state: object) -> None:
        self.said = state

    def array(self) -> np.ndarray | None:
        """Returns the bytes in it as what they are said to be; ``None`` if not so."""
        match self.said:
            case (int(), (int() as n, int() as width), _Dtype() as kind, False, data):
                pass
            case (data, _Dtype() as kind, (int() as n, int() as width), "C"):
                pass
            case _:
                return None
        if not isinstance(data, bytes | bytearray):
            return None
        return self._of(n, width, bytes(data), kind.name)

    @staticmethod
    def _of(n: int, width: int, data: bytes, kind: object) -> np.ndarray | None:
        uint8 = kind in (b"u1", "u1", b"|u1", "|u1")
        if not uint8 or n < 0 or width != _PIXELS or n * width != len(data):
            return None
        return np.frombuffer(data, np.uint8).reshape(n, width)


class _Encoded:
    """Stands for ``_codecs.encode``, by which Python 3 writes bytes as Python 2 did."""

    def __new__(cls, text: object = "", encoding: object = "") -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError("text that is no bytes")
        return text.encode("latin1")

    def __setstate__(self, state: object) -> None:
        pass


_STAND_INS = {
    ("_codecs", "encode"): _Encoded,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.numeric", "_frombuffer"): _Array,
}


class _Inert(pickle.Unpickler):
    """Makes dicts, lists, texts and numbers; of all else, stand-ins that do nothing."""

    def find_class(self, module: str, name: str) -> Any:
        if (stand_in := _STAND_INS.get((module, name))) is None:
            raise InputError(
                f"holds more than an array and labels: it would run or build "
                f"{module}.{name}, and was not loaded",
                advice="Get it from CIFAR's authors",
            )
        return stand_in


def _inert(path: str) -> dict[str, Any]:
    """Reads the dict that a pickle holds, and runs nothing in it."""
    try:
        found = _Inert(io.BytesIO(_read(path)), encoding="bytes").load()
    except InputError as error:
        raise error if error.path else error.at(path) from None
    except Exception as error:  # damaged pickles raise whatever they meet
        raise InputError(
            f"is no pickle of CIFAR's ({type(error).__name__}), or a damaged one",
            path=path,
        ) from None
    if not isinstance(found, dict):
        raise InputError("is a pickle of something else than a dict", path=path)
    return {_text(name): _texts(value) for name, value in found.items()}


def _texts(value: Any) -> Any:
    return [_text(v) for v in value] if isinstance(value, list) else value


def _text(value: Any) -> Any:
    """Returns a text of Python 2 as one of Python 3."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
