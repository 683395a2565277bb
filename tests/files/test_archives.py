"""The archive that a .pth is: what is in it is what torch.save puts there."""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import parity
from parity.errors import CheckpointError
from parity.files import opening
from parity.weights.digest import differing_bits
from tests.support.corpus import refused
from tests.support.networks import TINY


def _rezip(
    path: Path, change: Callable[[zipfile.ZipFile, zipfile.ZipFile], None]
) -> None:
    source = path.with_name("source.zip")
    shutil.move(path, source)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        change(old, new)
    source.unlink()


def _copy(
    old: zipfile.ZipFile,
    new: zipfile.ZipFile,
    change: Callable[[str, bytes], bytes] = lambda name, data: data,
) -> None:
    for member in old.infolist():
        name = member.filename.partition("/")[2]
        new.writestr(member.filename, change(name, old.read(member)))


def test_a_repacked_archive_is_read(path: Path, tensors, arrays):
    torch.save(tensors, path)
    _rezip(path, _copy)
    assert differing_bits(parity.load(path), arrays) == {}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("name", "compression", "said"),
    [
        pytest.param(
            *("weights/data/99", zipfile.ZIP_DEFLATED),
            "'weights/data/99' is compressed",
            id="19",
        ),
        pytest.param(
            *("weights/data.pkl", zipfile.ZIP_STORED),
            "'weights/data.pkl' twice",
            id="20",
        ),
        pytest.param(
            *("../../x", zipfile.ZIP_STORED), "outside of it, '../../x'", id="24"
        ),
    ],
)
def test_rows_19_20_and_24_a_member_more(
    path: Path, tensors, name: str, compression: int, said: str
):
    torch.save(tensors, path)

    def change(old: zipfile.ZipFile, new: zipfile.ZipFile) -> None:
        _copy(old, new)
        new.writestr(name, bytes(10**6), compression)

    _rezip(path, change)
    refused(path, said)


def test_row_23_a_zip_of_text(path: Path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/readme.txt", "hello")
    refused(path, "not one of torch.save: no data.pkl")


def test_row_25_an_encrypted_member(path: Path, tensors):
    torch.save(tensors, path)
    data = bytearray(path.read_bytes())
    directory = int.from_bytes(data[-6:-2], "little")
    assert data[directory:].startswith(b"PK\1\2")
    data[directory + 8] |= 1  # the first member's flags
    path.write_bytes(data)
    refused(path, "'weights/data.pkl' is encrypted")


@pytest.mark.parametrize(
    "change", [lambda data: data[:-4], lambda data: data + b"more"]
)
def test_rows_26_and_27_a_tensor_of_another_length(
    path: Path, tensors, change: Callable[[bytes], bytes]
):
    torch.save(tensors, path)
    _rezip(
        path,
        lambda old, new: _copy(
            old,
            new,
            lambda name, data: change(data) if name == "data/0" else data,
        ),
    )
    refused(path, "damaged", "was not loaded")


def test_row_28_an_archive_without_checksums(path: Path, tensors, arrays):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(tensors, path)
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(path) as archive:
        assert not any(member.CRC for member in archive.infolist())
    state = parity.load(path)
    assert differing_bits(state, arrays) == {}
    assert "no checksums" in state.notes[0]


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_row_29_a_program(path: Path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    refused(path, "is a TorchScript program", "module.state_dict()")


def test_row_34_the_other_order_of_bytes(path: Path, arrays):
    swapped = {
        name: torch.from_numpy(np.array(array).byteswap())
        for name, array in arrays.items()
    }
    torch.save(swapped, path)
    _rezip(path, lambda old, new: _copy(old, new, _order(b"big")))
    assert differing_bits(parity.load(path), arrays) == {}


def test_row_35_an_unknown_order_of_bytes(path: Path, tensors):
    torch.save(tensors, path)
    _rezip(path, lambda old, new: _copy(old, new, _order(b"middle")))
    refused(path, "damaged", "was not loaded")


def _order(order: bytes) -> Callable[[str, bytes], bytes]:
    return lambda name, data: order if name == "byteorder" else data


# --- what is checked is what is loaded ---------------------------------------------


@pytest.fixture
def whole() -> bytes:
    """An archive as torch writes it, of two tensors."""
    file = io.BytesIO()
    torch.save({"fc.weight": torch.ones(2, 3), "fc.bias": torch.zeros(2)}, file)
    return file.getvalue()


def _directory(data: bytes) -> int:
    return int.from_bytes(data[-6:-2], "little")


@pytest.mark.parametrize("mask", [0x01, 0x10, 0x80, 0xFF])
def test_a_flipped_bit_anywhere_is_refused_or_changes_nothing(
    path: Path, whole: bytes, mask: int
):
    path.write_bytes(whole)
    expected = parity.load(path)
    refusals = 0
    for place in range(len(whole)):
        if whole[place] == ord("Z"):  # padding
            continue
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :]
        )
        try:
            found = parity.load(path)
        except CheckpointError as error:
            assert str(error).startswith(f"{path}: ")  # noqa: PT017  either is right
            refusals += 1
        else:
            assert differing_bits(found, expected) == {}
    assert refusals > 1000


