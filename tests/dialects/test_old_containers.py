"""Files that torch wrote long ago, or that only look so: rows 21, 30 and 33."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from parity.files.pth import LEGACY_MAGIC
from tests.support.corpus import refused


class _Touches:
    """Makes a file, if whoever reads it runs what it holds."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("first", [False, True])
def test_row_21_a_second_pickle_that_would_run(path: Path, tensors, first: bool):
    ran = path.with_name("ran")
    torch.save(tensors, path)
    evil = pickle.dumps(_Touches(ran), protocol=2)
    with zipfile.ZipFile(path) as old:
        members = [(name, old.read(name)) for name in old.namelist()]
    name = next(name for name, _ in members if name.endswith("/data.pkl"))
    members.insert(0 if first else len(members), (name, evil))
    with zipfile.ZipFile(path, "w") as new:
        for member, data in members:
            new.writestr(member, data)
    refused(path, f"{name!r} twice")
    assert not ran.exists()


def test_row_30_a_tar_of_torch_before_0_4(path: Path):
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = pickle.dumps({"protocol_version": 1000}, protocol=2)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    refused(path, "is a tar archive", "save it again")


@pytest.mark.parametrize("at", [3, len(LEGACY_MAGIC) - 2])
def test_row_33_another_magic_number(path: Path, tensors, at: int):
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    data = bytearray(path.read_bytes())
    assert data.startswith(LEGACY_MAGIC)
    data[at] ^= 1
    path.write_bytes(data)
    refused(path, "is a plain pickle", "numpy.savez")


def test_row_33_another_magic_number_of_a_zip(path: Path, tensors):
    torch.save(tensors, path)
    data = bytearray(path.read_bytes())
    data[2] ^= 1
    path.write_bytes(data)
    refused(path, "is no .pth", "Check that this is the right file")
