"""Flax's msgpack and Orbax's folders made to harm: one line, nothing outside read."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import orbax.checkpoint
import pytest

from parity.files import opening
from parity.files.trees import nested
from parity.weights.digest import differing_bits
from tests.support.containers import (
    SMALL,
    little_memory,
    refused_cheaply,
)
from tests.support.corpus import refused


def _array(shape: Any, dtype: Any, data: Any) -> msgpack.ExtType:
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, data)))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"\x81\xa1a\xdd\x80\0\0\0", "at byte 8 of 8: it was cut short"),
        (b"\xdf\xff\xff\xff\xff\xa1a\xc0", "at byte 8 of 8: it was cut short"),
        (b"\x81\xa1a" + b"\x91" * 10**5, "more entries or levels"),
        (b"\x81\xa1a" + b"\x81\xa1a" * 10**5, "more entries or levels"),
        (b"\x81\xa1a" + b"\xc7\xff\1" * 10**5, "more entries or levels"),
        (b"\x81\xa1a\x81" + b"\x81" * 10**5, "more entries or levels"),
        (b"\x81\xa1a\xdd\0\x20\0\0" + b"\x80" * 2**21, "more entries or levels"),
        (b"\x81\xa1a\xc6\xff\xff\xff\xff", "claims 4294967295 bytes at byte 8"),
        (b"\x81\xa1\xff\xc0", "has a name that is no text, at byte 2"),
        (b"\x81\xa1a\xc1", "is no msgpack: byte 3 is 0xc1"),
        (b"\x81\xa1a\xc0more", "4 bytes follow the end of the data at 4"),
        (b"\x82\xa1a\xc0\xa1a\xc0", "has 'a' twice"),
        ({"a": {b"b": 1}}, "has a name that is no text in 'a'"),
        ({"a": {"b": _array((2**40,), "float32", b"")}}, "a/b has shape (1099511"),
        ({"a": {"b": _array((-1,), "float32", bytes(4))}}, "a/b has the shape [-1]"),
        ({"a": {"b": _array(("2",), "float32", b"")}}, "a/b has the shape ['2']"),
        ({"a": _array((0,) * 99, "float32", b"")}, "a has the shape"),
        ({"a": {"b": _array((1,), "object", bytes(8))}}, "a/b has the dtype 'object'"),
        ({"a": {"b": _array((1,), "f4,f4", bytes(8))}}, "a/b has the dtype 'f4,f4'"),
        ({"a": {"b": _array((1,), "float32", "text")}}, "a/b is no array of Flax"),
        ({"a": {"b": msgpack.ExtType(1, b"\x01")}}, "a/b has another length"),
        ({"a": {"b": msgpack.ExtType(2, b"\x90")}}, "a/b is no complex number"),
        ({"a": {"b": msgpack.ExtType(9, b"\x90")}}, "a/b is of type 9"),
        ({"a": {"__msgpack_chunked_array__": True}}, "a is no array of Flax in parts"),
        (
            {
                "a": {
                    "__msgpack_chunked_array__": True,
                    "shape": {"0": 2**40},
                    "chunks": {"0": _array((1,), "float32", bytes(4))},
                }
            },
            "a has shape (1099511627776,)",
        ),
        ({"a": {"b": "text"}}, "a/b is a str"),
    ],
)
def test_msgpack_that_is_no_tree_of_arrays(tmp_path: Path, value: Any, said: str):
    path = tmp_path / "w.msgpack"
    data: Any = value if isinstance(value, bytes) else msgpack.packb(value)
    path.write_bytes(data)
    with little_memory(2**27):
        refused(path, said)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that Orbax made with a file for every part of an array."""
    path = tmp_path / "w"
    handler = orbax.checkpoint.PyTreeCheckpointHandler(use_ocdbt=False)
    with orbax.checkpoint.Checkpointer(handler) as checkpointer:
        tree = orbax.checkpoint.args.PyTreeSave(nested(SMALL))
        checkpointer.save(path, args=tree)
    assert differing_bits(opening.read(path).value, SMALL) == {}
    return path


CHUNK = "params.conv.kernel/0.0"


