"""Files of weights: what comes in, and what must never get through."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import re
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import parity
from parity.compare import differing_bits
from parity.errors import CheckpointError
from parity.twins import abstract_flax, abstract_torch
from resnet_spec import get_config
from tests.networks import TINY, random_torch

Write = Callable[[Path], None]


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    """A tiny network's state, every value random."""
    return dict(random_torch(TINY).state_dict())


@pytest.fixture(scope="module")
def arrays(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pth"


def _refused(path: Path, *parts: str, **settings: Any) -> CheckpointError:
    """Loads a bad file: one line that names it and these parts, nothing left behind."""
    before = sorted(path.parent.iterdir())
    with pytest.raises(CheckpointError) as error:
        parity.load(path, **settings)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert "weights_only=False" not in text
    for part in parts:
        assert part in text
    assert sorted(path.parent.iterdir()) == before
    return error.value


# --- the file -----------------------------------------------------------------------


def test_row_1_a_missing_file(path: Path):
    _refused(path, "no such file", "Check the path")


def test_row_2_a_directory(tmp_path: Path):
    path = tmp_path / "folder"
    path.mkdir()
    _refused(path, "is a directory")


def test_row_3_an_empty_file(path: Path):
    path.touch()
    _refused(path, "is empty")


def test_row_4_three_bytes(path: Path):
    path.write_bytes(b"abc")
    _refused(path, "no .pth and no .safetensors", "b'abc'")


def test_row_5_a_web_page(path: Path):
    path.write_text("\n<!DOCTYPE html><html><body>404 Not Found</body></html>")
    _refused(path, "is a web page")


def test_row_6_a_git_lfs_pointer(path: Path):
    path.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n"
    )
    _refused(path, "Git LFS pointer", "git lfs pull")


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("gzip", gzip.compress),
        ("xz", lzma.compress),
        ("zstd", lambda data: b"\x28\xb5\x2f\xfd" + data),
    ],
)
def test_row_7_a_compressed_file(path: Path, tensors, name: str, pack):
    torch.save(tensors, path)
    path.write_bytes(pack(path.read_bytes()))
    _refused(path, f"compressed with {name}")


def test_row_8_safetensors_by_the_name_of_pth(path: Path, arrays):
    safetensors.numpy.save_file(arrays, path)
    state = parity.load(path)
    assert state.notes == ["the content is safetensors, whatever the name says"]
    assert differing_bits(state, arrays) == {}


def test_row_9_pth_by_the_name_of_safetensors(tmp_path: Path, tensors, arrays):
    path = tmp_path / "weights.safetensors"
    torch.save(tensors, path)
    state = parity.load(path)
    assert state.notes == ["the content is .pth, whatever the name says"]
    assert differing_bits(state, arrays) == {}


def _pth(path: Path, tensors) -> None:
    torch.save(tensors, path)


def _legacy(path: Path, tensors) -> None:
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


def _safetensors(path: Path, tensors) -> None:
    safetensors.numpy.save_file({k: v.numpy() for k, v in tensors.items()}, path)


FORMATS = pytest.mark.parametrize("write", [_pth, _legacy, _safetensors])


@FORMATS
def test_every_format_is_read_bit_for_bit(path: Path, tensors, arrays, write):
    write(path, tensors)
    assert differing_bits(parity.load(path), arrays) == {}


@FORMATS
def test_row_10_cut_at_half(path: Path, tensors, write):
    write(path, tensors)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    _refused(path)


@FORMATS
def test_row_11_cut_by_a_byte(path: Path, tensors, write):
    write(path, tensors)
    path.write_bytes(path.read_bytes()[:-1])
    _refused(path)


@FORMATS
def test_row_12_with_a_kilobyte_behind_its_end(path: Path, tensors, write):
    write(path, tensors)
    path.write_bytes(path.read_bytes() + bytes(1024))
    _refused(path, "appended" if write is not _legacy else "1024 bytes follow")


