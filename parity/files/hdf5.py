"""HDF5 files, of which only plain arrays of numbers within the file are read.

The format can point to other files, make arrays out of others' parts, and claim what
was never written. Every link and every dataset is looked at before anything is read.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from math import prod
from typing import Any

import ml_dtypes
import numpy as np

from parity.errors import CheckpointError
from parity.files.content import MAX_BYTES, require_room

MAGIC = b"\x89HDF\r\n\x1a\n"

_MAX_OBJECTS, _MAX_CHUNKS = 2**16, 2**16
_DEFLATE, _SHUFFLE, _FLETCHER32 = 1, 2, 3
_CONTINUED, _ATTRIBUTE, _MAX_BLOCKS = 0x10, 0x0C, 64  # messages of an object header
_SLACK = 2**12  # what deflate may add to what cannot be compressed


def library() -> Any:
    """Returns h5py.

    Raises:
        CheckpointError: it is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise CheckpointError(
            "is HDF5, and reading or writing that needs h5py",
            advice="Install it with `pip install 'resnet-twins[keras-files]'`",
        ) from error
    return h5py


class Hdf5:
    """The arrays and texts of a file; nothing of it is read before it is asked for.

    Args:
        data: the whole file.
        room: bytes of the file that the arrays came in, if this is but its content.

    Raises:
        CheckpointError: it is damaged, or has more than arrays of numbers.
    """

    def __init__(self, data: bytes | memoryview, room: int = 0) -> None:
        self._h5py, self._data = library(), data
        try:
            self._file = self._h5py.File(io.BytesIO(data), "r")
            self._datasets = dict(self._walk())
        except CheckpointError:
            raise
        except Exception as error:  # h5py's are of many kinds
            raise _damaged(error) from error
        sizes = {name: _room_of(found) for name, found in self._datasets.items()}
        require_room(sizes, room or len(data))

    def names(self) -> list[str]:
        """Returns the datasets' paths."""
        return list(self._datasets)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a dataset's shape."""
        return self._datasets[name].shape

    def array(self, name: str) -> np.ndarray:
        """Reads a dataset.

        Raises:
            CheckpointError: it is damaged, or was never written.
        """
        dataset = self._datasets[name]
        try:
            _require_written(dataset, name)
            array = np.empty(dataset.shape, dataset.dtype)
            if array.size:
                dataset.read_direct(array)
        except CheckpointError:
            raise
        except Exception as error:
            raise _damaged(error, name) from error
        if array.dtype == np.dtype("V2"):  # what h5py makes of a bfloat16
            return array.view(ml_dtypes.bfloat16)
        return array.astype(array.dtype.newbyteorder("="), copy=False)

    def has(self, group: str, attribute: str) -> bool:
        """Whether a group is there, and has an attribute of that name."""
        try:
            return group in self._file and attribute in self._file[group].attrs
        except Exception as error:
            raise _damaged(error, group) from error

    def text(self, group: str, attribute: str, most: int) -> str | None:
        """Returns an attribute that is one text, if it is there and is one.

        Args:
            group: whose attribute.
            attribute: its name.
            most: bytes that it may have.

        Raises:
            CheckpointError: it is damaged, or longer than any.
        """
        if not self.has(group, attribute):
            return None
        try:
            found = self._file[group]
            about = found.attrs.get_id(attribute)
            if about.shape != () or about.dtype.itemsize > most:
                return None
            if self._h5py.check_string_dtype(about.dtype) is None:
                return None
            if about.dtype.kind == "O":
                address = self._h5py.h5o.get_info(found.id).addr
                length = _length_of(self._data, address, attribute.encode())
                if length is None or length > most:
                    raise CheckpointError(
                        f"{group} has {attribute!r} of a length that Keras never gives",
                        advice="Save it with Keras again",
                    )
            value = found.attrs[attribute]
        except CheckpointError:
            raise
        except Exception as error:
            raise _damaged(error, f"{group} {attribute}") from error
        if isinstance(value, bytes):
            value = value.decode("utf-8", "backslashreplace")
        return value if isinstance(value, str) else None

    def _walk(self) -> Iterator[tuple[str, Any]]:
        """Yields all datasets, by the paths that hard links make."""
        h5py = self._h5py
        groups: list[tuple[str, Any]] = [("", self._file)]
        seen: set[int] = {h5py.h5o.get_info(self._file["/"].id).addr}
        count = 0
        while groups:
            path, group = groups.pop()
            count += len(group)
            if count > _MAX_OBJECTS:
                raise CheckpointError(f"has more than {_MAX_OBJECTS} objects")
            if bad := [key for key in group if not isinstance(key, str)]:
                raise CheckpointError(
                    f"{path.removeprefix('/')}/{bad[0]!r} is a name that is no text"
                )
            for key in sorted(group):
                name = f"{path}/{key}".removeprefix("/")
                if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                    raise CheckpointError(
                        f"{name} is a link to elsewhere, not an array of this file",
                        advice="Copy it into one file with `h5repack`",
                    )
                found = group[key]
                if isinstance(found, h5py.Group):
                    address = h5py.h5o.get_info(found.id).addr
                    if address in seen:
                        raise CheckpointError(f"{name} is a group that has two names")
                    seen.add(address)
                    groups.append((name, found))
                else:
                    _check(found, name, h5py)
                    yield name, found