def _edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def test_an_orbax_folder_with_a_missing_or_cut_part(folder: Path):
    data = (folder / CHUNK).read_bytes()
    for length in (0, 1, len(data) // 2, len(data) - 1):
        (folder / CHUNK).write_bytes(data[:length])
        refused_cheaply(folder, "params/conv/kernel is missing in it, or damaged")
    (folder / CHUNK).unlink()
    refused_cheaply(folder, "params/conv/kernel is missing in it, or damaged")
    (folder / "params.conv.kernel" / ".zarray").unlink()
    refused_cheaply(folder, "params/conv/kernel is missing in it, or damaged")


def test_an_orbax_folder_with_a_part_that_is_a_link_or_a_pipe(
    folder: Path, tmp_path: Path
):
    (folder / CHUNK).rename(tmp_path / "elsewhere")
    (folder / CHUNK).symlink_to(tmp_path / "elsewhere")
    refused_cheaply(folder, f"{CHUNK} in it is a link or no regular file")
    (folder / CHUNK).unlink()
    os.mkfifo(folder / CHUNK)
    refused_cheaply(folder, f"{CHUNK} in it is a link or no regular file")
    (folder / CHUNK).unlink()
    (folder / CHUNK).parent.rename(tmp_path / "data")
    (folder / CHUNK).parent.symlink_to(tmp_path / "data")
    refused_cheaply(folder, "params.conv.kernel in it is a link")


@pytest.mark.parametrize("part", ["../evil", "/etc", "a/../../b", "", ".."])
def test_an_orbax_folder_whose_names_lead_out_of_it(folder: Path, part: str):
    def change(index: dict[str, Any]) -> None:
        (entry,) = index["tree_metadata"].values()
        entry["key_metadata"][0]["key"] = part

    _edit(folder / "_METADATA", change)
    refused_cheaply(folder, "_METADATA is malformed", "of another folder")


def test_an_orbax_folder_that_claims_a_terabyte(folder: Path):
    def claim(index: dict[str, Any]) -> None:
        (entry,) = index["tree_metadata"].values()
        entry["value_metadata"]["write_shape"] = [2**20, 2**20]

    array = folder / "params.conv.kernel" / ".zarray"
    before = array.read_text()
    for fields in ({"shape": [2**20, 2**20]}, {"chunks": [2**20, 2**10]}):
        _edit(array, lambda found, fields=fields: found.update(fields))
        refused_cheaply(folder, "its arrays claim")
        array.write_text(before)
    _edit(folder / "_METADATA", claim)
    refused_cheaply(
        folder, "params/conv/kernel has shape (3, 4), and [1048576, 1048576]"
    )


def test_an_orbax_folder_packed_by_what_unpacks_without_bounds(folder: Path):
    blosc = {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1}
    array = folder / "params.conv.kernel" / ".zarray"
    _edit(array, lambda found: found.update(compressor=blosc))
    refused_cheaply(folder, "params/conv/kernel is packed by blosc")


def test_an_orbax_folder_of_others_dtypes(folder: Path):
    array = folder / "params.conv.kernel" / ".zarray"
    _edit(array, lambda found: found.update(dtype="<c8"))
    refused_cheaply(folder, "params/conv/kernel holds complex64, not numbers")
    _edit(array, lambda found: found.update(dtype="|O"))
    refused_cheaply(folder, "params/conv/kernel is missing in it, or damaged")


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "[" * 10**5, '{"tree_metadata": {"a": 1}}', "\xff"]
)
def test_an_orbax_folder_whose_index_is_none(folder: Path, text: str):
    (folder / "_METADATA").write_text(text, "latin-1")
    refused_cheaply(folder, "_METADATA is malformed")


def test_a_folder_that_orbax_did_not_complete_or_did_not_make(
    folder: Path, tmp_path: Path
):
    (tmp_path / "run").mkdir()
    refused_cheaply(tmp_path / "run", "is a directory", "a folder of Orbax's")
    folder.rename(tmp_path / "run" / "7.orbax-checkpoint-tmp-1")
    refused_cheaply(tmp_path / "run", "was not completed by Orbax")


def test_an_orbax_folder_whose_part_unpacks_to_gigabytes(folder: Path):
    blocks = 2**14  # each of one byte, 2**17 times
    head, last = b"\x28\xb5\x2f\xfd\0\x48", 1
    block = [(flag | 1 << 1 | 1 << 20).to_bytes(3, "little") for flag in (0, last)]
    data = (block[0] + b"\0") * (blocks - 1) + block[1] + b"\0"
    (folder / CHUNK).write_bytes(head + data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused_cheaply(folder, "params/conv/kernel is missing in it, or damaged")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 2**18  # KiB
