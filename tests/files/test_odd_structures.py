"""What is well formed as a container and odd as weights: a line with file and key."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import msgpack
import numpy as np
import orbax.checkpoint
import pytest
import torch

import parity
from parity.errors import CheckpointError
from parity.files import opening, writing
from parity.files.content import METADATA_KEY
from parity.files.trees import nested
from parity.weights.digest import differing_bits
from tests.support.containers import SMALL
from tests.support.corpus import refused
from tests.support.networks import TINY, random_torch

ONES = np.ones(2, np.float32)


def _zip(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


@pytest.mark.filterwarnings("ignore")  # torch calls nested tensors a prototype
def test_a_nested_tensor_is_named(tmp_path: Path):
    path, state = tmp_path / "w.pth", random_torch(TINY).state_dict()
    odd = {**state, "fc.bias": torch.nested.nested_tensor([torch.ones(7)])}
    for value in (odd, {"state_dict": odd}, {"a": odd, "b": odd}):
        torch.save(value, path)  # a legacy one torch does not read itself
        refused(path, "has several states" if "b" in value else "fc.bias is nested")


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"training": {"classes": 5}}, "'classes', which are no texts"),
        ({"training": {"classes": [1]}}, "'classes', which are no texts"),
        ({"guessed": [[1]]}, "'guessed', which are no texts"),
        ({"dialect": "x"}, "name the dialect 'x', unknown here. Use the version that"),
    ],
)
def test_what_a_file_says_of_itself_has_its_types(tmp_path: Path, own: Any, said: str):
    state = OrderedDict(random_torch(TINY).state_dict())
    state._metadata = {METADATA_KEY: json.dumps(own)}  # type: ignore[attr-defined]
    torch.save(state, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", said)


@pytest.mark.parametrize("shape", ["(-1, -7)", "(0, -1)", "(True, 7)"])
def test_a_shape_in_an_npz_is_of_natural_numbers(tmp_path: Path, shape: str):
    held = 0 if "0" in shape else 28
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}"
    head = header.encode() + b"\n"
    npy = b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head + bytes(held)
    _zip(tmp_path / "w.npz", {"evil.npy": npy})
    refused(
        tmp_path / "w.npz",
        f"evil has shape {shape} and dtype float32, and {held} bytes for it",
    )


def test_of_arrays_that_claim_too_much_the_largest_is_named(tmp_path: Path):
    path = tmp_path / "w.npz"
    _zip(path, {"a.npy": bytes(100), "evil.npy": bytes(2**29)})
    refused(path, f"its arrays claim {2**29 + 100} bytes", "(evil.npy alone 536870912)")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_npz_that_another_program_packed_is_to_be_packed_again(
    tmp_path: Path, method: int
):
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    with (
        zipfile.ZipFile(tmp_path / "a.npz") as old,
        zipfile.ZipFile(tmp_path / "b.npz", "w", method) as new,
    ):
        new.writestr("a.npy", old.read("a.npy"))
    with pytest.raises(CheckpointError, match=r"'a.npy' is compressed.*pack it again"):
        parity.load(tmp_path / "b.npz")


def test_an_npz_is_known_however_long_its_first_name_is(tmp_path: Path):
    path = tmp_path / "w.npz"
    writing.write(path, {"a" * 60000: ONES}, None, "npz")
    assert [*opening.read(path).value] == ["a" * 60000]


NAMES = ("a/../b", "../x", "x" * 70000)


@pytest.mark.parametrize(
    ("format", "names"),
    [("npz", (*NAMES, "/abs", "a\\b", "a\0b")), ("orbax", (*NAMES, ".."))],
)
def test_a_name_that_would_not_be_read_back_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: Any, names: Any
):
    # Nothing is made first: what would be refused while it is read is refused before.
    monkeypatch.setattr(opening, "each", pytest.fail)
    monkeypatch.setattr("zipfile.ZipFile", pytest.fail)
    monkeypatch.setattr(orbax.checkpoint, "StandardCheckpointer", pytest.fail)
    for name in names:
        with pytest.raises(CheckpointError, match=r"or write \.safetensors") as error:
            writing.write(tmp_path / "w", {"good": ONES, name: ONES}, None, format)
        text = str(error.value)
        assert text.startswith(f"{tmp_path / 'w'}: names that ")
        assert text.isprintable()
        assert "good" not in text
    assert not [*tmp_path.iterdir()]


def test_an_npz_has_no_two_names_that_differ_in_capitals(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"beside one another: 'a\.npy', 'A\."):
        writing.write(tmp_path / "w", {"a": ONES, "A": ONES}, None, "npz")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("format", ["msgpack", "orbax"])
@pytest.mark.parametrize("names", [("a//b",), ("a", "a/b")])
def test_a_tree_that_cannot_be_is_advised_about(
    tmp_path: Path, format: Any, names: Any
):
    arrays = dict.fromkeys(names, ONES)
    with pytest.raises(CheckpointError, match="Call it otherwise, or write"):
        writing.write(tmp_path / "w", arrays, None, format)
    assert not [*tmp_path.iterdir()]


def test_an_array_in_parts_has_nothing_beside_them(tmp_path: Path):
    part = msgpack.ExtType(1, msgpack.packb(((2,), "float32", ONES.tobytes())))
    parts = {
        "__msgpack_chunked_array__": True,
        "shape": {"0": 2},
        "chunks": {"0": part},
    }
    path = tmp_path / "w.msgpack"
    path.write_bytes(bytes(msgpack.packb({"fc": parts}) or b""))
    assert differing_bits(opening.read(path).value, {"fc": ONES}) == {}
    path.write_bytes(bytes(msgpack.packb({"fc": {**parts, "bias": part}}) or b""))
    refused(path, "fc is no array of Flax in parts")


def _bytes_name(file: h5py.File) -> None:
    file[b"fc/\xff"] = ONES


def _other_floats(file: h5py.File) -> None:
    kind = h5py.h5t.IEEE_F16LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)  # bfloat16
    kind.set_ebias(127)
    group, space = file["fc"].id, h5py.h5s.create_simple((2,))
    stored = h5py.h5d.create(group, b"evil", kind, space)
    stored.write(h5py.h5s.ALL, h5py.h5s.ALL, ONES)


@pytest.mark.parametrize(
    ("fill", "said"),
    [
        (_bytes_name, r"fc/b'\xff' is a name that is no text"),
        (_other_floats, "fc/evil holds numbers of a kind that numpy has not. Save"),
    ],
)
def test_an_hdf5_with_odd_names_or_numbers(
    tmp_path: Path, fill: Callable[[h5py.File], Any], said: str
):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["fc/kernel"] = ONES
        fill(file)
    refused(tmp_path / "w.h5", said)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "w"
    handler = orbax.checkpoint.PyTreeCheckpointHandler()
    with orbax.checkpoint.Checkpointer(handler) as checkpointer:
        args = orbax.checkpoint.args.PyTreeSave(nested(SMALL))
        checkpointer.save(path, args=args)
    return path


@pytest.mark.parametrize("shape", [["3", 4], [3.0, 4], [True, 4], "34", {"a": 1}, 5])
def test_a_shape_in_orbaxs_index_is_of_natural_numbers(folder: Path, shape: Any):
    index = json.loads((folder / "_METADATA").read_text())
    (entry,) = index["tree_metadata"].values()
    entry["value_metadata"]["write_shape"] = shape
    (folder / "_METADATA").write_text(json.dumps(index))
    refused(folder, f"params/conv/kernel has shape (3, 4), and {shape} in _METADATA")


def test_orbaxs_index_has_nothing_twice(folder: Path):
    text = (folder / "_METADATA").read_text()
    index = json.loads(text)
    index["tree_metadata"]["more"] = next(iter(index["tree_metadata"].values()))
    (folder / "_METADATA").write_text(json.dumps(index))
    refused(folder, "_METADATA is malformed", "it has 'params/conv/kernel' twice")
    (folder / "_METADATA").write_text(text.replace("{", '{"tree_metadata": {}, ', 1))
    refused(folder, "_METADATA is malformed", "it has 'tree_metadata' twice")


def test_a_folder_of_orbaxs_may_have_a_file_of_any_name(folder: Path):
    try:
        (folder / os.fsdecode(b"\xff")).touch()
    except OSError:
        pytest.skip("this file system has only names of UTF-8")
    assert differing_bits(opening.read(folder).value, SMALL) == {}


def test_a_path_may_be_bytes():
    with pytest.raises(ValueError, match=r"^nowhere\.jpg: no such file"):
        parity.load_image(b"nowhere.jpg")  # type: ignore[arg-type]
