"""The files that weights come in: recognised by content, checked before they are read.

Nothing here builds a tensor before the structure around it has been found sound, and
nothing trusts a name's extension. What comes out is still only what the file says.
"""

from __future__ import annotations

import io
import json
import os
import re
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from parity.digest import sha256_of
from parity.errors import CheckpointError

_Place = tuple[np.dtype, tuple[int, ...], int, int]
"""Dtype and shape of an entry of a .safetensors, and where its bytes begin and end."""

METADATA_KEY = "resnet_twins"
"""Where a file of this project carries its metadata, one JSON object."""

MAX_BYTES = 64 * 2**30
MAX_HEADER = 100_000_000  # safetensors' own limit

_SAFETENSORS_DTYPES: dict[str, Any] = {
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_NOT_CHECKPOINTS: dict[bytes, str] = {
    b"\x1f\x8b": "is compressed with gzip. Unpack it first",
    b"\xfd7zXZ\0": "is compressed with xz. Unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd. Unpack it first",
    b"BZh": "is compressed with bzip2. Unpack it first",
    b"version https://git-lfs": "is a Git LFS pointer, not the file it points to. "
    "Fetch that with `git lfs pull`",
}


@dataclass
class Content:
    """What a file says.

    Args:
        kind: the format, in words.
        value: whatever is on top: for safetensors a dict of arrays.
        metadata: this project's own, if the file carries it.
        notes: what the user should know.
        size: of the file, in bytes.
        sha256: of the file, if it was asked for.
    """

    kind: str
    value: Any
    metadata: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    size: int = 0
    sha256: str = ""


def read(path: Path, *, sha256: bool = False) -> Content:
    """Opens a file once, recognises it, checks its structure and reads it.

    Args:
        path: the file.
        sha256: compute the digest of the file too.

    Raises:
        CheckpointError: no such file, no file of weights, or a damaged one.
    """
    try:
        with _open(path) as file:
            size = os.fstat(file.fileno()).st_size
            digest = sha256_of(file) if sha256 else ""
            file.seek(0)
            content = _recognise(file, size)(file, size)
            content.size, content.sha256 = size, digest
    except OSError as error:
        raise CheckpointError(
            f"cannot be read ({error.strerror or error})",
            advice="Check the path and its permissions",
        ) from error
    expected = ".safetensors" if content.kind == "safetensors" else (".pth", ".pt")
    if path.suffix in (".safetensors", ".pth", ".pt") and not path.name.endswith(
        expected
    ):
        content.notes.append(f"the content is {content.kind}, whatever the name says")
    return content


def each(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields names and values of a file that was just written, whatever its size.

    Of a .safetensors one entry at a time is in memory; torch reads only whole files.

    Args:
        path: the file; its content tells the format.

    Raises:
        CheckpointError: it is damaged.
    """
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        read_all = _recognise(file, size)
        if read_all is _read_safetensors:
            yield from _entries_at(file, _header_of(file, size)[0])
        else:
            yield from read_all(file, size).value.items()


def _open(path: Path) -> BinaryIO:
    # Without blocking, so that a FIFO cannot hold us; all else happens on this
    # descriptor, so that the file cannot be exchanged between check and use.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError as error:
        raise CheckpointError("no such file", advice="Check the path") from error
    found = os.fstat(descriptor)
    problem = None
    if stat.S_ISDIR(found.st_mode):
        problem = "is a directory. Name a file in it"
    elif not stat.S_ISREG(found.st_mode):
        problem = "is no regular file. Copy its content to one first"
    elif found.st_size == 0:
        problem = "is empty. Get the file again"
    elif found.st_size > MAX_BYTES:
        problem = f"is larger than {MAX_BYTES} bytes, more than any network here has"
    if problem is not None:
        os.close(descriptor)
        raise CheckpointError(problem)
    return open(descriptor, "rb")


def _recognise(file: BinaryIO, size: int) -> Callable[[BinaryIO, int], Content]:
    head = file.read(512)
    file.seek(0)
    for magic, what in _NOT_CHECKPOINTS.items():
        if head.startswith(magic):
            raise CheckpointError(what)
    if head.startswith(b"PK\x03\x04"):
        return _read_zip
    if head.startswith(_LEGACY_MAGIC):
        return _read_legacy
    if size > 8 and head[8:9] == b"{":
        return _read_safetensors
    if head.lstrip()[:1] == b"<":
        raise CheckpointError(
            "is a web page, not weights. Its download met an error page; get it again"
        )
    if head[257:262] == b"ustar":
        raise CheckpointError(
            "is a tar archive, which torch wrote before version 0.4. Load it with that "
            "torch and save it again"
        )
    raise CheckpointError(
        f"is no .pth and no .safetensors (it begins with {head[:8]!r}). "
        "Check that this is the right file"
    )


# --- .pth, as a zip archive --------------------------------------------------------


def _read_zip(file: BinaryIO, size: int) -> Content:
    notes = _check_zip(file, size)
    return _unpickle(file, ".pth", notes)


def _check_zip(file: BinaryIO, size: int) -> list[str]:
    damaged = "Get the file again"
    file.seek(-min(size, 22), os.SEEK_END)
    end = file.read(22)
    if not (end.startswith(b"PK\x05\x06") and end.endswith(b"\0\0")):
        raise CheckpointError(
            f"the archive does not end at the file's end ({size} bytes): it was cut "
            "short, or something was appended",
            advice=damaged,
        )
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            _check_members(members, size)
            unchecked = bool(members) and all(member.CRC == 0 for member in members)
            for member in members if not unchecked else ():
                with archive.open(member) as data:
                    while data.read(2**20):  # the last read compares the CRC
                        pass
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(
            f"the archive is damaged ({error})", advice=damaged
        ) from error
    return (
        ["the archive has no checksums; its values are unverified"] if unchecked else []
    )


def _check_members(members: list[zipfile.ZipInfo], size: int) -> None:
    names = [member.filename for member in members]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise CheckpointError(f"the archive has {repeated[0]!r} twice")
    for name in names:
        if name.startswith("/") or ".." in name.split("/") or "\\" in name:
            raise CheckpointError(f"the archive has a member outside of it, {name!r}")
    prefixes = {name.partition("/")[0] for name in names}
    if len(prefixes) != 1:
        raise CheckpointError("is a zip archive, but not one of torch.save")
    prefix = prefixes.pop()
    if f"{prefix}/constants.pkl" in names or f"{prefix}/code/" in names:
        raise CheckpointError(
            "is a TorchScript program, not weights. "
            "Save module.state_dict() with torch.save"
        )
    if f"{prefix}/data.pkl" not in names:
        raise CheckpointError(
            "is a zip archive, but not one of torch.save: no data.pkl"
        )
    for member in members:
        name = member.filename
        if member.flag_bits & 0x1:
            raise CheckpointError(f"the archive's member {name!r} is encrypted")
        if member.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"the archive's member {name!r} is compressed")
        if member.header_offset + member.file_size > size:
            raise CheckpointError(f"the archive's member {name!r} is cut short")


# --- .pth, as torch wrote it before version 1.6 ------------------------------------


def _read_legacy(file: BinaryIO, size: int) -> Content:
    data = io.BytesIO(file.read())
    content = _unpickle(data, "legacy .pth", [])
    if data.tell() != size:
        raise CheckpointError(
            f"{size - data.tell()} bytes follow the end of the data at {data.tell()}",
            advice="Get the file again",
        )
    content.notes.append("this old format has no checksums; its values are unverified")
    return content


def _unpickle(file: BinaryIO, kind: str, notes: list[str]) -> Content:
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(
            "is a .pth, and reading one needs torch. Install it with "
            "`pip install resnet-twins[torch]`, or convert the file to .safetensors"
        ) from error
    file.seek(0)
    try:
        value = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's own message tells people to load unsafely: it must not be passed on.
        raise CheckpointError(_what_pickle_said(error)) from None
    metadata = getattr(value, "_metadata", None)
    own = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    return Content(kind, value, _own_metadata(own), notes)


def _what_pickle_said(error: Exception) -> str:
    found = re.search(r"GLOBAL (\S+)|(?:class|global) `?(\w+(?:\.\w+)+)", str(error))
    name = next((group for group in found.groups() if group), "") if found else ""
    if name and not name.startswith("torch.load"):
        return (
            f"holds more than tensors: it would run or build {name}, and was not loaded"
            ". Ask its author for torch.save(model.state_dict(), path)"
        )
    return (
        f"the pickle in it is damaged or holds more than tensors "
        f"({type(error).__name__}), and was not loaded. Get the file again, or ask its "
        "author for torch.save(model.state_dict(), path)"
    )


# --- .safetensors ------------------------------------------------------------------


def _read_safetensors(file: BinaryIO, size: int) -> Content:
    places, metadata = _header_of(file, size)
    return Content("safetensors", dict(_entries_at(file, places)), metadata)


def _header_of(
    file: BinaryIO, size: int
) -> tuple[dict[str, _Place], dict[str, Any] | None]:
    length = int.from_bytes(file.read(8), "little")
    if length > min(MAX_HEADER, size - 8):
        raise CheckpointError(
            f"its header claims {length} bytes, and the file has {size}: it is damaged "
            "or was cut short",
            advice="Get the file again",
        )
    try:
        header = json.loads(
            file.read(length).decode("utf-8"), object_pairs_hook=_no_repeats
        )
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"its header is no JSON ({error})", advice="Get the file again"
        ) from error
    metadata = header.pop("__metadata__", None)
    body = size - 8 - length
    own = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    return _check_header(header, body), _own_metadata(own)


def _entries_at(
    file: BinaryIO, places: dict[str, _Place]
) -> Iterator[tuple[str, np.ndarray]]:
    start = file.tell()
    for name, (dtype, shape, begin, _) in places.items():
        file.seek(start + begin)
        yield name, np.fromfile(file, dtype, prod(shape)).reshape(shape)


def _check_header(header: dict[str, Any], body: int) -> dict[str, _Place]:
    places: dict[str, _Place] = {}
    for name, entry in header.items():
        try:
            shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
            dtype_name = entry["dtype"]
            if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
                raise ValueError("sizes are whole numbers")
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"its header's entry {name!r} is malformed", advice="Get the file again"
            ) from error
        if dtype_name not in _SAFETENSORS_DTYPES:
            raise CheckpointError(f"{name} has the dtype {dtype_name!r}, unknown here")
        dtype = np.dtype(_SAFETENSORS_DTYPES[dtype_name])
        if prod(shape) * dtype.itemsize != end - begin:
            raise CheckpointError(
                f"{name} has shape {shape} and dtype {dtype_name}, and {end - begin} "
                "bytes for it"
            )
        places[name] = (dtype, shape, begin, end)
    position = 0
    for name, (_, _, begin, end) in sorted(places.items(), key=lambda p: p[1][2:]):
        if begin != position:
            raise CheckpointError(
                f"{name} begins at byte {begin} of the data, and the one before it "
                f"ends at {position}"
            )
        position = end
    if position != body:
        raise CheckpointError(
            f"its header describes {position} bytes of data, and {body} follow it: it "
            "was cut short, or something was appended",
            advice="Get the file again",
        )
    return places


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        (repeated, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"it has {repeated!r} twice")
    return found


def _own_metadata(text: object) -> dict[str, Any] | None:
    if not isinstance(text, str):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
