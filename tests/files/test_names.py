"""Names in a file that look alike, stand for two entries or begin one another."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

import parity
from parity.errors import CheckpointError
from parity.weights.digest import differing_bits
from tests.support.corpus import refused
from tests.support.networks import TINY

ACUTE = "fc.e\u0301"  # and in one character "fc.\u00e9"
ONE = torch.ones(1)


def _said(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        parity.convert(path, path.with_name("out.npz"))
    assert [*path.parent.iterdir()] == [path]
    assert str(error.value).startswith(f"{path}: ")
    assert str(error.value).isprintable()
    return str(error.value)


def _write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    if path.suffix == ".pth":
        torch.save(tensors, path)
    else:
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        safetensors.numpy.save_file(arrays, path)


EITHER = pytest.mark.parametrize("suffix", [".pth", ".safetensors"])


@EITHER
def test_row_90_names_that_look_alike_are_told_apart(
    tmp_path: Path, tensors, suffix: str
):
    path = tmp_path / f"w{suffix}"
    composed = unicodedata.normalize("NFC", ACUTE)
    assert composed != ACUTE
    _write(path, {**tensors, ACUTE: ONE, composed: ONE})
    assert r"fc.\xe9" in _said(path)
    assert r"fc.e\u0301" in _said(path)
    for lookalike, said in (
        ("fc.bi\u0430s", r"fc.bi\u0430s"),  # a Cyrillic a
        ("\uff46\uff43.bias", r"\uff46\uff43.bias"),  # wide letters
        ("fc.bias\u200b", r"fc.bias\u200b"),  # followed by nothing
    ):
        renamed = {lookalike if n == "fc.bias" else n: t for n, t in tensors.items()}
        _write(path, renamed)
        assert f"missing: fc.bias; unexpected: {said}. " in _said(path)
        with pytest.raises(CheckpointError, match=r"missing: fc\.bias"):
            parity.convert(path, tmp_path / "out.npz", config=TINY)


@EITHER
@pytest.mark.parametrize(
    "name", ["fc", "fc.weight.x", "layer1", "layer1.0", "bn1.", ".", " fc.bias"]
)
def test_row_90_names_that_begin_one_another_are_unexpected(
    tmp_path: Path, tensors, suffix: str, name: str
):
    path = tmp_path / f"w{suffix}"
    _write(path, {**tensors, name: ONE})
    assert f"unexpected: {name}" in _said(path)


@EITHER
def test_row_90_an_empty_name_is_no_text(tmp_path: Path, tensors, suffix: str):
    path = tmp_path / f"w{suffix}"
    _write(path, {**tensors, "": ONE})
    assert "has names that are no text: ''. Save model.state_dict()" in _said(path)


def test_row_73_one_name_with_dots_and_with_slashes(path: Path, tensors):
    torch.save({**tensors, "fc/bias": tensors["fc.bias"]}, path)
    assert "has fc.bias twice, with dots and with slashes" in _said(path)


def test_row_73_one_name_with_a_prefix_and_without_it(path: Path, tensors):
    wrapped = {f"module.{name}": tensor for name, tensor in tensors.items()}
    torch.save({**wrapped, "fc.bias": tensors["fc.bias"] + 1}, path)
    said = _said(path)
    assert "(under 'module.'): fc.bias. Leave these out with --ignore" in said
    torch.save({**wrapped, **tensors}, path)
    assert "has several networks" in _said(path)
    assert "--prefix module" in _said(path)


def test_row_90_metadata_is_an_entry_in_a_pth_alone(tmp_path: Path, tensors, arrays):
    odd = {**arrays, "__metadata__": np.ones(1, np.float32)}
    torch.save({**tensors, "__metadata__": ONE}, tmp_path / "w.pth")
    assert "unexpected: __metadata__" in _said(tmp_path / "w.pth")
    for name, format in (("w.pth", "pth"), ("w.npz", "npz"), ("w", "orbax")):
        format: Any
        own: Any = {"dialect": "torchvision", "overwrite": True}
        parity.save(tmp_path / name, odd, format=format, **own)
        assert differing_bits(parity.load(tmp_path / name), odd) == {}
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=r"no name that .*Call it otherwise"):
        parity.save(tmp_path / "w.safetensors", odd)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "told", ["[]", "3", "null", '{"a":1}', '{"a":{"b":"c"}}', '{"format":"pt"}']
)
def test_row_90_metadata_of_others_are_nothing_and_never_an_entry(
    path: Path, told: str
):
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    for metadata in (told, entry):
        text = f'{{"__metadata__":{metadata},"a":{entry}}}'.encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
        state = parity.load(path)
        assert state == {"a": 0}
        assert state.metadata == {}


@pytest.mark.parametrize("told", ["3", "{}", '["a"]'])
def test_row_90_metadata_of_ours_are_a_text(path: Path, told: str):
    text = (
        f'{{"__metadata__":{{"resnet_twins":{told}}},'
        '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    ).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    refused(path, "its metadata are no text: they are damaged")


def test_row_94_a_header_behind_a_space_is_no_header(path: Path):
    text = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}})
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + b"x")
    refused(path, "a is uint8")  # it is read
    text = f" {text}"
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + b"x")
    refused(path, "is no .pth and no .safetensors", "Check that this is the right file")


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("w.pth", "pth"),
        ("w.safetensors", "safetensors"),
        ("w.npz", "npz"),
        ("w.msgpack", "msgpack"),
        ("w", "orbax"),
    ],
)
def test_names_that_differ_by_an_accent_stay_two_in_every_container(
    tmp_path: Path, name: str, format: Any
):
    composed = unicodedata.normalize("NFC", ACUTE)
    odd = {ACUTE: np.ones(1, np.float32), composed: np.zeros(1, np.float32)}
    parity.save(tmp_path / name, odd, format=format, dialect="torchvision")
    assert differing_bits(parity.load(tmp_path / name), odd) == {}


def test_names_that_orbax_would_make_one_are_not_written(tmp_path: Path, arrays):
    odd = {**arrays, "fc/bias": np.ones(1, np.float32)}
    with pytest.raises(CheckpointError) as error:
        parity.save(tmp_path / "w", odd, format="orbax", dialect="torchvision")
    assert "fc.bias and fc/bias, which are one name in a folder" in str(error.value)
    assert not [*tmp_path.iterdir()]
