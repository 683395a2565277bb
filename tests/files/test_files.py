"""Files: recognised by content, structure checked, no code ever run."""

from __future__ import annotations

import argparse
import gzip
import lzma
import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import torchvision

import parity
from parity.errors import CheckpointError
from parity.weights.digest import differing_bits
from tests.support.corpus import refused


def test_row_1_a_missing_file(path: Path):
    refused(path, "no such file", "Check the path")


def test_row_2_a_directory(tmp_path: Path):
    path = tmp_path / "folder"
    path.mkdir()
    refused(path, "is a directory")


def test_row_3_an_empty_file(path: Path):
    path.touch()
    refused(path, "is empty")


def test_row_4_three_bytes(path: Path):
    path.write_bytes(b"abc")
    refused(path, "no .pth and no .safetensors", "b'abc'")


def test_row_5_a_web_page(path: Path):
    path.write_text("\n<!DOCTYPE html><html><body>404 Not Found</body></html>")
    refused(path, "is a web page")


def test_row_6_a_git_lfs_pointer(path: Path):
    path.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n"
    )
    refused(path, "Git LFS pointer", "git lfs pull")


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
    refused(path, f"compressed with {name}")


def test_row_8_safetensors_by_the_name_of_pth(path: Path, arrays):
    safetensors.numpy.save_file(arrays, path)
    state = parity.load(path)
    assert state.notes == [
        "the content is safetensors, whatever the name says",
        "it has no checksums; its values are unverified",
    ]
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
    refused(path)


@FORMATS
def test_row_11_cut_by_a_byte(path: Path, tensors, write):
    write(path, tensors)
    path.write_bytes(path.read_bytes()[:-1])
    refused(path)


@FORMATS
def test_row_12_with_a_kilobyte_behind_its_end(path: Path, tensors, write):
    write(path, tensors)
    path.write_bytes(path.read_bytes() + bytes(1024))
    refused(path, "appended" if write is not _legacy else "1024 bytes follow")


def test_row_13_one_flipped_bit_in_pth(path: Path, tensors):
    torch.save(tensors, path)
    data = bytearray(path.read_bytes())
    data[data.find(tensors["layer2.0.conv1.weight"].numpy().tobytes()[:64])] ^= 1
    path.write_bytes(data)
    refused(path, "damaged", "CRC")


def test_row_13_one_flipped_bit_in_a_file_of_ours(tmp_path: Path, arrays):
    path = tmp_path / "weights.safetensors"
    parity.save(path, arrays)
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    refused(path, "not those that were written")


def test_row_14_a_name_that_promises_another_content(tmp_path: Path, tensors):
    path = tmp_path / "resnet50-0676ba61.pth"
    torch.save(tensors, path)
    refused(path, "that of a published file with sha256 0676ba61")


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
    refused(path, "Permission denied", "permissions")


def test_row_16_what_is_no_regular_file(tmp_path: Path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    refused(path, "no regular file")
    with pytest.raises(CheckpointError, match="no regular file"):
        parity.load("/dev/zero")


def test_row_17_a_broken_link(path: Path):
    path.symlink_to(path.parent / "nothing")
    refused(path, "no such file")


def test_row_18_a_sparse_terabyte(path: Path):
    with open(path, "wb") as file:
        file.truncate(10**12)
    refused(path, "larger than")


def test_row_31_the_old_format_says_that_it_is_unverified(path: Path, tensors):
    _legacy(path, tensors)
    assert "no checksums" in parity.load(path).notes[0]


# --- the pickle --------------------------------------------------------------------


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
    refused(path, "posix.system", "was not loaded")
    assert not canary.exists()
    torch.load(path, weights_only=False)  # it would have run: the test can fail
    assert canary.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_row_38_a_whole_module(path: Path, zipped: bool):
    model = torchvision.models.resnet18()
    torch.save(model, path, _use_new_zipfile_serialization=zipped)
    refused(path, "torchvision.models.resnet.ResNet", "state_dict()")


@pytest.mark.parametrize(
    ("value", "said"),
    [([1], "list"), (torch.zeros(3), "Tensor"), (7, "int"), ("text", "str")],
)
def test_row_43_something_else_on_top(path: Path, value: object, said: str):
    torch.save(value, path)
    refused(path, f"holds a {said}", "Save model.state_dict()")


@pytest.mark.parametrize("value", [{}, OrderedDict(), {"state_dict": {}}])
def test_row_44_an_empty_state(path: Path, value: object):
    torch.save(value, path)
    refused(path, "no weights at all")


def test_row_45_names_that_are_numbers(path: Path):
    torch.save({0: torch.zeros(3), 1: torch.zeros(3)}, path)
    refused(path, "names that are no text: 0, 1")


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (argparse.Namespace(lr=0.1), "extra is a Namespace"),
        (np.float64(1), "extra is a scalar"),
        (torch.get_rng_state(), "extra is uint8"),
        ({"nested": 1}, "extra is a dict"),
    ],
)
def test_rows_39_to_42_what_else_people_save(path: Path, tensors, extra, said: str):
    torch.save({**tensors, "extra": extra}, path)
    refused(path, said)


def test_row_42_a_state_that_holds_itself(path: Path, tensors):
    state = dict(tensors)
    state["self"] = state
    torch.save(state, path)
    refused(path, "self is a dict")


@pytest.mark.parametrize("name", ["a\udc80", ""])
def test_row_46_names_that_are_no_text(path: Path, tensors, name: str):
    torch.save({**tensors, name: torch.zeros(2)}, path)
    refused(path, "names that are no text")


@pytest.mark.parametrize("write", [_pth, _legacy, _safetensors])
def test_truncation_anywhere_is_refused(tmp_path: Path, write):
    small = {"fc.weight": torch.randn(5, 3), "fc.bias": torch.randn(5)}
    path = tmp_path / "whole.pth"
    write(path, small)
    content = path.read_bytes()
    for end in range(0, len(content), 3):
        path.write_bytes(content[:end])
        refused(path)
