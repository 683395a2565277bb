"""numpy's archives of arrays, read without ever asking numpy to unpickle."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import BinaryIO

import ml_dtypes
import numpy as np

from parity.errors import CheckpointError
from parity.files.archive import END, Member, members, require_end, require_members
from parity.files.content import Content, Hear, require_room, whole
from parity.files.stages import stage
from parity.files.values import is_number

_ENDING = ".npy"
_MAX_HEADER = 2**14  # far more than numpy accepts of one


def read_npz(file: BinaryIO, size: int, hear: Hear) -> Content:
    """Reads an archive, stored or deflated; names are its members' without ``.npy``."""
    file.seek(-min(size, END.size), io.SEEK_END)
    require_end(file.read(), size)
    data = whole(file, size, hear)
    with stage("validation"):
        found = members(data, _check_names)
        require_room({m.name: m.size for m in found}, size)
    arrays = {member.name.removesuffix(_ENDING): _array(member) for member in found}
    return Content("npz", arrays, checked=True)


def write_npz(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str] | None
) -> None:
    """Writes an archive as ``numpy.savez`` does; it has no room for metadata."""
    require_members([f"{name}{_ENDING}" for name in arrays])
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            if array.dtype == ml_dtypes.bfloat16:
                raise CheckpointError(
                    f"{name} is bfloat16, which npz does not know",
                    advice="Write .safetensors or .msgpack",
                )
            member = zipfile.ZipInfo(f"{name}{_ENDING}")  # always of the same date
            with archive.open(member, "w", force_zip64=True) as opened:
                np.lib.format.write_array(opened, array, allow_pickle=False)


def _check_names(names: list[str]) -> None:
    others = [name for name in names if not name.endswith(_ENDING) or "\0" in name]
    if others:
        raise CheckpointError(
            f"is an archive of arrays with a member that is none, {others[0]!r}"
        )


def _array(member: Member) -> np.ndarray:
    content = member.content()
    name = member.name.removesuffix(_ENDING)
    head = io.BytesIO(content[:_MAX_HEADER])
    try:
        version = np.lib.format.read_magic(head)
        if version == (1, 0):
            header = np.lib.format.read_array_header_1_0(head)
        elif version == (2, 0):
            header = np.lib.format.read_array_header_2_0(head)
        else:
            raise ValueError(f"its version is {version}")
        shape, transposed, dtype = header
        if dtype == np.dtype("V2"):  # what numpy makes of a bfloat16
            dtype = np.dtype(ml_dtypes.bfloat16)
    except Exception as error:  # numpy's parser raises many kinds
        what = " ".join(str(error).split())
        raise CheckpointError(f"{name} is no array of numpy's ({what:.200})") from error
    if dtype.hasobject:
        raise CheckpointError(
            f"{name} holds pickled objects, and was not loaded",
            advice="Save plain arrays of numbers",
        )
    if not is_number(dtype):
        raise CheckpointError(f"{name} has the dtype {dtype}, unknown here")
    held = len(content) - head.tell()
    natural = all(type(length) is int and length >= 0 for length in shape)
    if not natural or len(shape) > 32 or prod(shape) * dtype.itemsize != held:
        raise CheckpointError(
            f"{name} has shape {shape!s:.200} and dtype {dtype.name}, and {held} bytes "
            "for it"
        )
    order = "F" if transposed else "C"
    array = np.frombuffer(content, dtype, offset=head.tell()).reshape(
        shape, order=order
    )
    return array.astype(dtype.newbyteorder("="), order="C")
