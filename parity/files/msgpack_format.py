"""Flax's msgpack files, read and written by hands of our own.

``msgpack_restore`` builds whatever it meets before anybody can look: a megabyte of
empty maps becomes a hundred. Here everything is counted, and no more is built than
arrays. It needs no framework, either.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from parity.errors import CheckpointError
from parity.files.content import Content, Hear, whole
from parity.files.trees import flat, nested

_MAX_DEPTH, _MAX_VALUES = 64, 2**19
_MAX_AXES = 32
_MAX_TEXT = 2**16
_CHUNKED = "__msgpack_chunked_array__"
_CHUNK = 2**30  # bytes: Flax splits what is larger

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # Flax's types of extensions

_DTYPES: dict[Any, np.dtype] = {
    np.dtype(dtype).name: np.dtype(dtype)
    for dtype in (
        *("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"),
        *("?", "c8", "c16", ml_dtypes.bfloat16),
    )
}
_NUMBERS = {
    0xCA: ">f",
    0xCB: ">d",
    **{0xCC + n: f">{form}" for n, form in enumerate("BHLQbhlq")},
}
_TEXTS, _BYTES, _EXTENSIONS = (0xD9, 0xDA, 0xDB), (0xC4, 0xC5, 0xC6), (0xC7, 0xC8, 0xC9)
_LISTS, _MAPS = (0xDC, 0xDD), (0xDE, 0xDF)
_LENGTHS = {
    code: form
    for codes in (_TEXTS, _BYTES, _EXTENSIONS, (0, *_LISTS), (0, *_MAPS))
    for code, form in zip(codes, (">B", ">H", ">L"), strict=True)
    if code
}
"""Codes that a length follows, and what it is."""


def is_msgpack(head: bytes) -> bool:
    """Whether a file begins as a map whose first key is a text."""
    at = {0xDE: 3, 0xDF: 5}.get(head[0], 1 if 0x80 < head[0] < 0x90 else 0)
    return (
        bool(at) and len(head) > at and (head[at] >> 5 == 5 or head[at] in (0xD9, 0xDA))
    )


def read_msgpack(file: BinaryIO, size: int, hear: Hear) -> Content:
    """Reads a tree of arrays, as ``flax.serialization.to_bytes`` writes it."""
    reader = _Reader(whole(file, size, hear))
    tree = reader.value(())
    if reader.at != size:
        raise CheckpointError(
            f"{size - reader.at} bytes follow the end of the data at {reader.at}"
        )
    return Content("msgpack", flat(tree))


def write_msgpack(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str] | None
) -> None:
    """Writes what Flax's ``from_bytes`` reads; it has no room for metadata."""
    tree = nested(arrays)
    with open(path, "wb") as file:
        for piece in _pack(tree):
            file.write(piece)


