"""Our own files: they come back, others read them, and their metadata are guarded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import torchvision

import parity
from parity.errors import CheckpointError
from parity.weights.digest import differing_bits, digest
from parity.weights.twins import abstract_flax
from resnet_spec import ResNetConfig, get_config
from tests.support.corpus import refused
from tests.support.networks import TINY, random_torch


@pytest.mark.parametrize("format", ["pth", "pth-legacy", "safetensors"])
def test_a_saved_file_comes_back_with_its_configuration(tmp_path: Path, format: Any):
    model, path = random_torch(TINY), tmp_path / "model.bin"
    parity.save(path, model, format=format)
    state = parity.load(path)
    assert differing_bits(state, parity.state_dict(model)) == {}
    assert state.config == TINY
    assert state.metadata["layout"] == "OIHW"
    assert state.metadata["format_version"] == 2
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


def test_a_network_is_named_wherever_a_configuration_is_taken(tmp_path: Path):
    paths = [tmp_path / f"{name}.safetensors" for name in "abcd"]
    state, config = parity.state_dict(random_torch("resnet18")), get_config("resnet18")
    parity.save(paths[0], state, config="resnet18")
    parity.save(paths[1], state, config=config)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert parity.load(paths[0]).config == config
    source = tmp_path / "a.pth"
    torch.save({name: torch.from_numpy(value) for name, value in state.items()}, source)
    found = parity.convert(source, paths[2], config="resnet18")
    assert found.config == config
    parity.convert(source, paths[3], config=config)
    assert paths[2].read_bytes() == paths[3].read_bytes()
    for call in (
        lambda name: parity.save(tmp_path / "e.pth", state, config=name),
        lambda name: parity.convert(source, tmp_path / "e.pth", config=name),
    ):
        with pytest.raises(ValueError, match="no network named 'resnet19'"):
            call("resnet19")
        with pytest.raises(ValueError, match="5"):
            call(5)
    assert not (tmp_path / "e.pth").exists()


def test_converting_there_and_back_gives_the_same_values(tmp_path: Path):
    source = tmp_path / "a.pth"
    theirs = torchvision.models.resnet18(num_classes=10)
    torch.save(theirs.state_dict(), source)
    there = parity.convert(source, tmp_path / "b.safetensors")
    back = parity.convert(tmp_path / "b.safetensors", tmp_path / "c.pth")
    state = parity.load(tmp_path / "b.safetensors")
    assert there.sha256 == back.sha256 == digest(state)
    found = torch.load(tmp_path / "c.pth", weights_only=True)
    assert list(found) == list(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        assert differing_bits({"": found[name].numpy()}, {"": tensor.numpy()}) == {}
    assert there.network == "resnet18 with num_classes=10"
    assert state.metadata["source"]["name"] == "a.pth"


# --- what we say beside the weights -------------------------------------------------

SMALL = ResNetConfig(block="bottleneck", layers=(1,), widths=(8,), stride_on="1x1")


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A file of each format, of which only we say that it strides on its 1x1."""
    path = tmp_path_factory.mktemp("ours") / "w"
    found = {}
    for format in ("safetensors", "pth-legacy"):
        parity.save(path, random_torch(SMALL), format=format, overwrite=True)
        found[format] = path.read_bytes()
    return found


@pytest.mark.parametrize(("format", "step"), [("safetensors", 1), ("pth-legacy", 7)])
@pytest.mark.parametrize("mask", [1, 2, 4])
def test_a_flipped_bit_in_our_metadata_never_goes_unsaid(
    path: Path, ours: dict[str, bytes], format: str, step: int, mask: int
):
    data = ours[format]
    begin = data.index(b"resnet_twins")
    end = data.index(b"format_version", begin) + 400  # it stands between the config
    path.write_bytes(data)
    expected = parity.load(path)
    assert expected.config == SMALL
    assert "digest" in expected.metadata
    refusals = 0
    for place in range(begin - 20, end, step):
        path.write_bytes(data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :])
        try:
            found = parity.load(path)
        except CheckpointError:
            refusals += 1
        else:  # nothing is said otherwise, or that nothing is known
            assert found.config == SMALL or (
                found.config is None and "unverified" in str(found.notes)
            )
    assert refusals > 600 // step


def _saying(path: Path, arrays: dict[str, np.ndarray], metadata: Any) -> Path:
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    safetensors.numpy.save_file(arrays, path, metadata={"resnet_twins": text})
    return path


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ("{", "its metadata are no JSON"),
        ("[]", "its metadata are no object"),
        ("9" * 5000, "its metadata are no JSON"),
        ({"format_version": 3, "tool": "resnet-twins 9"}, "version 3.*resnet-twins 9"),
        ({"format_version": 2}, "not those that were written"),
        ({"format_version": "1"}, "'format_version', unknown or of another type"),
        ({"layout": "HWIO"}, "laid out as 'HWIO'"),
        ({"colour": "red"}, "'colour', unknown"),
        ({"config": 3}, "'config', unknown or of another type"),
        ({"sha256": ["a"]}, "'sha256', unknown or of another type"),
        ({"digest": "0" * 64}, "not those that were written"),
    ],
)
def test_metadata_that_nobody_wrote_are_refused(
    path: Path, arrays, metadata: Any, said: str
):
    with pytest.raises(CheckpointError, match=f"^{path}: .*{said}"):
        parity.load(_saying(path, arrays, metadata))


def test_our_metadata_under_another_key_are_refused(path: Path, arrays):
    metadata = {"resnet_twinz": json.dumps({"tool": "resnet-twins 0.1"})}
    safetensors.numpy.save_file(arrays, path, metadata=metadata)
    refused(path, "stand under 'resnet_twinz'")


def test_a_file_of_an_earlier_version_is_read_and_said(path: Path, arrays):
    metadata = {
        "format_version": 1,
        "tool": "resnet-twins 0.1.0",
        "layout": "OIHW",
        "dtype": "float32, int64",
        "sha256": digest(arrays),
        "config": TINY.to_json(),
        "guessed": [],
    }
    path = path.with_suffix(".safetensors")
    state = parity.load(_saying(path, arrays, metadata))
    assert differing_bits(state, arrays) == {}
    assert state.config == TINY
    assert state.notes == [
        "an earlier version wrote it; what it says of its network is unverified"
    ]


def test_files_of_ours_that_are_verified_have_no_notes(tmp_path: Path):
    for format in ("pth", "pth-legacy", "safetensors"):
        path = tmp_path / "w"
        parity.save(path, random_torch(TINY), format=format, overwrite=True)
        assert parity.load(path).notes == []
