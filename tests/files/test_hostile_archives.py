""".npz and .keras made to harm, and what is true of every damaged container."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint
import pytest

from parity.errors import CheckpointError
from parity.files import opening, writing
from parity.files.trees import nested
from parity.weights.digest import differing_bits
from tests.support.containers import (
    KERAS,
    SMALL,
    TREE,
    refused_cheaply,
)
from tests.support.corpus import refused


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
    refused_cheaply(_npz(tmp_path / "w.npz", evil=data), said)


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
    refused_cheaply(tmp_path / "w.npz", said)


def test_an_npz_that_inflates_to_more_than_it_says(tmp_path: Path):
    path = _archive(tmp_path / "w.npz", ("a.npy", bytes(2**26)))
    data = bytearray(path.read_bytes())
    directory = int.from_bytes(data[-6:-2], "little")
    for place in (22, directory + 24):  # the size, in both headers
        data[place : place + 4] = struct.pack("<L", 16)
    path.write_bytes(data)
    refused_cheaply(path, "'a.npy' inflates to another size than it says")


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
    refused_cheaply(_archive(tmp_path / "w.keras", *members), said)


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
    refused_cheaply(path, "without model.weights.h5")
    _archive(path, ("config.json", b"{}"), ("model.weights.h5", b"no HDF5"))
    refused_cheaply(path, "its HDF5 is damaged")


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


def test_a_file_that_was_cut_anywhere_isrefused_cheaply(tmp_path: Path):
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
