"""safetensors files, read by a parser of our own.

``safe_open`` does not refuse names that stand twice, and opens the path anew instead of
reading on the descriptor that has been checked.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from math import prod
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from parity.errors import CheckpointError
from parity.files.content import METADATA_KEY, Content, own_metadata

_Place = tuple[np.dtype, tuple[int, ...], int, int]
"""Dtype and shape of an entry of a .safetensors, and where its bytes begin and end."""


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


def read_safetensors(file: BinaryIO, size: int) -> Content:
    """Reads all of a file."""
    places, metadata = header_of(file, size)
    return Content("safetensors", dict(entries_at(file, places)), metadata)


def header_of(
    file: BinaryIO, size: int
) -> tuple[dict[str, _Place], dict[str, Any] | None]:
    """Returns where each entry lies, and this project's metadata, if any."""
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
    return _check_header(header, body), own_metadata(own)


def entries_at(
    file: BinaryIO, places: dict[str, _Place]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each entry, from behind the header."""
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
