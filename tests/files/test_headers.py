"""Headers of .safetensors, and bounds of all that is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import parity
from parity.errors import CheckpointError, InputError
from parity.files import pth, reading, safetensors_format
from parity.weights.digest import differing_bits
from tests.support.corpus import refused
from tests.support.examples import examples


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
    torch.save(tensors, path)
    refused(path, "its pickle has", "more than any network's")
    monkeypatch.setattr(pth, "_MAX_READS", 1000)
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    refused(path, "its pickle is longer than any network's")


def _bytes_read() -> int:
    """Counts all that this process has read so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux counts")
def test_a_file_is_looked_at_before_it_is_read(path: Path):
    with open(path, "wb") as file:
        file.truncate(8 * 2**30)
    for head, said in (
        (b"", "is no .pth and no .safetensors"),
        (b"PK\3\4", "does not end at the file's end"),
        (b"\xff" * 8 + b"{", "its header claims"),
        (b"\x1f\x8b", "is compressed with gzip"),
    ):
        with open(path, "r+b") as file:
            file.write(head)
        before = _bytes_read()
        refused(path, said)
        assert _bytes_read() - before < 2**24


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


@pytest.mark.parametrize(
    "problem",
    [
        "cannot be read (No data. Offset 3)",
        "a. B is of the shape (0,)",
        {"unexpected": ["a. B", "c"]},
    ],
)
def test_a_full_stop_in_what_is_quoted_is_no_advice(problem: Any):
    error = InputError(problem, path="w.pth")
    assert str(error).endswith(". Get the file again, or another one")
    assert str(InputError(problem).at("w.pth")) == str(error)
    told = InputError(problem, path="w.pth", advice="Go away. Now")
    assert str(told).endswith(". Go away. Now")
    assert str(told).count("Get the file") == 0


def test_an_entry_whose_name_has_a_full_stop_is_refused_with_advice(path: Path):
    path.write_bytes(_header(f'{{"a. B":{_entry(shape="[true]")}}}', b"1234"))
    refused(path, "'a. B' is malformed. Get the file again, or another one")


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
