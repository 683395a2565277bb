"""Files: recognised by content, structure checked, no code ever run."""

from __future__ import annotations

import argparse
import gzip
import lzma
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import parity
from parity.errors import CheckpointError
from parity.files import pth, reading, safetensors_format
from parity.weights.digest import differing_bits
from tests.support.corpus import refused
from tests.support.examples import examples


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


# --- safetensors -------------------------------------------------------------------


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
    refused(path, said)


@settings(
    max_examples=examples(400),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
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
        refused(path)


# --- bounds ------------------------------------------------------------------------


def _entry(shape: str = "[1]", dtype: str = '"F32"', offsets: str = "[0,4]") -> str:
    return f'{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}'


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (_entry(shape="[" + "9" * 4000 + "]"), "a number in it has 4000 digits"),
        (_entry(shape="[1.0]"), "1.0 in it is no whole number"),
        (_entry(shape="[NaN]"), "NaN in it is no whole number"),
        (_entry(shape="[true]"), "'a' is malformed"),
        (_entry(dtype='["F32"]'), "'a' is malformed"),
        (_entry(dtype="{}"), "'a' is malformed"),
        (_entry(shape='"1"'), "'a' is malformed"),
        (_entry(offsets="[0,4,4]"), "'a' is malformed"),
        (_entry()[:-1] + ',"more":1}', "'a' is malformed"),
        (_entry(shape=str([1] * 65)), "which no weights have"),
        (_entry(shape=str([1] * 100_000)), "which no weights have"),
        (_entry(shape=f"[0,{2**40},{2**40}]", offsets="[0,0]"), "which no weights"),
        (_entry(shape=f"[{2**50},{2**50}]"), "and 4 bytes for it"),
    ],
)
def test_a_header_that_no_network_has_is_refused(path: Path, header: str, said: str):
    path.write_bytes(_header(f'{{"a":{header}}}', b"1234"))
    refused(path, said)


def test_a_header_or_a_pickle_that_is_too_long_is_not_read(
    path: Path, tensors, monkeypatch: pytest.MonkeyPatch
):
    for module in (pth, safetensors_format):
        monkeypatch.setattr(module, "MAX_INDEX", 1000)
    path.write_bytes(_header('{"a":' + " " * 2000 + _entry() + "}", b"1234"))
    refused(path, "at most 1000 that a network needs")
    _pth(path, tensors)
    refused(path, "its pickle has", "more than any network's")
    monkeypatch.setattr(pth, "_MAX_READS", 1000)
    _legacy(path, tensors)
    refused(path, "its pickle is longer than any network's")


def test_a_file_is_looked_at_before_it_is_read(path: Path):
    with open(path, "wb") as file:
        file.truncate(8 * 2**30)
    refused(path, "is no .pth and no .safetensors")
    with open(path, "r+b") as file:
        file.write(b"PK\3\4")
    refused(path, "does not end at the file's end")


def test_a_long_name_or_many_make_no_long_line(path: Path, tensors):
    long = {"x" * 10**6: torch.zeros(1, dtype=torch.int8)}
    torch.save({**tensors, **long}, path)
    assert len(str(refused(path, "is int8"))) < 1000
    many = {f"{i}{'y' * 1000}": torch.zeros(1, dtype=torch.int8) for i in range(1000)}
    torch.save(many, path)
    assert len(str(refused(path, "is int8", "995 more"))) < 3000


def test_a_giant_counter_is_not_printed(path: Path, tensors):
    counter = {"bn1.num_batches_tracked": torch.zeros(10**6, dtype=torch.int64)}
    torch.save({**tensors, **counter}, path)
    refused(path, "is int64 (1000000,), expected one int64 from 0")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(0, 3),
        lambda: torch.zeros((1,) * 65),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    ],
)
def test_tensors_of_other_kinds_are_refused_in_one_line(
    path: Path, tensors, make: Callable[[], torch.Tensor]
):
    torch.save({**tensors, "fc.extra": make()}, path)
    refused(path)


def test_a_tensor_that_is_to_be_negated_is_read_by_value(path: Path, tensors, arrays):
    negated = torch._neg_view(-tensors["fc.bias"])  # type: ignore[attr-defined]
    assert negated.is_neg()
    torch.save({**tensors, "fc.bias": negated}, path)
    assert differing_bits(parity.load(path), arrays) == {}


def test_every_refusal_says_what_to_do(path: Path, tensors):
    for change in (
        {"fc.extra": torch.zeros(1).bool()},
        {"bn1.running_var": -torch.ones(8)},
    ):
        torch.save({**tensors, **change}, path)
        assert ". " in str(refused(path))


def test_what_nobody_thought_of_is_one_line_too(
    path: Path, tensors, monkeypatch: pytest.MonkeyPatch
):
    def fail(*arguments: object) -> None:
        raise AttributeError("nobody\nthought of it")

    torch.save(tensors, path)
    monkeypatch.setattr(reading, "with_counts", fail)
    refused(path, "cannot be understood (AttributeError: nobody")
