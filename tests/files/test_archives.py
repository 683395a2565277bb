"""The archive that a .pth is: what is in it is what torch.save puts there."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import parity
from parity.weights.digest import differing_bits
from tests.support.corpus import refused


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