class _Reader:
    """One pass over the bytes; where it stands, and how much it has built."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._values = 0
        self.at = 0

    def value(self, path: tuple[str, ...]) -> Any:
        self._values += 1
        if self._values > _MAX_VALUES or len(path) > _MAX_DEPTH:
            raise CheckpointError(
                f"has more entries or levels than any network, at byte {self.at}"
            )
        code = self._take(1)[0]
        if code < 0x80 or code >= 0xE0:
            return code if code < 0x80 else code - 0x100
        if code in _NUMBERS:
            (number,) = struct.unpack(
                _NUMBERS[code], self._take(struct.calcsize(_NUMBERS[code]))
            )
            return number
        if code in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[code]
        if 0x80 <= code < 0x90 or code in _MAPS:
            return self._map(self._length(code, 0x0F), path)
        if 0x90 <= code < 0xA0 or code in _LISTS:
            length = self._length(code, 0x0F)
            return [self.value((*path, str(index))) for index in range(length)]
        if 0xA0 <= code < 0xC0 or code in _TEXTS:
            text = self._take(self._length(code, 0x1F))
            if len(text) > _MAX_TEXT:
                raise CheckpointError(
                    f"has a text of {len(text)} bytes at byte {self.at - len(text)}, "
                    "more than any network's"
                )
            try:
                return bytes(text).decode()
            except UnicodeDecodeError as error:
                raise CheckpointError(
                    f"has a name that is no text, at byte {self.at - len(text)}"
                ) from error
        if code in _BYTES:
            return self._take(self._length(code, 0))
        if 0xD4 <= code < 0xD9:
            return self._extension(1 << (code - 0xD4), path)
        if code in _EXTENSIONS:
            return self._extension(self._length(code, 0), path)
        raise CheckpointError(f"is no msgpack: byte {self.at - 1} is {code:#x}")

    def _take(self, count: int) -> memoryview:
        found = self._data[self.at : self.at + count]
        if len(found) != count:
            raise CheckpointError(
                f"claims {count} bytes at byte {self.at} of {len(self._data)}: it was "
                "cut short, or is damaged"
            )
        self.at += count
        return found

    def _length(self, code: int, mask: int) -> int:
        form = _LENGTHS.get(code)
        if form is None:
            return code & mask
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _map(self, length: int, path: tuple[str, ...]) -> Any:
        found: dict[str, Any] = {}
        for _ in range(length):
            key = self.value((*path, ""))
            if type(key) not in (str, int):
                raise CheckpointError(
                    f"has a name that is no text in {'/'.join(path)!r}"
                )
            if str(key) in found:
                raise CheckpointError(f"has {'/'.join((*path, str(key)))!r} twice")
            found[str(key)] = self.value((*path, str(key)))
        return _joined(found, "/".join(path)) if _CHUNKED in found else found

    def _extension(self, length: int, path: tuple[str, ...]) -> Any:
        kind = self._take(1)[0]
        end = self.at + length
        name = "/".join(path)
        if kind not in (_ARRAY, _COMPLEX, _SCALAR):
            raise CheckpointError(
                f"{name} is of type {kind}, which Flax does not write"
            )
        parts = self.value((*path, ""))
        if self.at != end or not isinstance(parts, list):
            raise CheckpointError(f"{name} has another length than it says")
        if kind == _COMPLEX:
            if list(map(type, parts)) != [float, float]:
                raise CheckpointError(f"{name} is no complex number")
            return complex(*parts)
        return _array(parts, name)


def _array(parts: list[Any], name: str) -> np.ndarray:
    if list(map(type, parts)) != [list, str, memoryview]:
        raise CheckpointError(f"{name} is no array of Flax")
    shape, dtype_name, data = parts
    dtype = _DTYPES.get(dtype_name)
    if dtype is None:
        raise CheckpointError(f"{name} has the dtype {dtype_name!r}, unknown here")
    _check_shape(shape, data.nbytes, dtype, name)
    return np.frombuffer(data, dtype).reshape(shape).copy()


def _check_shape(shape: list[Any], held: int, dtype: np.dtype, name: str) -> None:
    whole_numbers = all(type(length) is int and length >= 0 for length in shape)
    if not whole_numbers or len(shape) > _MAX_AXES:
        raise CheckpointError(f"{name} has the shape {shape!s:.200}, which none has")
    if prod(shape) * dtype.itemsize != held:
        raise CheckpointError(
            f"{name} has shape {tuple(shape)} and dtype {dtype.name}, and {held} bytes "
            "for it"
        )


def _joined(found: dict[str, Any], name: str) -> np.ndarray:
    """Puts a large array together from the parts that Flax makes of it."""
    try:
        if len(found) != 3:
            raise KeyError
        shape, chunks = ([*found[key].values()] for key in ("shape", "chunks"))
        # More parts than ten, sorted as texts, would be in another order.
        for key, values in (("shape", shape), ("chunks", chunks)):
            values[:] = [found[key][str(index)] for index in range(len(values))]
        dtype = chunks[0].dtype
        if any(chunk.dtype != dtype or chunk.ndim != 1 for chunk in chunks):
            raise TypeError
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise CheckpointError(f"{name} is no array of Flax in parts") from error
    _check_shape(shape, sum(chunk.nbytes for chunk in chunks), dtype, name)
    return np.concatenate(chunks).reshape(shape)


def _pack(value: Any) -> Iterator[bytes | memoryview]:
    if isinstance(value, dict):
        yield _head(len(value), (0x80, 16), (0xDE, ">H"), (0xDF, ">L"))
        for key, inner in value.items():
            yield from _pack(key)
            yield from _pack(inner)
    elif isinstance(value, str):
        text = value.encode()
        yield _head(len(text), (0xA0, 32), (0xD9, ">B"), (0xDA, ">H"), (0xDB, ">L"))
        yield text
    elif value is True:
        yield b"\xc3"
    elif isinstance(value, int):
        forms = ((0xCC, ">B"), (0xCD, ">H"), (0xCE, ">L"), (0xCF, ">Q"))
        yield _head(value, (0, 128), *forms)
    elif value.nbytes > _CHUNK:
        line, count = value.reshape(-1), _CHUNK // value.itemsize
        starts = range(0, line.size, count)
        chunks = (line[start : start + count] for start in starts)
        shape = {str(axis): length for axis, length in enumerate(value.shape)}
        parts = {str(index): chunk for index, chunk in enumerate(chunks)}
        yield from _pack({_CHUNKED: True, "shape": shape, "chunks": parts})
    else:
        dense = np.array(value, order="C", copy=None)
        inside: list[bytes | memoryview] = [b"\x93", _head(dense.ndim, (0x90, 16))]
        for length in dense.shape:
            inside.extend(_pack(length))
        inside.extend(_pack(dense.dtype.name))
        inside.append(
            _head(dense.nbytes, (0, 0), (0xC4, ">B"), (0xC5, ">H"), (0xC6, ">L"))
        )
        head = b"".join(inside)
        size = len(head) + dense.nbytes
        if size in (1, 2, 4, 8, 16):
            yield bytes([0xD4 + size.bit_length() - 1])
        else:
            yield _head(size, (0, 0), (0xC7, ">B"), (0xC8, ">H"), (0xC9, ">L"))
        yield bytes([_ARRAY]) + head
        yield dense.reshape(-1).view(np.uint8).data


def _head(number: int, short: tuple[int, int], *forms: tuple[int, str]) -> bytes:
    """Returns a code with its number: within it below a bound, else behind it."""
    code, below = short
    if number < below:
        return bytes([code + number])
    for code, form in forms:
        if number < 1 << 8 * struct.calcsize(form):
            return bytes([code]) + struct.pack(form, number)
    raise CheckpointError(f"an entry of {number} bytes is too large for msgpack")