def test_row_13_one_flipped_bit_in_pth(path: Path, tensors):
    torch.save(tensors, path)
    data = bytearray(path.read_bytes())
    data[data.find(tensors["layer2.0.conv1.weight"].numpy().tobytes()[:64])] ^= 1
    path.write_bytes(data)
    _refused(path, "damaged", "CRC")


def test_row_13_one_flipped_bit_in_a_file_of_ours(tmp_path: Path, arrays):
    path = tmp_path / "weights.safetensors"
    parity.save(path, arrays)
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    _refused(path, "not those that were written")


def test_row_14_a_name_that_promises_another_content(tmp_path: Path, tensors):
    path = tmp_path / "resnet50-0676ba61.pth"
    torch.save(tensors, path)
    _refused(path, "that of a published file with sha256 0676ba61")


def test_other_numbers_in_a_name_promise_nothing(tmp_path: Path, tensors, arrays):
    path = tmp_path / "checkpoint-20240101.pth"
    torch.save(tensors, path)
    assert differing_bits(parity.load(path), arrays) == {}
    target = tmp_path / "resnet50-0676ba61.safetensors"
    parity.convert(path, target)  # not the published file, and not called one
    assert differing_bits(parity.load(target), arrays) == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_row_15_without_permission(path: Path, tensors):
    torch.save(tensors, path)
    path.chmod(0)
    _refused(path, "Permission denied", "permissions")


