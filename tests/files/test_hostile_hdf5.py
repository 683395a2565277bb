"""HDF5 made to harm: one line that names file and key, no hang, no explosion."""

from __future__ import annotations

import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from parity.files import writing
from tests.support.containers import (
    KERAS,
    refused_cheaply,
)


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
    refused_cheaply(_h5(tmp_path / "w.h5", fill), said)


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
        refused_cheaply(path, "layers/conv2d/vars has 'name' of a length")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 2**18  # KiB
    with h5py.File(path, "w", libver="latest") as file:  # other headers
        file["layers/dense/vars/0"] = np.ones((2, 3), np.float32)
        file["layers/dense/vars"].attrs["name"] = "fc"
    refused_cheaply(path, "layers/dense/vars has 'name' of a length")


def test_hdf5_with_layers_that_share_a_name_or_have_none(tmp_path: Path):
    path = tmp_path / "w.weights.h5"
    writing.write(path, KERAS, None, "weights.h5")
    with h5py.File(path, "a") as file:
        for group in file["layers"].values():  # type: ignore[union-attr]
            group["vars"].attrs["name"] = "same"
    refused_cheaply(path, "has two arrays for one name: same/kernel")
    with h5py.File(path, "a") as file:
        for group in file["layers"].values():  # type: ignore[union-attr]
            group["vars"].attrs["name"] = [1, 2]
    refused_cheaply(path, "does not say what its layers are called")