def _check(found: Any, name: str, h5py: Any) -> None:
    """Checks what a dataset says of itself."""
    if not isinstance(found, h5py.Dataset):
        raise CheckpointError(f"{name} is a {type(found).__name__}, not an array")
    if found.shape is None:
        raise CheckpointError(f"{name} is empty, not an array")
    if found.is_virtual or found.external:
        raise CheckpointError(
            f"{name} lies in other files", advice="Copy it into one with `h5repack`"
        )
    dtype = found.dtype
    if (dtype.kind not in "fiub" and dtype != np.dtype("V2")) or dtype.metadata:
        raise CheckpointError(f"{name} holds {dtype}, not numbers")
    if found.id.get_type().get_size() != dtype.itemsize:
        raise CheckpointError(
            f"{name} holds numbers of a kind that numpy has not",
            advice="Save them as float16, float32 or float64",
        )
    if _room_of(found) > MAX_BYTES:
        raise CheckpointError(
            f"{name} claims the shape {found.shape}, in parts of {found.chunks}, which "
            "no file holds"
        )


def _room_of(dataset: Any) -> int:
    """Returns the bytes of an array, or of one of its parts if that is larger."""
    part = prod(dataset.chunks or ())
    return max(part, dataset.size) * dataset.dtype.itemsize


def _length_of(data: bytes | memoryview, address: int, attribute: bytes) -> int | None:
    """Returns how long a text of no fixed length claims to be, by the file's bytes.

    HDF5 makes room for whatever length stands there, up to 4 GiB, and then looks where
    the text might be. Its object headers are of version 1 wherever Keras wrote them.
    """
    version, _, _, _, size = struct.unpack_from("<BBHLL", data, address)
    blocks = [(address + 16, size)] if version == 1 else []
    for begin, size in blocks:
        at, end = begin, min(begin + size, len(data))
        while at + 8 <= end:
            kind, length = struct.unpack_from("<HH", data, at)
            at += 8
            if kind == _CONTINUED and len(blocks) < _MAX_BLOCKS:
                blocks.append(struct.unpack_from("<QQ", data, at))
            elif kind == _ATTRIBUTE and length >= 16:
                form, _, *sizes = struct.unpack_from("<BBHHH", data, at)
                name = at + 8 + (form == 3)
                if bytes(data[name : name + sizes[0]]).rstrip(b"\0") == attribute:
                    padded = sizes if form > 1 else [-(-n // 8) * 8 for n in sizes]
                    return struct.unpack_from("<L", data, name + sum(padded))[0]
            at += length
    return None


def _require_written(dataset: Any, name: str) -> None:
    """Checks that every value stands in the file; HDF5 gives zeros for the others."""
    if dataset.chunks is None:
        size = dataset.size * dataset.dtype.itemsize
        written = dataset.id.get_storage_size() == size
    else:
        lengths = zip(dataset.shape, dataset.chunks, strict=True)
        expected = prod(-(-length // part) for length, part in lengths)
        if expected > _MAX_CHUNKS:
            raise CheckpointError(f"{name} is in {expected} parts, more than any")
        written = dataset.id.get_num_chunks() == expected
    if not written:
        raise CheckpointError(f"{name} was never written, or only a part of it")
    if dataset.chunks is not None:
        _require_packed(dataset, name)


def _require_packed(dataset: Any, name: str) -> None:
    """Checks that no part unpacks to more than it is; HDF5 would inflate it all."""
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(n)[0] for n in range(properties.get_nfilters())]
    if not {*filters} <= {_DEFLATE, _SHUFFLE, _FLETCHER32} or filters.count(1) > 1:
        raise CheckpointError(
            f"{name} is packed by a filter that is not gzip",
            advice="Unpack it with `h5repack -f NONE`",
        )
    part = prod(dataset.chunks) * dataset.dtype.itemsize
    for index in range(dataset.id.get_num_chunks()):
        chunk = dataset.id.get_chunk_info(index)
        if chunk.size > part + part // 8 + _SLACK:
            raise CheckpointError(f"{name} has {chunk.size} bytes in a part of {part}")
        if _DEFLATE in filters:
            _, packed = dataset.id.read_direct_chunk(chunk.chunk_offset)
            length = len(zlib.decompressobj().decompress(packed, part + _SLACK))
            if length > part + 4:  # a checksum may follow
                raise CheckpointError(f"{name} unpacks to more than its {part} bytes")


def _damaged(error: Exception, name: str = "") -> CheckpointError:
    what = " ".join(str(error).split())
    return CheckpointError(
        f"its HDF5 is damaged{f' at {name}' if name else ''} "
        f"({type(error).__name__}: {what:.200})"
    )