def test_row_16_what_is_no_regular_file(tmp_path: Path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    _refused(path, "no regular file")
    with pytest.raises(CheckpointError, match="no regular file"):
        parity.load("/dev/zero")


def test_row_17_a_broken_link(path: Path):
    path.symlink_to(path.parent / "nothing")
    _refused(path, "no such file")


def test_row_18_a_sparse_terabyte(path: Path):
    with open(path, "wb") as file:
        file.truncate(10**12)
    _refused(path, "larger than")


# --- the container ------------------------------------------------------------------


def _rezip(
    path: Path, change: Callable[[zipfile.ZipFile, zipfile.ZipFile], None]
) -> None:
    source = path.with_name("source.zip")
    shutil.move(path, source)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        change(old, new)
    source.unlink()


def _copy(old: zipfile.ZipFile, new: zipfile.ZipFile) -> None:
    for member in old.infolist():
        new.writestr(member.filename, old.read(member))


def test_a_repacked_archive_is_read(path: Path, tensors, arrays):
    torch.save(tensors, path)
    _rezip(path, _copy)
    assert differing_bits(parity.load(path), arrays) == {}


def test_row_19_a_compressed_member(path: Path, tensors):
    torch.save(tensors, path)

    def change(old: zipfile.ZipFile, new: zipfile.ZipFile) -> None:
        _copy(old, new)
        new.writestr("weights/data/99", bytes(10**6), zipfile.ZIP_DEFLATED)

    _rezip(path, change)
    _refused(path, "'weights/data/99' is compressed")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_row_20_a_member_that_is_there_twice(path: Path, tensors):
    torch.save(tensors, path)

    def change(old: zipfile.ZipFile, new: zipfile.ZipFile) -> None:
        _copy(old, new)
        new.writestr("weights/data.pkl", b"")

    _rezip(path, change)
    _refused(path, "'weights/data.pkl' twice")


def test_row_23_a_zip_of_text(path: Path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/readme.txt", "hello")
    _refused(path, "not one of torch.save: no data.pkl")


def test_row_24_a_member_outside(path: Path, tensors):
    torch.save(tensors, path)

    def change(old: zipfile.ZipFile, new: zipfile.ZipFile) -> None:
        _copy(old, new)
        new.writestr("../../x", b"")

    _rezip(path, change)
    _refused(path, "outside of it, '../../x'")


def test_row_28_an_archive_without_checksums(path: Path, tensors, arrays):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(tensors, path)
    finally:
        torch.serialization.set_crc32_options(True)
    state = parity.load(path)
    assert differing_bits(state, arrays) == {}
    with zipfile.ZipFile(path) as archive:
        if not any(member.CRC for member in archive.infolist()):
            assert "no checksums" in state.notes[0]


def test_row_31_the_old_format_says_that_it_is_unverified(path: Path, tensors):
    _legacy(path, tensors)
    assert "no checksums" in parity.load(path).notes[0]


# --- the pickle ---------------------------------------------------------------------


class _Evil:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("force", ["0", "1"])
@pytest.mark.parametrize("zipped", [True, False])
def test_rows_36_and_37_code_is_never_run(
    tmp_path: Path, tensors, zipped: bool, force: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", force)
    canary, path = tmp_path / "canary", tmp_path / "evil.pth"
    torch.save(
        {**tensors, "extra": _Evil(canary)}, path, _use_new_zipfile_serialization=zipped
    )
    _refused(path, "posix.system", "was not loaded")
    assert not canary.exists()
    torch.load(path, weights_only=False)  # it would have run: the test can fail
    assert canary.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_row_38_a_whole_module(path: Path, zipped: bool):
    model = torchvision.models.resnet18()
    torch.save(model, path, _use_new_zipfile_serialization=zipped)
    _refused(path, "torchvision.models.resnet.ResNet", "state_dict()")


@pytest.mark.parametrize(
    ("value", "said"),
    [([1], "list"), (torch.zeros(3), "Tensor"), (7, "int"), ("text", "str")],
)
def test_row_43_something_else_on_top(path: Path, value: object, said: str):
    torch.save(value, path)
    _refused(path, f"holds a {said}", "Save model.state_dict()")


@pytest.mark.parametrize("value", [{}, OrderedDict(), {"state_dict": {}}])
def test_row_44_an_empty_state(path: Path, value: object):
    torch.save(value, path)
    _refused(path, "no weights at all")


def test_row_45_names_that_are_numbers(path: Path):
    torch.save({0: torch.zeros(3), 1: torch.zeros(3)}, path)
    _refused(path, "names that are no text: 0, 1")


# --- the tensors --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_rows_58_and_59_other_floats_are_kept(tmp_path: Path, tensors, dtype, suffix):
    path = tmp_path / f"weights{suffix}"
    model = random_torch(TINY).to(getattr(torch, dtype))
    expected = parity.state_dict(model)
    if suffix == ".pth":
        torch.save(model.state_dict(), path)
    else:
        safetensors.torch.save_file(model.state_dict(), path)
    state = parity.load(path)
    assert differing_bits(state, expected) == {}
    fresh = abstract_torch(TINY).to(getattr(torch, dtype))
    parity.load_state_dict(fresh, state)
    assert differing_bits(parity.state_dict(fresh), expected) == {}
    with pytest.raises(CheckpointError, match=f"{dtype}, expected float32"):
        parity.load_state_dict(abstract_flax(TINY), state)


@pytest.mark.parametrize(
    ("leaf", "said"),
    [
        (torch.zeros(2, 2).to_sparse(), "sparse"),
        (torch.zeros(3, dtype=torch.complex64), "complex64"),
        (torch.zeros(3, dtype=torch.int8), "int8"),
        (torch.zeros(3, dtype=torch.bool), "bool"),
        (torch.zeros(3, dtype=torch.float8_e4m3fn), "float8_e4m3fn"),
        (torch.zeros(3, device="meta"), "meta"),
        ("text", "a str"),
        (3, "a int"),
    ],
)
def test_what_is_no_plain_tensor_is_refused(path: Path, tensors, leaf: Any, said: str):
    torch.save({**tensors, "fc.extra": leaf}, path)
    _refused(path, "fc.extra", said)


def test_row_50_a_giant_that_the_file_cannot_hold(path: Path, tensors):
    torch.save({**tensors, "fc.extra": torch.zeros(1).expand(10**6, 10**6)}, path)
    _refused(path, "which the file cannot hold")


def test_rows_51_65_to_68_views_are_read_by_value(path: Path, tensors, arrays):
    odd = dict(tensors)
    odd["fc.bias"] = torch.ones(1).expand(7)
    weight = tensors["layer1.0.conv1.weight"]
    odd["layer1.0.conv1.weight"] = weight.contiguous(memory_format=torch.channels_last)
    odd["fc.weight"] = tensors["fc.weight"].t().contiguous().t().requires_grad_()
    giant = torch.randn(10**6)
    giant[:16] = tensors["layer2.0.bn1.weight"]
    odd["layer2.0.bn1.weight"] = giant[:16]
    torch.save(odd, path)
    expected = arrays | {"fc.bias": np.ones(7, np.float32)}
    state = parity.load(path)
    assert differing_bits(state, expected) == {}
    target = path.with_name("small.pth")
    parity.save(target, state)
    assert target.stat().st_size < 200_000


def test_rows_61_and_62_values_that_are_not_finite(path: Path, tensors):
    bad = {name: tensor.clone() for name, tensor in tensors.items()}
    bad["fc.weight"][0, :3] = float("nan")
    bad["fc.bias"][:2] = float("-inf")
    torch.save(bad, path)
    _refused(
        path,
        "fc.weight has 3 NaN and 0 Inf",
        "fc.bias has 0 NaN and 2 Inf",
        "--allow-nonfinite",
    )
    state = parity.load(path, allow_nonfinite=True)
    assert differing_bits(state, {k: v.numpy() for k, v in bad.items()}) == {}


def test_row_63_a_negative_variance(path: Path, tensors):
    bad = {**tensors, "bn1.running_var": -tensors["bn1.running_var"]}
    torch.save(bad, path)
    _refused(path, "negative variances: bn1.running_var has 8")


@pytest.mark.parametrize(
    "count",
    [torch.tensor(-1), torch.tensor([1]), torch.tensor(1.0), torch.tensor(1).float()],
)
def test_row_64_a_bad_batch_count(path: Path, tensors, count: torch.Tensor):
    torch.save({**tensors, "bn1.num_batches_tracked": count}, path)
    _refused(path, "bn1.num_batches_tracked", "expected one int64 from 0")


def test_row_70_every_bit_of_a_float_survives(path: Path, tensors):
    odd = tensors["fc.bias"].clone()
    bits = [0x80000000, 1, 0x7FC00001, 0xFFFFFFFF, 0x7F800001, 0x007FFFFF, 0x3F800001]
    odd.view(torch.int32)[:] = torch.from_numpy(
        np.array(bits, np.uint32).view(np.int32)
    )
    torch.save({**tensors, "fc.bias": odd}, path)
    state = parity.load(path, allow_nonfinite=True)
    assert state["fc.bias"].view(np.uint32).tolist() == bits


# --- names and shapes ---------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_row_71_prefixes_are_taken_off_and_said(path: Path, tensors, arrays, prefix):
    torch.save({prefix + name: tensor for name, tensor in tensors.items()}, path)
    state = parity.load(path)
    assert differing_bits(state, arrays) == {}
    assert len(state.notes) == prefix.count(".")
    assert "took the prefix" in state.notes[0]


def test_row_72_a_prefix_on_half_of_the_names_stays(path: Path, tensors):
    names = list(tensors)
    half = {("module." if i % 2 else "") + n: tensors[n] for i, n in enumerate(names)}
    torch.save(half, path)
    state = parity.load(path)
    with pytest.raises(CheckpointError, match=r"missing: .*unexpected: module\."):
        parity.load_state_dict(abstract_torch(TINY), state)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict", "ema"])
def test_row_74_a_wrapper_is_taken_off_and_said(path: Path, tensors, arrays, wrapper):
    torch.save({"epoch": 3, wrapper: tensors, "loss": 0.5}, path)
    state = parity.load(path)
    assert differing_bits(state, arrays) == {}
    assert state.notes == [f"took the state from the entry {wrapper!r}"]


def test_row_75_of_several_wrappers_one_must_be_chosen(path: Path, tensors, arrays):
    other = {name: tensor + 1 for name, tensor in tensors.items()}
    torch.save({"model": other, "ema": tensors}, path)
    _refused(path, "has several states: model, ema", "--key")
    assert differing_bits(parity.load(path, key="ema"), arrays) == {}
    _refused(path, "no state under the key 'best'", key="best")


def test_rows_76_77_and_81_missing_and_unexpected_entries(tmp_path: Path, tensors):
    path = tmp_path / "weights.pth"
    bad = {name: tensor for name, tensor in tensors.items() if name != "fc.bias"}
    torch.save({**bad, "fc.extra": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError) as error:
        parity.convert(path, tmp_path / "out.safetensors")
    text = str(error.value)
    assert text.startswith(f"{path}: missing: fc.bias; unexpected: fc.extra")
    assert sorted(tmp_path.iterdir()) == [path]


def test_row_78_without_any_batch_counts(path: Path, tensors):
    old = {n: t for n, t in tensors.items() if not n.endswith("num_batches_tracked")}
    torch.save(old, path)
    state = parity.load(path)
    assert "no num_batches_tracked" in state.notes[0]
    assert list(state) == list(tensors)
    counts = [v for n, v in state.items() if n.endswith("num_batches_tracked")]
    assert counts
    assert all(c.dtype == np.int64 and c.shape == () and c == 0 for c in counts)


def test_row_78_without_some_batch_counts_they_are_missing(path: Path, tensors):
    torch.save(
        {n: t for n, t in tensors.items() if n != "bn1.num_batches_tracked"}, path
    )
    with pytest.raises(CheckpointError, match=r"missing: bn1\.num_batches_tracked"):
        parity.load_state_dict(abstract_torch(TINY), parity.load(path))


def _convert_as(path: Path, name: str) -> str:
    with pytest.raises(CheckpointError) as error:
        parity.convert(path, path.with_name("out.safetensors"), config=get_config(name))
    assert not path.with_name("out.safetensors").exists()
    return str(error.value)


def test_row_79_resnet34_offered_as_resnet50(path: Path):
    torch.save(random_torch("resnet34").state_dict(), path)
    assert "looks like resnet34, not resnet50" in _convert_as(path, "resnet50")


def test_rows_80_82_and_86_say_what_would_fit(path: Path):
    state = random_torch("resnet18").state_dict()
    ten = {**state, "fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}
    torch.save(ten, path)
    assert "num_classes=10" in _convert_as(path, "resnet18")
    hwio = {**state}
    hwio["layer1.0.conv1.weight"] = state["layer1.0.conv1.weight"].permute(2, 3, 1, 0)
    torch.save(hwio, path)
    assert "HWIO" in _convert_as(path, "resnet18")
    gray = {**state, "conv1.weight": state["conv1.weight"][:, :1]}
    torch.save(gray, path)
    assert "in_channels=1" in _convert_as(path, "resnet18")


def test_rows_87_and_88_another_body_is_refused(path: Path):
    torch.save(random_torch("resnext50_32x4d").state_dict(), path)
    assert "looks like resnext50_32x4d" in _convert_as(path, "resnet50")
    state = random_torch("resnet18").state_dict()
    torch.save({**state, "conv1.weight": torch.zeros(64, 3, 3, 3)}, path)
    assert "conv1.weight (64, 3, 3, 3)" in _convert_as(path, "resnet18")
    torch.save({**state, "conv1.weight": torch.zeros(64, 3, 5, 5)}, path)
    with pytest.raises(CheckpointError, match="state of no network known here"):
        parity.convert(path, path.with_name("out.safetensors"))


@pytest.mark.parametrize("number", [3000, 10**9])
def test_a_number_in_a_name_builds_no_network(path: Path, tensors, number: int):
    extra = {f"layer1.{number}.conv1.weight": torch.zeros(1)}
    torch.save({**tensors, **extra}, path)
    with pytest.raises(CheckpointError, match="state of no network known here"):
        parity.convert(path, path.with_name("out.safetensors"))


def test_metadata_that_is_no_networks_is_refused_by_name(tmp_path: Path, arrays):
    path = tmp_path / "w.safetensors"
    for config, said in (
        ('{"block": "basic", "layers": [1], "new_field": 3}', "does not know"),
        ("[" * 100_000, "does not know"),
        (get_config("cifar_resnet1202").to_json(), "more blocks than that"),
    ):
        metadata = {"resnet_twins": json.dumps({"config": config})}
        safetensors.numpy.save_file(arrays, path, metadata=metadata)
        with pytest.raises(CheckpointError, match=said) as error:
            parity.convert(path, tmp_path / "out.pth")
        assert str(error.value).startswith(f"{path}: ")


def test_integers_are_no_weights(path: Path, tensors):
    torch.save({**tensors, "fc.bias": torch.zeros(7, dtype=torch.int64)}, path)
    _refused(path, "integers where weights should be: fc.bias")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_any_names_are_saved_as_they_are(tmp_path: Path, tensors, suffix: str):
    # Prefixes and missing counts are put right when a file is read, not when written.
    odd = {f"module.{n}": t for n, t in tensors.items() if "num_batches" not in n}
    path = tmp_path / f"w.{suffix}"
    parity.save(path, odd)
    if suffix == "pth":
        assert list(torch.load(path, weights_only=True)) == list(odd)
    assert len(parity.load(path).notes) == 2


def test_row_89_files_of_ours_know_v1_from_v15(tmp_path: Path):
    v1, path = get_config("resnet50_v1"), tmp_path / "weights.pth"
    parity.save(path, random_torch("resnet50_v1"))
    assert parity.load(path).config == v1
    assert "belongs to resnet50_v1" in _convert_as(path, "resnet50")
    found = parity.convert(path, tmp_path / "out.safetensors")
    assert found.network == "resnet50_v1"
    # Others' files do not say; then it is v1.5, as everywhere.
    torch.save(random_torch("resnet50_v1").state_dict(), tmp_path / "other.pth")
    found = parity.convert(tmp_path / "other.pth", tmp_path / "other.safetensors")
    assert found.network == "resnet50"


# --- safetensors --------------------------------------------------------------------


def _header(text: str, body: bytes = b"") -> bytes:
    data = text.encode()
    return len(data).to_bytes(8, "little") + data + body


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ((2**63).to_bytes(8, "little") + b"{}", "claims 9223372036854775808 bytes"),
        (_header('{"a": '), "is no JSON"),
        (_header('{"a":' + "[" * 10**5), "is no JSON"),
        (_header('{"a": 3}'), "'a' is malformed"),
        (
            _header('{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,1]}}', b"x"),
            "F99",
        ),
        (
            _header('{"a":{"dtype":"F32","shape":[99],"data_offsets":[0,4]}}', b"xxxx"),
            "shape (99,) and dtype F32, and 4 bytes",
        ),
        (
            _header('{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', b"xxxx"),
            "malformed",
        ),
        (
            _header('{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', b"xx"),
            "begins at byte 1",
        ),
        (
            _header(
                '{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},'
                '"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}',
                b"xxx",
            ),
            "ends at 2",
        ),
        (
            _header(
                '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
                '"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
                b"xx",
            ),
            "'a' twice",
        ),
    ],
)
def test_rows_91_to_94_a_broken_header(path: Path, content: bytes, said: str):
    path.write_bytes(content)
    _refused(path, said)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_mutated_header_is_refused_or_changes_nothing(tmp_path: Path, data):
    arrays = {
        "fc.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fc.bias": np.ones(2, np.float32),
    }
    content = bytearray(safetensors.numpy.save(arrays))
    length = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, length - 1))
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path / "fuzzed.safetensors"
    path.write_bytes(content)
    try:
        state = parity.load(path, allow_nonfinite=True)
    except CheckpointError as error:
        assert "\n" not in str(error)  # noqa: PT017  either outcome is right
    else:
        # Another name is another file's; the values under it must be the same.
        found = sorted(array.tobytes() for array in state.values())
        expected = sorted(array.tobytes() for array in arrays.values())
        assert found == expected


@pytest.mark.parametrize("write", [_pth, _legacy, _safetensors])
def test_truncation_anywhere_is_refused(tmp_path: Path, write):
    small = {"fc.weight": torch.randn(5, 3), "fc.bias": torch.randn(5)}
    path = tmp_path / "whole.pth"
    write(path, small)
    content = path.read_bytes()
    for end in range(0, len(content), 3):
        path.write_bytes(content[:end])
        _refused(path)


# --- our own files ------------------------------------------------------------------


@pytest.mark.parametrize("format", ["pth", "pth-legacy", "safetensors"])
def test_a_saved_file_comes_back_with_its_configuration(tmp_path: Path, format: Any):
    model, path = random_torch(TINY), tmp_path / "model.bin"
    parity.save(path, model, format=format)
    state = parity.load(path)
    assert differing_bits(state, parity.state_dict(model)) == {}
    assert state.config == TINY
    assert state.metadata["layout"] == "OIHW"
    assert state.metadata["format_version"] == 1
    assert state.metadata["tool"].startswith("resnet-twins ")


def test_a_flax_twin_is_saved_as_the_same_file(tmp_path: Path):
    model = random_torch(TINY)
    twin = abstract_flax(TINY)
    parity.load_state_dict(twin, parity.state_dict(model))
    parity.save(tmp_path / "a.safetensors", model)
    parity.save(tmp_path / "b.safetensors", twin)
    contents = [(tmp_path / f"{n}.safetensors").read_bytes() for n in "ab"]
    assert contents[0] == contents[1]


@pytest.mark.parametrize("format", ["pth", "pth-legacy"])
def test_torchvision_loads_our_file_strictly(tmp_path: Path, format: Any):
    model, path = random_torch("resnet18"), tmp_path / "model.pth"
    parity.save(path, model, format=format)
    theirs = torchvision.models.resnet18()
    theirs.load_state_dict(torch.load(path, weights_only=True), strict=True)
    assert parity.digest_of(theirs) == parity.digest_of(model)


def test_safetensors_own_library_reads_our_file(tmp_path: Path):
    model, path = random_torch(TINY), tmp_path / "model.safetensors"
    parity.save(path, model)
    found = safetensors.numpy.load_file(path)
    assert differing_bits(found, parity.state_dict(model)) == {}
    with safetensors.safe_open(path, "numpy") as file:
        metadata = json.loads(file.metadata()["resnet_twins"])
    assert re.fullmatch("[0-9a-f]{64}", metadata["sha256"])


def test_converting_there_and_back_gives_the_same_values(tmp_path: Path):
    source = tmp_path / "a.pth"
    theirs = torchvision.models.resnet18(num_classes=10)
    torch.save(theirs.state_dict(), source)
    there = parity.convert(source, tmp_path / "b.safetensors")
    back = parity.convert(tmp_path / "b.safetensors", tmp_path / "c.pth")
    assert there.sha256 == back.sha256
    found = torch.load(tmp_path / "c.pth", weights_only=True)
    assert list(found) == list(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        assert differing_bits({"": found[name].numpy()}, {"": tensor.numpy()}) == {}
    assert there.network == "resnet18 with num_classes=10"
    metadata = parity.load(tmp_path / "b.safetensors").metadata
    assert metadata["source"]["name"] == "a.pth"
