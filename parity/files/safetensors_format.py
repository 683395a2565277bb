"""safetensors files, read and written by hands of our own.

``safe_open`` does not refuse names that stand twice, and opens the path anew instead of
reading on the descriptor that has been checked; ``save_file`` puts another file in the
place of the one that was made for it, and copies every tensor first.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from parity.errors import CheckpointError, InputError
from parity.files.content import MAX_BYTES, MAX_INDEX, Content, Hear, own_metadata
from parity.files.values import require_count
from parity.inputs import open_regular
from resnet_spec import ResNetConfig

_Place = tuple[np.dtype, tuple[int, ...], int, int]
"""Dtype and shape of an entry of a .safetensors, and where its bytes begin and end."""

_DIGITS = 18  # of a number: no file is so large, and to read longer ones takes time
_METADATA = "__metadata__"

_SAFETENSORS_DTYPES: dict[str, Any] = {
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def own_facts(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns what this project wrote beside the weights in a file; nothing otherwise.

    Only a regular ``.safetensors`` is looked into. What is wrong with it, whoever reads
    the weights will say.
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        return {}
    try:
        with open_regular(path, MAX_BYTES) as file:
            return header_of(file, os.fstat(file.fileno()).st_size)[1] or {}
    except InputError:
        return {}


def own_config(path: str | os.PathLike[str]) -> ResNetConfig | None:
    """Returns the network that a file of this project tells it is for, if it does.

    Raises:
        ValueError: it tells of none that there can be.
    """
    told = own_facts(path).get("config")
    return None if told is None else ResNetConfig.from_json(told)


def read_safetensors(file: BinaryIO, size: int, hear: Hear) -> Content:
    """Reads all of a file."""
    places, metadata = header_of(file, size, hear)
    found = dict(entries_at(file, places, hear))
    return Content("safetensors", {name: found[name] for name in places}, metadata)


def header_of(
    file: BinaryIO, size: int, hear: Hear = len
) -> tuple[dict[str, _Place], dict[str, Any] | None]:
    """Returns where each entry lies, and this project's metadata, if any."""
    head = file.read(8)
    length = int.from_bytes(head, "little")
    if length > min(MAX_INDEX, size - 8):
        raise CheckpointError(
            f"its header claims {length} bytes, of {size} in the file and at most "
            f"{MAX_INDEX} that a network needs: it is damaged or was cut short"
        )
    text = file.read(length)
    hear(head + text)
    try:
        header = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=no_repeats,
            parse_int=_short_int,
            parse_float=_no_number,
            parse_constant=_no_number,
        )
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"its header is no JSON ({error})") from error
    metadata = own_metadata(header.pop(_METADATA, None))
    require_count(len(header))
    return _check_header(header, size - 8 - length), metadata


def entries_at(
    file: BinaryIO, places: dict[str, _Place], hear: Hear = len
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each entry, from behind the header, in the order of the file."""
    for name, (dtype, shape, *_) in sorted(places.items(), key=_by_place):
        array = np.empty(shape, dtype)
        values = array.reshape(-1).view(np.uint8)
        if file.readinto(values) != values.size:  # type: ignore[attr-defined]
            raise CheckpointError(
                "changed while it was read", advice="Wait until it is complete"
            )
        hear(values)
        yield name, array


def write_safetensors(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str] | None
) -> None:
    """Writes a file, by size of the dtype and by name, as the library lays it out."""
    if _METADATA in arrays:
        raise CheckpointError(
            f"{_METADATA} is no name that an entry can have",
            advice="Call it otherwise, or write another format",
        )
    dtypes = {np.dtype(dtype): name for name, dtype in _SAFETENSORS_DTYPES.items()}
    names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    header: dict[str, Any] = {} if metadata is None else {_METADATA: metadata}
    end = 0
    for name in names:
        begin, end = end, end + arrays[name].nbytes
        header[name] = {
            "dtype": dtypes[arrays[name].dtype],
            "shape": arrays[name].shape,
            "data_offsets": (begin, end),
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that what follows is aligned
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            dense = np.array(arrays[name], order="C", copy=None)
            file.write(dense.reshape(-1).view(np.uint8).data)


def _by_place(named: tuple[str, _Place]) -> tuple[int, int]:
    return named[1][2:]


def _check_header(header: dict[str, Any], body: int) -> dict[str, _Place]:
    places: dict[str, _Place] = {}
    for name, entry in header.items():
        try:
            dtype_name, shape = entry["dtype"], tuple(entry["shape"])
            begin, end = entry["data_offsets"]
            if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
                raise ValueError("sizes are whole numbers")
            if len(entry) != 3:
                raise ValueError("it says more")
            known = _SAFETENSORS_DTYPES.get(dtype_name)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"its header's entry {name!r} is malformed"
            ) from error
        if known is None:
            raise CheckpointError(
                f"{name} has the dtype {dtype_name!r}, unknown here",
                advice="Save the weights as floats of 16 bits or more, as "
                "model.float() has them",
            )
        dtype = np.dtype(known)
        if len(shape) > 8 or 0 in shape:  # numpy refuses some of these
            raise CheckpointError(
                f"{name} has the shape {shape}, which no weights have"
            )
        if prod(shape) * dtype.itemsize != end - begin:
            raise CheckpointError(
                f"{name} has shape {shape} and dtype {dtype_name}, and {end - begin} "
                "bytes for it"
            )
        places[name] = (dtype, shape, begin, end)
    position = 0
    for name, (_, _, begin, end) in sorted(places.items(), key=_by_place):
        if begin != position:
            raise CheckpointError(
                f"{name} begins at byte {begin} of the data, and the one before it "
                f"ends at {position}"
            )
        position = end
    if position != body:
        raise CheckpointError(
            f"its header describes {position} bytes of data, and {body} follow it: it "
            "was cut short, or something was appended"
        )
    return places


def _short_int(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"a number in it has {len(digits)} digits")
    return int(digits)


def _no_number(text: str) -> None:
    raise ValueError(f"{text:.20} in it is no whole number")


def no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object of JSON; raises ValueError if it has a name twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        (repeated, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"it has {repeated!r} twice")
    return found
