"""The files that weights come in: recognised by content, checked before they are read.

Nothing here builds a tensor before the structure around it has been found sound, and
nothing trusts a name's extension. What comes out is still only what the file says.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from parity.errors import CheckpointError
from parity.files.content import MAX_BYTES, Content, Hear
from parity.files.hdf5 import MAGIC
from parity.files.hub_config import (
    WEIGHTS,
    describes,
    is_hub_folder,
    is_index,
    read_config,
)
from parity.files.keras_format import KERAS_MEMBERS, read_hdf5, read_keras
from parity.files.msgpack_format import is_msgpack, read_msgpack
from parity.files.npz import read_npz
from parity.files.orbax_format import is_folder, read_orbax
from parity.files.pth import LEGACY_MAGIC, read_legacy, read_zip
from parity.files.safetensors_format import entries_at, header_of, read_safetensors
from parity.files.shards import read_shards
from parity.files.stages import stage
from parity.inputs import open_regular

_NOT_CHECKPOINTS: dict[bytes, str] = {
    b"\x1f\x8b": "is compressed with gzip. Unpack it first",
    b"\xfd7zXZ\0": "is compressed with xz. Unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd. Unpack it first",
    b"BZh": "is compressed with bzip2. Unpack it first",
    b"version https://git-lfs": "is a Git LFS pointer, not the file it points to. "
    "Fetch that with `git lfs pull`",
}


_TO_NPZ = (
    "Let its owner write it as numpy.savez('weights.npz', **names_to_arrays), and use "
    "that"
)

_OF_TF = (
    "is TensorFlow's, which it takes to read it; TF-slim's ResNets and those for TPUs "
    f"pad or stride as none here. Of others: {_TO_NPZ[0].lower()}{_TO_NPZ[1:]}"
)
_END_OF_INDEX = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"  # of a table of LevelDB's

_OTHERS: dict[bytes, str] = {
    b"\x08\x01\x12": _OF_TF,  # a SavedModel; ONNX has not had version 1 for long
    **{
        bytes(
            (0x80, protocol)
        ): "is a plain pickle, as of Paddle, Caffe2, Detectron2's "
        f"model zoo or Haiku: to open it is to run it. {_TO_NPZ}"
        for protocol in (2, 3, 4, 5)
    },
    b"\x12\x01\0\0\0\0\0\0": "is MXNet's or Gluon's. timm has gluoncv's weights as "
    "gluon_in1k; use those",
    b"\x08": "is ONNX, or another protocol buffer: its norms are folded and its names "
    "lost. Use the weights that it was exported from",
}
"""What no reader here is for, and why."""


_EXTENSIONS: dict[str, tuple[str, ...]] = {
    "safetensors": (".safetensors",),
    ".pth": (".pth", ".pt"),
    "legacy .pth": (".pth", ".pt"),
    "npz": (".npz",),
    "msgpack": (".msgpack",),
    "HDF5": (".h5", ".hdf5"),
    "Keras HDF5": (".h5", ".hdf5"),
    "Keras 3 HDF5": (".h5", ".hdf5"),
    ".keras": (".keras",),
}
"""How files of a kind are called."""


def read(path: Path) -> Content:
    """Opens a file, recognises it, checks its structure and reads it, all of it once.

    Args:
        path: the file, or the folder that Orbax makes.

    Raises:
        CheckpointError: no such file, no file of weights, or a damaged one.
    """
    sha = hashlib.sha256()
    hear = stage("validation")(sha.update)
    if is_hub_folder(path):
        path = _weights_in(path)
    try:
        if is_folder(path):
            content = read_orbax(path, hear)
            content.sha256 = sha.hexdigest()
            content.told = read_config(path)
            return content
        if is_index(path.name):
            content = read_shards(path, _recognise, hear)
        else:
            with open_regular(path, MAX_BYTES, CheckpointError) as file:
                size = os.fstat(file.fileno()).st_size
                content = _recognise(file, size)(file, size, hear)
                content.size = size
    except OSError as error:
        raise CheckpointError(
            f"cannot be read ({error.strerror or error})",
            advice="Check the path and its permissions",
        ) from error
    content.sha256 = sha.hexdigest()
    if describes(path):
        content.told = read_config(path.parent)
    known = {suffix for suffixes in _EXTENSIONS.values() for suffix in suffixes}
    suffix = path.suffix.lower()
    if suffix in known and suffix not in _EXTENSIONS[content.kind]:
        content.notes.append(f"the content is {content.kind}, whatever the name says")
    return content


def each(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields names and values of a file that was just written, whatever its size.

    Of a .safetensors one entry at a time is in memory; torch reads only whole files.

    Args:
        path: the file or folder; its content tells the format.

    Raises:
        CheckpointError: it is damaged.
    """
    if is_hub_folder(path):
        path = _weights_in(path)
    if is_folder(path):
        yield from read_orbax(path, len).value.items()
        return
    with open_regular(path, MAX_BYTES, CheckpointError) as file:
        size = os.fstat(file.fileno()).st_size
        read_all = _recognise(file, size)
        if read_all is read_safetensors:
            yield from entries_at(file, header_of(file, size)[0])
        else:
            yield from read_all(file, size, len).value.items()


def _weights_in(folder: Path) -> Path:
    return next(folder / name for name in WEIGHTS if (folder / name).is_file())


def _recognise(file: BinaryIO, size: int) -> Callable[[BinaryIO, int, Hear], Content]:
    head = file.read(512)
    if head.startswith(b"PK\x03\x04"):  # the first name may be as long as 64 KiB
        head += file.read(int.from_bytes(head[26:28], "little"))
    file.seek(0)
    for magic, what in _NOT_CHECKPOINTS.items():
        if head.startswith(magic):
            raise _other(what)
    if head.startswith(b"PK\x03\x04"):
        first = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        if first.endswith(b".npy"):
            return read_npz
        return read_keras if first.decode("latin-1") in KERAS_MEMBERS else read_zip
    if head.startswith(MAGIC):
        return read_hdf5
    if head.startswith(LEGACY_MAGIC):
        return read_legacy
    if size > 8 and head[8:9] == b"{":
        return read_safetensors
    for magic, what in _OTHERS.items():
        if head.startswith(magic):
            raise _other(what)
    if is_msgpack(head):
        return read_msgpack
    if head.lstrip()[:1] == b"<":
        raise CheckpointError(
            "is a web page, not weights",
            advice="Its download met an error page; get it again",
        )
    if head[257:262] == b"ustar":
        raise CheckpointError(
            "is a tar archive, which torch wrote before version 0.4",
            advice="Load it with that torch and save it again",
        )
    file.seek(max(size - len(_END_OF_INDEX), 0))
    if file.read() == _END_OF_INDEX:
        raise CheckpointError(_OF_TF)
    raise CheckpointError(
        "is no .pth and no .safetensors, nor .npz, .msgpack, .h5 or .keras (it begins "
        f"with {head[:8]!r})",
        advice="Check that this is the right file",
    )


def _other(what: str) -> CheckpointError:
    problem, _, advice = what.partition(". ")
    return CheckpointError(problem, advice=advice)
