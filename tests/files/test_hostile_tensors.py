"""Tensors in a .pth that claim, share, hide or are more than a network's weights."""

from __future__ import annotations

import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint
import pytest
import torch
from safetensors.torch import save_file
from torch._utils import _rebuild_tensor_v2
from torch.masked import masked_tensor

import parity
from parity.errors import CheckpointError
from parity.files import opening
from parity.files.trees import nested
from parity.weights.digest import differing_bits
from tests.support.containers import SMALL
from tests.support.corpus import refused
from tests.support.measured import costs_of_loading, require_bounded

GIANT = 500 * 10**6


class _Claimed:
    """Pickles as a tensor of any shape on a storage, whatever that has."""

    def __init__(self, tensor: torch.Tensor, shape: Any, stride: Any, at: int) -> None:
        self.storage = torch.storage.TypedStorage(
            wrap_storage=tensor.untyped_storage(), dtype=tensor.dtype, _internal=True
        )
        self.rest = (at, shape, stride, False, OrderedDict())

    def __reduce__(self) -> Any:
        return _rebuild_tensor_v2, (self.storage, *self.rest)


def _pickle(path: Path) -> None:
    with (
        zipfile.ZipFile(path, "w") as archive,
        archive.open("w/data.pkl", "w", force_zip64=True) as member,
    ):
        for _ in range(GIANT // 10**6):
            member.write(bytes(10**6))


def _header(path: Path) -> None:
    path.write_bytes(GIANT.to_bytes(8, "little") + b'{"')
    _grown(path)


def _index(path: Path) -> None:
    path.write_text('{"weight_map": {"')
    _grown(path)


def _tree(path: Path) -> None:
    handler = orbax.checkpoint.PyTreeCheckpointHandler()
    with orbax.checkpoint.Checkpointer(handler) as checkpointer:
        args = orbax.checkpoint.args.PyTreeSave(nested(SMALL))
        checkpointer.save(path, args=args)
    _grown(path / "_METADATA")


def _text(path: Path) -> None:
    path.write_bytes(b"\x81\xa1a\xdb" + GIANT.to_bytes(4, "big"))
    _grown(path)


def _grown(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(GIANT + 100)


def test_row_48_an_index_of_500_mb(tmp_path: Path):
    said = {
        "w.pth": (_pickle, "its pickle has 500000000 bytes, more than any network's"),
        "w.safetensors": (_header, "its header claims 500000000 bytes"),
        "w.safetensors.index.json": (_index, "is larger than 16777216 bytes"),
        "w": (_tree, "its _METADATA has 500000100 bytes, more than any network's"),
        "w.msgpack": (_text, "has a text of 500000000 bytes at byte 8, more than"),
    }
    for name, (make, _) in said.items():
        make(tmp_path / name)
    paths = [tmp_path / name for name in said]
    for path, cost in zip(paths, costs_of_loading(*paths), strict=True):
        require_bounded(cost, GIANT if path.suffix in (".pth", ".msgpack") else 0)
        assert cost.said.startswith(f"{path}: ")
        assert said[path.name][1] in cost.said


@pytest.mark.parametrize(
    ("shape", "stride", "at"),
    [
        ((8,), (1,), 0),
        ((7,), (2,), 0),
        ((7,), (1,), 1),
        ((7,), (1,), -1),
        ((7,), (-1,), 6),
        ((-7,), (1,), 0),
        ((2**62, 4), (0, 0), 0),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_row_49_a_tensor_that_is_larger_than_its_storage(
    path: Path, tensors, shape: Any, stride: Any, at: int, zipped: bool
):
    claimed = _Claimed(tensors["fc.bias"].clone(), shape, stride, at)
    torch.save(
        {**tensors, "fc.bias": claimed}, path, _use_new_zipfile_serialization=zipped
    )
    refused(path, "the pickle in it is damaged", "Get the file again")  # torch says so


def test_a_tensor_that_its_storage_holds_is_read(path: Path, tensors, arrays):
    bias = _Claimed(torch.cat([torch.ones(3), tensors["fc.bias"]]), (7,), (1,), 3)
    torch.save({**tensors, "fc.bias": bias}, path)
    assert differing_bits(parity.load(path), arrays) == {}


def test_row_50_giants_that_a_small_file_claims_take_no_memory(tmp_path: Path, tensors):
    one = torch.zeros(1)
    several = {f"fc.extra{i}": one.expand(2**12, 2**13) for i in range(40)}
    claims = {
        "giant.pth": {"fc.extra": one.expand(10**6, 10**6)},
        "large.pth": {"fc.extra": one.expand(2**15, 2**15)},  # 4 GiB: would be made
        "several.pth": several,  # 128 MiB each: any of them alone would do
    }
    for name, more in claims.items():
        torch.save({**tensors, **more}, tmp_path / name)
    paths = [tmp_path / name for name in claims]
    for path, cost in zip(paths, costs_of_loading(*paths), strict=True):
        require_bounded(cost, path.stat().st_size)
        assert cost.said.startswith(f"{path}: its tensors claim")


@pytest.mark.filterwarnings("ignore")  # torch moves its quantisation elsewhere
def test_rows_52_and_53_what_is_sparse_or_quantised(path: Path, tensors):
    weight = tensors["fc.weight"]
    scales, zeros = torch.full((7,), 0.1), torch.zeros(7)
    for value, said in (
        (weight.to_sparse(), "fc.weight is sparse (torch.sparse_coo)"),
        (weight.to_sparse_csr(), "fc.weight is sparse (torch.sparse_csr)"),
        (weight.to_sparse_csc(), "fc.weight is sparse (torch.sparse_csc)"),
        (
            torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
            "fc.weight is quantised",
        ),
        (
            torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8),
            "fc.weight is quantised",
        ),
    ):
        torch.save({**tensors, "fc.weight": value}, path)
        refused(path, said, "Save model.state_dict()")


DTYPES = (
    *("complex64", "int8", "uint8", "int16", "int32", "bool"),
    *("float8_e4m3fn", "float8_e5m2"),
)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_55_to_57_weights_of_another_dtype_are_not_cast(
    tmp_path: Path, tensors, dtype: str
):
    from safetensors.torch import save_file

    odd = {**tensors, "fc.bias": torch.ones(7).to(getattr(torch, dtype))}
    torch.save(odd, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", f"fc.bias is {dtype}, not one of float16")
    path = tmp_path / "w.safetensors"
    save_file(odd, path)
    error = refused(path, "fc.bias")
    if "unknown here" in str(error):  # of what numpy and the twins have not
        assert "Save the weights as floats of 16 bits or more" in str(error)
        assert dtype.startswith(("complex", "float8"))
    else:
        assert f"fc.bias is {dtype}, not one of float16" in str(error)


@pytest.mark.parametrize("zipped", [True, False])
def test_row_66_tensors_that_share_one_storage(
    tmp_path: Path, tensors, arrays, zipped: bool
):
    # As FSDP's and Apex's flat parameters: every weight a view of one vector.
    floats = {n: t for n, t in tensors.items() if t.is_floating_point()}
    flat, at = torch.cat([t.reshape(-1) for t in floats.values()]), 0
    shared = dict(tensors)
    for name, tensor in floats.items():
        shared[name] = flat[at : at + tensor.numel()].view(tensor.shape)
        at += tensor.numel()
    shared["layer2.1.bn2.weight"] = shared["layer2.1.bn1.weight"]  # tied, and the same
    expected = arrays | {"layer2.1.bn2.weight": arrays["layer2.1.bn1.weight"]}
    path, target = tmp_path / "w.pth", tmp_path / "out"
    torch.save(shared, path, _use_new_zipfile_serialization=zipped)
    state = parity.load(path)
    state["layer2.1.bn2.weight"] += 1  # and no other changes with it
    assert [*differing_bits(state, expected)] == ["layer2.1.bn2.weight"]
    for suffix in (".safetensors", ".pth"):
        parity.convert(path, target.with_suffix(suffix))
        assert differing_bits(parity.load(target.with_suffix(suffix)), expected) == {}
    found = torch.load(target.with_suffix(".pth"), weights_only=True)
    assert len({tensor.data_ptr() for tensor in found.values()}) == len(found)
    assert target.with_suffix(".safetensors").stat().st_size < 60_000


@pytest.mark.parametrize("zipped", [True, False])
def test_row_67_of_a_giant_storage_only_the_slice_is_written(
    tmp_path: Path, tensors, arrays, zipped: bool
):
    giant = torch.randn(10**7)
    giant[12345 : 12345 + 16] = tensors["layer2.0.bn1.weight"]
    odd = {**tensors, "layer2.0.bn1.weight": giant[12345 : 12345 + 16]}
    path = tmp_path / "w.pth"
    torch.save(odd, path, _use_new_zipfile_serialization=zipped)
    assert path.stat().st_size > 4 * 10**7
    held = parity.load(path)["layer2.0.bn1.weight"]
    while isinstance(held.base, np.ndarray):
        held = held.base
    assert held.flags.owndata  # in memory nothing keeps the giant, either
    assert held.nbytes == 16 * 4
    for name in ("out.safetensors", "out.pth", "out.npz", "out.msgpack"):
        parity.convert(path, tmp_path / name, to="torchvision")
        assert differing_bits(parity.load(tmp_path / name), arrays) == {}
        assert (tmp_path / name).stat().st_size < 80_000, name


class _Coloured(torch.Tensor):
    pass


@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors")
@pytest.mark.parametrize("zipped", [True, False])
def test_row_69_a_tensor_that_is_more_than_one(path: Path, tensors, zipped: bool):
    bias = tensors["fc.bias"]
    for value, name in (
        (bias.clone().as_subclass(_Coloured), "test_hostile_tensors._Coloured"),
        (masked_tensor(bias.clone(), bias > 0), "maskedtensor.core.MaskedTensor"),
        (torch.nn.UninitializedParameter(), "parameter.UninitializedParameter"),
    ):
        odd = {**tensors, "fc.bias": value}
        torch.save(odd, path, _use_new_zipfile_serialization=zipped)
        refused(path, f"{name}, and was not loaded", "torch.save(model.state_dict()")


def test_what_is_a_plain_tensor_under_another_name_is_read(path, tensors, arrays):
    bias = tensors["fc.bias"].clone()
    bias.colour = "red"  # type: ignore[attr-defined]
    for value in (bias, torch.nn.Parameter(bias), torch.nn.Buffer(bias)):
        torch.save({**tensors, "fc.bias": value}, path)
        assert differing_bits(parity.load(path), arrays) == {}


def test_a_subclass_that_torch_was_told_to_trust_is_no_plain_tensor(path, tensors):
    odd = tensors["fc.bias"].clone().as_subclass(_Coloured)
    torch.save({**tensors, "fc.bias": odd}, path)
    with torch.serialization.safe_globals([_Coloured]):
        refused(path, "fc.bias is a _Coloured", "Save model.state_dict()")


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("w.pth", "pth-legacy"),
        *((f"w.{form}", form) for form in ("pth", "safetensors", "npz", "msgpack")),
        ("w", "orbax"),
    ],
)
def test_row_70_every_bit_of_a_float_survives_in_every_container(
    tmp_path: Path, arrays, name: str, format: Any
):
    bits = [0x80000000, 1, 0x7FC00001, 0xFFFFFFFF, 0x7F800001, 0x007FFFFF, 0x3F800001]
    odd = {**arrays, "fc.bias": np.array(bits, np.uint32).view(np.float32)}
    path = tmp_path / name
    with pytest.raises(CheckpointError, match=r"fc.bias has 3 NaN and 0 Inf"):
        parity.save(path, odd, format=format)
    assert not [*tmp_path.iterdir()]
    parity.save(path, odd, format=format, allow_nonfinite=True)
    assert differing_bits(parity.load(path, allow_nonfinite=True), odd) == {}
    again = tmp_path / "again.safetensors"
    parity.convert(path, again, allow_nonfinite=True)
    found = opening.read(again).value["fc.bias"]
    assert found.view(np.uint32).tolist() == bits
    refused(path, "fc.bias has 3 NaN", "--allow-nonfinite")


def _names(path: Path, count: int) -> None:
    """Writes as many entries of one value, all of one storage where that can be."""
    if path.suffix == ".pth":
        zipped, one = path.stem.startswith("zip"), torch.zeros(1)
        state = {f"a{i}.weight": one for i in range(count)}
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
        return
    told = (
        f'"a{i}":{{"dtype":"F32","shape":[1],"data_offsets":[{4 * i},{4 * i + 4}]}}'
        for i in range(count)
    )
    text = f"{{{','.join(told)}}}".encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4 * count))