def test_a_member_that_is_marked_as_a_directory_is_refused(path: Path, whole: bytes):
    # torch would skip it, and hand out memory as it happens to be.
    at = whole.index(b"archive/data/0", _directory(whole)) - 46
    path.write_bytes(whole[: at + 38] + b"\x10" + whole[at + 39 :])
    refused(path, "'archive/data/0' is no plain file")


def test_an_end_beyond_any_file_is_refused(path: Path, whole: bytes):
    at = whole.rindex(b"PK\6\7") + 8
    for end in (2**62, 2**64 - 1):
        path.write_bytes(whole[:at] + end.to_bytes(8, "little") + whole[at + 8 :])
        refused(path, "the archive is damaged (a header is cut short)")


@pytest.mark.parametrize("between", [b"", b"more"])
def test_two_archives_in_one_file_are_refused(path: Path, whole: bytes, between: bytes):
    path.write_bytes(whole + between + whole)
    refused(path, "the archive is damaged")


def _shifted(data: bytes, by: int) -> bytes:
    """Moves an archive, the places in its directory too, as a self-extractor does."""
    moved = bytearray(bytes(by) + data)
    at = _directory(data) + by
    count = int.from_bytes(data[-12:-10], "little")
    for _ in range(count):
        place = int.from_bytes(moved[at + 42 : at + 46], "little") + by
        moved[at + 42 : at + 46] = place.to_bytes(4, "little")
        at += 46 + int.from_bytes(moved[at + 28 : at + 30], "little")
    for place, length in ((at + 48, 8), (at + 56 + 8, 8), (len(moved) - 6, 4)):
        value = int.from_bytes(moved[place : place + length], "little") + by
        moved[place : place + length] = value.to_bytes(length, "little")
    moved[:4] = b"PK\3\4"
    return bytes(moved)


def test_bytes_that_belong_to_nothing_are_refused(path: Path, whole: bytes):
    path.write_bytes(_shifted(whole, 64))
    torch.load(path, weights_only=True)  # torch does not mind
    refused(path, "begins at 64, and 0 is free")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("weights/DATA.PKL", "twice"),
        ("weights/data/0/", "does not write, 'data/0/'"),
        ("weights/notes.txt", "does not write, 'notes.txt'"),
        ("w\0eights/data.pkl", "not one of torch.save"),
    ],
)
def test_a_name_that_two_readers_may_take_for_another_is_refused(
    path: Path, tensors, name: str, said: str
):
    torch.save(tensors, path)

    def change(old: zipfile.ZipFile, new: zipfile.ZipFile) -> None:
        _copy(old, new)
        new.writestr("weights/x" + "x" * (len(name) - 9), b"")

    _rezip(path, change)
    odd = b"weights/x" + b"x" * (len(name) - 9)
    path.write_bytes(path.read_bytes().replace(odd, name.encode()))
    refused(path, said)


def test_an_archive_of_very_many_members_is_refused(path: Path, tensors):
    torch.save(tensors, path)

    def change(old: zipfile.ZipFile, new: zipfile.ZipFile) -> None:
        _copy(old, new)
        for i in range(2**16):
            new.writestr(f"weights/data/{10**6 + i}", b"")

    _rezip(path, change)
    refused(path, "more than any network")


def _counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts the bytes that are read of each file from now on, by its ending."""
    read: dict[str, int] = {}
    real = opening.open_regular

    def counting(path: Any, *rest: Any) -> io.BufferedReader:
        kind = Path(path).suffix

        class Counting(io.FileIO):
            def readinto(self, buffer: Any) -> int:
                count = super().readinto(buffer)
                read[kind] = read.get(kind, 0) + count
                return count

            def readall(self) -> bytes:
                data = super().readall()
                read[kind] = read.get(kind, 0) + len(data)
                return data

        with real(path, *rest) as file:
            return io.BufferedReader(Counting(os.dup(file.fileno())))

    monkeypatch.setattr(opening, "open_regular", counting)
    return read


@pytest.mark.parametrize("kind", [".pth", ".safetensors"])
def test_a_file_is_opened_and_read_once(
    kind: str, tmp_path: Path, tensors, arrays, monkeypatch: pytest.MonkeyPatch
):
    source = tmp_path / f"source{kind}"
    torch.save(tensors, source) if kind == ".pth" else save_file(arrays, source)
    read = _counted(monkeypatch)
    most = source.stat().st_size + 20_000  # its beginning and end are looked at first
    parity.load(source)
    assert source.stat().st_size <= read[kind] < most
    read.clear()
    other = {".pth": ".safetensors", ".safetensors": ".pth"}[kind]
    target = tmp_path / f"target{other}"
    parity.convert(source, target, config=TINY)
    assert source.stat().st_size <= read[kind] < most
    size = target.stat().st_size  # read back, under a temporary name
    assert size <= sum(n for k, n in read.items() if k != kind) < size + 20_000
