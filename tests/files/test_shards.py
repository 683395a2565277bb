"""Weights that lie in several files beside an index."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

import parity
from parity.files.preprocessing import preprocessing_of
from parity.weights.digest import differing_bits
from tests.conftest import torchvision  # noqa: F401  before timm
from tests.support.hub_server import (
    HF,
    REPO,
    Hub,
    refused,
)
from tests.support.networks import TINY, random_torch

pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")


def _in_shards(state: Mapping[str, np.ndarray], parts: int = 3) -> dict[str, bytes]:
    """As ``save_pretrained(max_shard_size=…)`` leaves it."""
    from safetensors.numpy import save

    names = list(state)
    files, places = {}, {}
    for index in range(parts):
        part = f"model-{index + 1:05}-of-{parts:05}.safetensors"
        mine = {name: np.array(state[name], order="C") for name in names[index::parts]}
        files[part] = save(mine, {"format": "pt"})
        places |= dict.fromkeys(mine, part)
    told = {"metadata": {"total_size": 1}, "weight_map": places}
    return files | {"model.safetensors.index.json": json.dumps(told).encode()}


def _put(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_shards_are_one_state_from_the_hub_and_from_a_folder(
    hub: Hub, tmp_path: Path, state: dict[str, np.ndarray]
):
    files = _in_shards(state)
    hub.add(REPO, {**files, "unnamed.safetensors": b"x"})
    assert differing_bits(parity.load(HF), state) == {}
    assert not any("unnamed" in path for path in hub.asked())
    hub.add("owner/deep", {f"a/b/{name}": content for name, content in files.items()})
    deep = parity.load("hf://owner/deep/a/b/model.safetensors.index.json")
    assert differing_bits(deep, state) == {}
    local = _put(tmp_path / "here", files)
    for path in (local, local / "model.safetensors.index.json"):
        assert differing_bits(parity.load(path), state) == {}


def test_shards_of_torch_are_read_too(tmp_path: Path):
    tensors = random_torch(TINY).state_dict()
    names, places = list(tensors), {}
    for index in range(2):
        part = f"pytorch_model-0000{index + 1}-of-00002.bin"
        mine = {name: tensors[name] for name in names[index::2]}
        torch.save(mine, tmp_path / part)
        places |= dict.fromkeys(mine, part)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    found = parity.load(tmp_path)
    expected = {name: tensor.numpy() for name, tensor in tensors.items()}
    assert differing_bits(found, expected) == {}


def test_what_transformers_saves_in_shards_is_read(hub: Hub, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic"
    )
    theirs = transformers.ResNetForImageClassification(config)
    for parameter in theirs.parameters():
        parameter.data.normal_()
    folder = tmp_path / "theirs"
    theirs.save_pretrained(folder, max_shard_size="20KB")
    transformers.ConvNextImageProcessor(size={"shortest_edge": 64}).save_pretrained(
        folder
    )
    assert len([*folder.glob("model-*.safetensors")]) > 1
    hub.add(REPO, folder)
    state = parity.load(HF)
    assert state.dialect == "huggingface"
    assert differing_bits(state, parity.load(folder)) == {}
    head = theirs.classifier[1].weight.detach().numpy()
    assert differing_bits({"": state["fc.weight"]}, {"": head}) == {}
    assert preprocessing_of(HF) == preprocessing_of(folder)
    assert preprocessing_of(HF).crop == 64  # type: ignore[union-attr]


def test_what_timm_saves_for_the_hub_is_read(hub: Hub, tmp_path: Path):
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("resnet18", num_classes=3)
    folder = tmp_path / "theirs"
    labels = {"label_names": ["cat", "dog", "eel"]}
    timm.models.save_for_hf(theirs, folder, model_config=labels)
    hub.add(REPO, folder)
    state = parity.load(HF)
    expected = {name: t.numpy() for name, t in theirs.state_dict().items()}
    assert differing_bits(state, expected) == {}
    assert state.labels == ("cat", "dog", "eel")
    said = timm.data.resolve_data_config({}, model=theirs, use_test_size=True)
    found = preprocessing_of(HF)
    assert found is not None
    assert found.crop == said["input_size"][1]
    assert found.resize == int(found.crop / said["crop_pct"])
    assert (found.mean, found.std) == (said["mean"], said["std"])
    model = parity.create_model("resnet18", weights=HF)
    assert model.config.num_classes == 3


FIRST = "model-00001-of-00003.safetensors"
INDEX = "model.safetensors.index.json"


def _broken(files: dict[str, bytes], how: str) -> None:
    from safetensors.numpy import load, save

    told = json.loads(files[INDEX])
    places = told["weight_map"]
    name = next(iter(places))
    if how == "missing":
        del files[FIRST]
    elif how == "cut":
        files[FIRST] = files[FIRST][:-10]
    elif how == "lacks":
        places["layer9.weight"] = FIRST
    elif how == "twice":
        second = "model-00002-of-00003.safetensors"
        both = load(files[second]) | {name: load(files[FIRST])[name]}
        files[second] = save(both)
    elif how == "unlisted":
        del places[name]
    elif how == "empty":
        told = {"weight_map": {}}
    elif how == "text":
        told = []
    else:
        places[name] = how
    files[INDEX] = json.dumps(told).encode()
    if how == "repeated":
        files[INDEX] = b'{"weight_map": {"a": "x.bin", "a": "y.bin"}}'


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing", f"names {FIRST}, which is not beside it. Get that file, too"),
        ("cut", "was cut short"),
        ("lacks", f"{FIRST} lacks: layer9.weight. Get the index and all of"),
        ("twice", "00002-of-00003.safetensors has, and the index puts elsewhere: "),
        ("unlisted", f"{FIRST} has, and the index has not: "),
        ("empty", "it has no weight_map"),
        ("text", "it has no weight_map"),
        ("repeated", "it has 'a' twice"),
        ("../secret.safetensors", "names '../secret.safetensors', which is no file be"),
        ("/etc/passwd", "names '/etc/passwd', which is no file beside it"),
        ("..\\x.safetensors", "which is no file beside it"),
        ("sub/x.safetensors", "which is no file beside it"),
        ("code.py", "which is no file beside it"),
        ("\u202ex.safetensors", "which is no file beside it"),
    ],
)
def test_an_index_that_is_wrong_is_one_line(
    tmp_path: Path, state: dict[str, np.ndarray], how: str, said: str
):
    files = _in_shards(state)
    (tmp_path / "secret.safetensors").write_bytes(files[FIRST])
    _broken(files, how)
    with pytest.raises(parity.CheckpointError) as error:
        parity.load(_put(tmp_path / "here", files))
    assert said in str(error.value)
    assert str(error.value).isprintable()
    assert re.search(r"\. [A-Z]", str(error.value))


def test_an_index_of_the_hub_fetches_nothing_from_elsewhere(
    hub: Hub, state: dict[str, np.ndarray]
):
    files = _in_shards(state)
    _broken(files, "../../api/secret.safetensors")
    hub.add(REPO, files)
    with pytest.raises(parity.CheckpointError, match="which is no file beside it"):
        parity.load(HF)
    assert not any("secret" in path for path in hub.requests)
    files = _in_shards(state)
    _broken(files, "missing")
    hub.add("owner/other", files)
    assert f"no {FIRST}, which its index names" in refused("hf://owner/other")


def test_shards_are_found_in_the_cache_too(
    hub: Hub, state: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
):
    hub.add(REPO, _in_shards(state))
    parity.load(HF)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert differing_bits(parity.load(HF), state) == {}