def test_many_names_are_refused_at_once_and_as_many_as_may_be_are_read(tmp_path: Path):
    cases = {"may.safetensors": 2**16, "zip-may.pth": 2**16}
    cases |= {"many.safetensors": 240_000, "many.pth": 100_000}
    for name, count in cases.items():
        _names(tmp_path / name, count)
    header = (tmp_path / "many.safetensors").read_bytes()[:8]
    assert 2**23 < int.from_bytes(header, "little") < 2**24  # as long as it may be
    paths = [tmp_path / name for name in cases]
    for path, cost in zip(paths, costs_of_loading(*paths), strict=True):
        require_bounded(cost, path.stat().st_size)
        if "may" in path.name:
            assert cost.said.count("'a") == cases[path.name]
        else:
            said = f"{path}: has {cases[path.name]} entries, and no network has over"
            assert said in cost.said


def test_a_giant_counter_takes_little(tmp_path: Path, tensors):
    counter = torch.zeros(12 * 10**6, dtype=torch.int64)
    state = {**tensors, "bn1.num_batches_tracked": counter}
    paths = [tmp_path / "zip.pth", tmp_path / "legacy.pth", tmp_path / "w.safetensors"]
    torch.save(state, paths[0])
    torch.save(state, paths[1], _use_new_zipfile_serialization=False)
    save_file(state, paths[2])
    for path, cost in zip(paths, costs_of_loading(*paths), strict=True):
        require_bounded(cost, path.stat().st_size)
        assert "is int64 (12000000,), expected one int64 from 0" in cost.said
        assert len(cost.said) < 1000
