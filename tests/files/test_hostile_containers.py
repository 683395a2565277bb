"""Containers made to harm: one line that names file and key, no hang, no explosion."""

from __future__ import annotations

import io
import json
import os
import resource
import struct
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import msgpack
import numpy as np
import orbax.checkpoint
import pytest

from parity.errors import CheckpointError
from parity.files import opening, writing
from parity.files.trees import nested
from parity.weights.digest import differing_bits
from tests.files.test_containers import LAYERS, TREE
from tests.support.corpus import refused

KERAS = {name: np.asarray(value, np.float32) for name, value in LAYERS.items()}
SMALL = {"params/conv/kernel": np.arange(12, dtype=np.float32).reshape(3, 4)}


@contextmanager
def _little_memory(most: int = 2**26) -> Iterator[None]:
    """Within it Python and numpy may hold this many bytes more, and no more."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def _refused(path: Path, *parts: str) -> None:
    with _little_memory():
        refused(path, *parts)


# HDF5


def _h5(path: Path, fill: Callable[[h5py.File], Any]) -> Path:
    with h5py.File(path, "w") as file:
        file["fc/kernel"] = np.ones((2, 3), np.float32)
        fill(file)
    return path


def _external_link(file: h5py.File) -> None:
    file["fc/evil"] = h5py.ExternalLink("/etc/passwd", "/")


def _soft_link(file: h5py.File) -> None:
    file["fc/evil"] = h5py.SoftLink("/fc/kernel")


def _cycle(file: h5py.File) -> None:
    file["fc/evil"] = file["fc"]


def _root_cycle(file: h5py.File) -> None:
    file["fc/evil"] = file["/"]


def _external_storage(file: h5py.File) -> None:
    file.create_dataset(
        "fc/evil", (4,), np.float32, external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
    )


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), np.float32)
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,))
    file.create_virtual_dataset("fc/evil", layout)


def _terabyte(file: h5py.File) -> None:
    file.create_dataset("fc/evil", (2**38,), np.float32, chunks=(2**16,))


def _late(file: h5py.File) -> None:
    file.create_dataset("fc/evil", (2**29,), np.float32)


def _unwritten(file: h5py.File) -> None:
    file.create_dataset("fc/evil", (4,), np.float32)


def _half_written(file: h5py.File) -> None:
    file.create_dataset("fc/evil", (8,), np.float32, chunks=(4,))[:4] = 1


def _parts(file: h5py.File) -> None:
    file.create_dataset("fc/evil", (2**20,), np.int8, chunks=(1,))


def _lzf(file: h5py.File) -> None:
    data = np.ones(8, np.float32)
    file.create_dataset("fc/evil", data=data, compression="lzf")


def _big_part(file: h5py.File) -> None:
    shape: Any = (2**27,)
    file.create_dataset("fc/evil", (1,), "f8", chunks=shape, maxshape=(None,))


def _gzip_bomb(file: h5py.File) -> None:
    evil = file.create_dataset("fc/evil", (4,), "f4", chunks=(4,), compression="gzip")
    evil.id.write_direct_chunk((0,), zlib.compress(bytes(2**21), 9))


def _zeros_that_compress(file: h5py.File) -> None:
    for index in range(5):
        file.create_dataset(
            f"fc/evil{index}",
            data=np.zeros(2**24, np.float32),
            chunks=(2**22,),
            compression="gzip",
        )


def _many_links(file: h5py.File) -> None:
    file["fc/large"] = np.zeros(2**18, np.float32)
    for index in range(300):
        file[f"fc/evil{index}"] = file["fc/large"]


def _dtype(dtype: Any, value: Any) -> Callable[[h5py.File], None]:
    def fill(file: h5py.File) -> None:
        file.create_dataset("fc/evil", data=np.array([value], dtype), dtype=dtype)

    return fill


def _reference(file: h5py.File) -> None:
    evil = file.create_dataset("fc/evil", (1,), h5py.ref_dtype)
    evil[0] = file["fc"].ref


def _null(file: h5py.File) -> None:
    file["fc/evil"] = h5py.Empty("f4")


def _named_type(file: h5py.File) -> None:
    file["fc/evil"] = np.dtype("f4")


@pytest.mark.parametrize(
    ("fill", "said"),
    [
        (_external_link, "fc/evil is a link to elsewhere"),
        (_soft_link, "fc/evil is a link to elsewhere"),
        (_cycle, "fc/evil is a group that has two names"),
        (_root_cycle, "fc/evil is a group that has two names"),
        (_external_storage, "fc/evil lies in other files"),
        (_virtual, "fc/evil lies in other files"),
        (_terabyte, "fc/evil claims the shape (274877906944,)"),
        (_late, "its arrays claim 2147483672 bytes"),
        (_unwritten, "fc/evil was never written"),
        (_half_written, "fc/evil was never written, or only a part"),
        (_parts, "fc/evil is in 1048576 parts"),
        (_lzf, "fc/evil is packed by a filter that is not gzip"),
        (_big_part, "its arrays claim 1073741848 bytes"),
        (_gzip_bomb, "fc/evil unpacks to more than its 16 bytes"),
        (_zeros_that_compress, "its arrays claim"),
        (_many_links, "its arrays claim"),
        (_dtype(h5py.string_dtype(), "x"), "fc/evil holds object, not numbers"),
        (_dtype("S5", b"x"), "fc/evil holds |S5, not numbers"),
        (_dtype([("a", "f4")], (1,)), "fc/evil holds [('a', '<f4')], not numbers"),
        (_dtype("c8", 1), "fc/evil holds complex64, not numbers"),
        (_reference, "fc/evil holds object, not numbers"),
        (_null, "fc/evil is empty"),
        (_named_type, "fc/evil is a Datatype"),
    ],
)
def test_hdf5_that_is_more_than_arrays(
    tmp_path: Path, fill: Callable[[h5py.File], Any], said: str
):
    _refused(_h5(tmp_path / "w.h5", fill), said)


def test_hdf5_whose_layer_has_a_name_of_four_gigabytes(tmp_path: Path):
    path = tmp_path / "w.weights.h5"
    writing.write(path, KERAS, None, "weights.h5")
    data = path.read_bytes()
    length, heap = len("conv1_conv"), data.index(b"GCOL")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for claimed in (1001, 2**32 - 1):
        claim = data.replace(
            struct.pack("<LQ", length, heap), struct.pack("<LQ", claimed, heap)
        )
        assert claim != data
        path.write_bytes(claim)
        _refused(path, "layers/conv2d/vars has 'name' of a length")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 2**18  # KiB
    with h5py.File(path, "w", libver="latest") as file:  # other headers
        file["layers/dense/vars/0"] = np.ones((2, 3), np.float32)
        file["layers/dense/vars"].attrs["name"] = "fc"
    _refused(path, "layers/dense/vars has 'name' of a length")


def test_hdf5_with_layers_that_share_a_name_or_have_none(tmp_path: Path):
    path = tmp_path / "w.weights.h5"
    writing.write(path, KERAS, None, "weights.h5")
    with h5py.File(path, "a") as file:
        for group in file["layers"].values():  # type: ignore[union-attr]
            group["vars"].attrs["name"] = "same"
    _refused(path, "has two arrays for one name: same/kernel")
    with h5py.File(path, "a") as file:
        for group in file["layers"].values():  # type: ignore[union-attr]
            group["vars"].attrs["name"] = [1, 2]
    _refused(path, "does not say what its layers are called")


# .npz and .keras


def _npz(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data, zipfile.ZIP_DEFLATED)
    return path


def _npy(header: str, data: bytes = b"") -> bytes:
    head = header.encode() + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head + data


def test_an_npz_with_pickled_objects(tmp_path: Path):
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path}/canary",)

    path = tmp_path / "w.npz"
    np.savez(path, good=np.ones(2), evil=np.array([Evil()], object))
    refused(path, "evil holds pickled objects")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2**38,)}"),
            "evil is no array of numpy's",
        ),
        (
            _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (274877906944,)}"),
            "evil has shape (274877906944,) and dtype float32, and 0 bytes",
        ),
        (
            _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", bytes(4)),
            "evil has shape (-1,)",
        ),
        (
            _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 4)}", bytes(4)),
            "evil has shape (0, 4)",
        ),
        (
            _npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}"),
            "evil has the dtype",
        ),
        (
            _npy("{'descr': '<U9', 'fortran_order': False, 'shape': ()}", bytes(36)),
            "evil has the dtype",
        ),
        (_npy("(" * 5000), "evil is no array of numpy's"),
        (_npy(" " * 60000), "evil is no array of numpy's"),
        (b"\x93NUMPY\x09\0", "evil is no array of numpy's"),
        (b"text", "evil is no array of numpy's"),
        (b"", "evil is no array of numpy's"),
    ],
)
def test_an_npz_whose_array_is_none(tmp_path: Path, data: bytes, said: str):
    _refused(_npz(tmp_path / "w.npz", evil=data), said)


def _archive(path: Path, *members: tuple[str, bytes]) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that stand twice
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members:
                archive.writestr(name, data, zipfile.ZIP_DEFLATED)
    return path


def _saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


ONE = ("a.npy", _saved(np.ones(2)))


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ((ONE, ("../x.npy", b"")), "outside of it, '../x.npy'"),
        ((ONE, ("/x.npy", b"")), "outside of it, '/x.npy'"),
        ((ONE, ONE), "'a.npy' twice"),
        ((ONE, ("A.npy", b"")), "'A.npy' twice"),
        ((ONE, ("evil.pkl", b"")), "a member that is none, 'evil.pkl'"),
        ((ONE, ("a/", b"")), "a member that is none, 'a/'"),
        ((ONE, ("b.npy", bytes(2**29))), "its arrays claim"),
    ],
)
def test_an_npz_with_members_that_do_not_belong(
    tmp_path: Path, members: Any, said: str
):
    _archive(tmp_path / "w.npz", *members)
    _refused(tmp_path / "w.npz", said)


def test_an_npz_that_inflates_to_more_than_it_says(tmp_path: Path):
    path = _archive(tmp_path / "w.npz", ("a.npy", bytes(2**26)))
    data = bytearray(path.read_bytes())
    directory = int.from_bytes(data[-6:-2], "little")
    for place in (22, directory + 24):  # the size, in both headers
        data[place : place + 4] = struct.pack("<L", 16)
    path.write_bytes(data)
    _refused(path, "'a.npy' inflates to another size than it says")


def _weights(tmp_path: Path) -> bytes:
    path = tmp_path / "inner.h5"
    writing.write(path, KERAS, None, "weights.h5")
    data = path.read_bytes()
    path.unlink()
    return data


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("model.weights.h5", "'model.weights.h5' twice"),
        ("other.weights.h5", "does not write, 'other.weights.h5'"),
        ("Model.weights.h5", "'Model.weights.h5' twice"),
        ("../model.weights.h5", "outside of it"),
    ],
)
def test_a_keras_file_with_two_files_of_weights(tmp_path: Path, more: str, said: str):
    weights = _weights(tmp_path)
    members = (("config.json", b"{}"), ("model.weights.h5", weights), (more, weights))
    _refused(_archive(tmp_path / "w.keras", *members), said)


@pytest.mark.parametrize(
    "config",
    [b"{}", b"[" * 10**6, b"\xff", b'{"config": {"layers": [1, {"class_name": 3}]}}'],
)
def test_a_keras_file_with_any_configuration_is_its_weights(
    tmp_path: Path, config: bytes
):
    path = tmp_path / "w.keras"
    members = ("config.json", config), ("model.weights.h5", _weights(tmp_path))
    _archive(path, *members)
    assert differing_bits(opening.read(path).value, KERAS) == {}


def test_a_keras_file_without_weights(tmp_path: Path):
    path = _archive(tmp_path / "w.keras", ("config.json", b"{}"))
    _refused(path, "without model.weights.h5")
    _archive(path, ("config.json", b"{}"), ("model.weights.h5", b"no HDF5"))
    _refused(path, "its HDF5 is damaged")


# msgpack


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
    with _little_memory(2**27):
        refused(path, said)


# Orbax


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
        _refused(folder, "params/conv/kernel is missing in it, or damaged")
    (folder / CHUNK).unlink()
    _refused(folder, "params/conv/kernel is missing in it, or damaged")
    (folder / "params.conv.kernel" / ".zarray").unlink()
    _refused(folder, "params/conv/kernel is missing in it, or damaged")


def test_an_orbax_folder_with_a_part_that_is_a_link_or_a_pipe(
    folder: Path, tmp_path: Path
):
    (folder / CHUNK).rename(tmp_path / "elsewhere")
    (folder / CHUNK).symlink_to(tmp_path / "elsewhere")
    _refused(folder, f"{CHUNK} in it is a link or no regular file")
    (folder / CHUNK).unlink()
    os.mkfifo(folder / CHUNK)
    _refused(folder, f"{CHUNK} in it is a link or no regular file")
    (folder / CHUNK).unlink()
    (folder / CHUNK).parent.rename(tmp_path / "data")
    (folder / CHUNK).parent.symlink_to(tmp_path / "data")
    _refused(folder, "params.conv.kernel in it is a link")


@pytest.mark.parametrize("part", ["../evil", "/etc", "a/../../b", "", ".."])
def test_an_orbax_folder_whose_names_lead_out_of_it(folder: Path, part: str):
    def change(index: dict[str, Any]) -> None:
        (entry,) = index["tree_metadata"].values()
        entry["key_metadata"][0]["key"] = part

    _edit(folder / "_METADATA", change)
    _refused(folder, "_METADATA is malformed", "of another folder")


def test_an_orbax_folder_that_claims_a_terabyte(folder: Path):
    def claim(index: dict[str, Any]) -> None:
        (entry,) = index["tree_metadata"].values()
        entry["value_metadata"]["write_shape"] = [2**20, 2**20]

    array = folder / "params.conv.kernel" / ".zarray"
    before = array.read_text()
    for fields in ({"shape": [2**20, 2**20]}, {"chunks": [2**20, 2**10]}):
        _edit(array, lambda found, fields=fields: found.update(fields))
        _refused(folder, "its arrays claim")
        array.write_text(before)
    _edit(folder / "_METADATA", claim)
    _refused(folder, "params/conv/kernel has shape (3, 4), and [1048576, 1048576]")


def test_an_orbax_folder_packed_by_what_unpacks_without_bounds(folder: Path):
    blosc = {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1}
    array = folder / "params.conv.kernel" / ".zarray"
    _edit(array, lambda found: found.update(compressor=blosc))
    _refused(folder, "params/conv/kernel is packed by blosc")


def test_an_orbax_folder_of_others_dtypes(folder: Path):
    array = folder / "params.conv.kernel" / ".zarray"
    _edit(array, lambda found: found.update(dtype="<c8"))
    _refused(folder, "params/conv/kernel holds complex64, not numbers")
    _edit(array, lambda found: found.update(dtype="|O"))
    _refused(folder, "params/conv/kernel is missing in it, or damaged")


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "[" * 10**5, '{"tree_metadata": {"a": 1}}', "\xff"]
)
def test_an_orbax_folder_whose_index_is_none(folder: Path, text: str):
    (folder / "_METADATA").write_text(text, "latin-1")
    _refused(folder, "_METADATA is malformed")


def test_a_folder_that_orbax_did_not_complete_or_did_not_make(
    folder: Path, tmp_path: Path
):
    (tmp_path / "run").mkdir()
    _refused(tmp_path / "run", "is a directory", "a folder of Orbax's")
    folder.rename(tmp_path / "run" / "7.orbax-checkpoint-tmp-1")
    _refused(tmp_path / "run", "was not completed by Orbax")


def test_an_orbax_folder_whose_part_unpacks_to_gigabytes(folder: Path):
    blocks = 2**14  # each of one byte, 2**17 times
    head, last = b"\x28\xb5\x2f\xfd\0\x48", 1
    block = [(flag | 1 << 1 | 1 << 20).to_bytes(3, "little") for flag in (0, last)]
    data = (block[0] + b"\0") * (blocks - 1) + block[1] + b"\0"
    (folder / CHUNK).write_bytes(head + data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _refused(folder, "params/conv/kernel is missing in it, or damaged")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 2**18  # KiB


# Every container


def _all(path: Path) -> Iterator[Path]:
    for name, arrays, format in (
        ("w.npz", SMALL, "npz"),
        ("w.msgpack", SMALL | TREE, "msgpack"),
        ("w.h5", KERAS, "h5"),
        ("w.weights.h5", KERAS, "weights.h5"),
    ):
        format: Any
        writing.write(path / name, arrays, None, format)
        yield path / name
    writing.write(path / "inner.h5", KERAS, None, "weights.h5")
    with zipfile.ZipFile(path / "w.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        archive.write(path / "inner.h5", "model.weights.h5")
    yield path / "w.keras"


def _outcome(path: Path, original: dict[str, Any]) -> str:
    """Reads a damaged file: refused in one line, or read as whatever it now says."""
    try:
        content = opening.read(path)
    except CheckpointError as error:
        return "refused" if "\n" not in str(error) else "several lines"
    same = set(content.value) == set(original) and not differing_bits(
        content.value, original
    )
    if content.checked:
        assert same
    return "same" if same else "other"


def test_a_file_that_was_cut_anywhere_is_refused(tmp_path: Path):
    for path in _all(tmp_path):
        data = path.read_bytes()
        for length in range(1, len(data), 100):
            path.write_bytes(data[:length])
            with pytest.raises(CheckpointError):
                opening.read(path)
        path.write_bytes(data + b"more")
        if "h5" not in path.suffix:  # what follows an HDF5 is not its
            with pytest.raises(CheckpointError):
                opening.read(path)


def test_flipped_bits_are_refused_or_change_values_only(tmp_path: Path):
    rng = np.random.default_rng(0)
    for path in _all(tmp_path):
        original = opening.read(path).value
        data = path.read_bytes()
        outcomes = set()
        for place in rng.integers(len(data), size=300):
            damaged = bytearray(data)
            damaged[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            outcomes.add(_outcome(path, original))
        assert "refused" in outcomes, path
        assert "several lines" not in outcomes, path


@pytest.mark.parametrize("ocdbt", [False, True])
def test_orbax_folders_that_are_cut_or_flipped_anywhere(tmp_path: Path, ocdbt: bool):
    path = tmp_path / "w"
    handler = orbax.checkpoint.PyTreeCheckpointHandler(use_ocdbt=ocdbt)
    with orbax.checkpoint.Checkpointer(handler) as checkpointer:
        tree = orbax.checkpoint.args.PyTreeSave(nested(SMALL | TREE))
        checkpointer.save(path, args=tree)
    original = opening.read(path).value
    rng = np.random.default_rng(0)
    outcomes = set()
    for file in sorted(found for found in path.rglob("*") if found.is_file()):
        data = file.read_bytes()
        for length in range(0, len(data), 100):
            file.write_bytes(data[:length])
            assert _outcome(path, original) in ("refused", "same")
        for place in rng.integers(len(data), size=10):
            damaged = bytearray(data)
            damaged[place] ^= 1 << int(rng.integers(8))
            file.write_bytes(damaged)
            outcomes.add(_outcome(path, original))
        file.write_bytes(data)
    assert "refused" in outcomes
    assert "several lines" not in outcomes


def test_only_archives_have_checksums(tmp_path: Path):
    for path in _all(tmp_path):
        assert opening.read(path).checked == (path.suffix in (".npz", ".keras"))
