"""Networks of timm's that are not as their name says, and how far apart maps may be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import _hub as timms

import parity
import resnet_spec
from parity.judging.distance import deviation
from parity.judging.tolerances import G1_FORWARD
from parity.weights.digest import differing_bits
from resnet_spec import get_config
from tests.support.networks import TINY, random_torch


def _folder(path: Path, name: str = "resnet18", **arguments: Any) -> Path:
    """Weights as timm writes them, with what the network was given."""
    path.mkdir()
    config = get_config("resnet18").replace(num_classes=3, widths=(8,) * 4)
    save_file(random_torch(config).state_dict(), path / "model.safetensors")
    told = {"architecture": name, "num_classes": 3, "model_args": arguments}
    (path / "config.json").write_text(json.dumps(told))
    return path


@pytest.mark.parametrize(
    "arguments",
    [
        {"output_stride": 8},
        {"output_stride": 16, "drop_path_rate": 0.25, "drop_block_rate": 0.125},
        {"in_chans": 1, "num_classes": 4, "act_layer": "relu", "zero_init_last": False},
        {"stem_type": "deep", "stem_width": 16, "avg_down": True, "global_pool": "avg"},
    ],
)
def test_what_timm_writes_of_a_network_is_the_network(
    tmp_path: Path, arguments: dict[str, Any]
):
    torch.manual_seed(0)
    how: dict[str, Any] = {"channels": [8, 8, 16, 16], "num_classes": 3} | arguments
    theirs: Any = timm.create_model("resnet18", **how).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-1, 1)
    more: Any = {"model_args": how}  # timm itself leaves out what is dropped
    timms.save_for_hf(theirs, str(tmp_path), model_config=more)
    told = json.loads((tmp_path / "config.json").read_text())["model_args"]
    assert how == {name: told[name] for name in how}
    state = parity.load(tmp_path)
    config = state.config
    assert config is not None
    assert config.in_channels == arguments.get("in_chans", 3)
    assert config.num_classes == how["num_classes"]
    assert config.output_stride == arguments.get("output_stride", 32)
    for field in ("drop_path_rate", "drop_block_rate"):
        assert getattr(config, field) == arguments.get(field, 0)
    model = parity.create_model(config, weights=tmp_path).double()
    x = torch.randn(2, config.in_channels, 70, 97, dtype=torch.float64)
    with torch.no_grad():
        found, expected = model(x), theirs.double()(x)
    assert deviation(found.numpy(), expected.numpy()).l2 <= G1_FORWARD


@pytest.mark.parametrize(
    ("layer", "setting"), [("avg", "average"), ("blur", "blur"), (None, "none")]
)
def test_an_anti_aliasing_by_name_is_taken(tmp_path: Path, layer: Any, setting: str):
    state = parity.load(_folder(tmp_path / "w", aa_layer=layer))
    assert state.config is not None
    assert state.config.anti_alias == setting
    assert any(f"anti_alias={setting!r}" in note for note in state.notes)


@pytest.mark.parametrize(
    "arguments",
    [
        {"act_layer": "silu"},
        {"aa_layer": "blurpc"},
        {"global_pool": "catavgmax"},
        {"norm_layer": "layernorm2d"},
        {"block_args": {"attn_layer": "ceca"}},
        {"block_args": ["se"]},
        {"output_stride": "8"},
        {"drop_path_rate": float("nan")},
        {"drop_block_rate": 10**40},
        {"img_size": 224},
        {"img\nsize": "a\x1b" * 99},
    ],
)
def test_an_argument_that_no_network_here_has_is_refused_by_its_name(
    tmp_path: Path, arguments: dict[str, Any]
):
    path = _folder(tmp_path / "w", **arguments)
    with pytest.raises(parity.CheckpointError) as error:
        parity.load(path)
    (key,) = arguments
    said = str(error.value)
    assert f"config.json says {key.split(chr(10))[0]}" in said
    assert said.endswith(
        "in its model_args, which no network here has. Use it with timm"
    )
    assert said.isprintable()
    assert len(said) < 300


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"output_stride": 7}, r"output_stride=7.*not for \(.*4 or 8 or 16 or 32"),
        ({"drop_path_rate": 2}, "drop_path_rate=2, which its weights are not for"),
    ],
)
def test_values_that_no_network_has_are_refused(
    tmp_path: Path, arguments: dict[str, Any], what: str
):
    with pytest.raises(parity.CheckpointError, match=what):
        parity.load(_folder(tmp_path / "w", **arguments))


def test_what_is_no_object_is_refused_and_dropout_said(tmp_path: Path):
    path = _folder(tmp_path / "w", drop_rate=0.5)
    assert (
        "config.json says drop_rate=0.5; no head here drops" in parity.load(path).notes
    )
    (path / "config.json").write_text('{"architecture": "resnet18", "model_args": []}')
    with pytest.raises(parity.CheckpointError, match="model_args of config"):
        parity.load(path)


def test_of_networks_of_others_nothing_is_asked(tmp_path: Path):
    state = parity.load(_folder(tmp_path / "w", "resnet18_of_mine", img_size=224))
    assert not any("config.json" in note for note in state.notes)


# --- output_stride --------------------------------------------------------------------


@pytest.mark.parametrize("framework", ["torch", "flax"])
def test_weights_fit_whatever_the_output_stride(tmp_path: Path, framework: Any):
    others, own = tmp_path / "w.pth", tmp_path / "own.safetensors"
    model = random_torch(TINY)
    torch.save(model.state_dict(), others)
    dilated = TINY.replace(output_stride=4)
    parity.save(own, random_torch(dilated))
    cases: Any = (
        (others, {"output_stride": 4}),
        (others, {"replace_stride_with_dilation": (True,)}),
        (own, {"output_stride": 4}),
        (own, {"output_stride": 8}),
        (own, {"replace_stride_with_dilation": None, "num_classes": 7}),
    )
    for path, asked in cases:
        made = parity.create_model(TINY, framework, path, **asked)
        assert made.config == TINY.replace(**asked)
        assert differing_bits(parity.state_dict(made), parity.load(path)) == {}
    with pytest.raises(parity.CheckpointError, match="its metadata says"):
        parity.create_model(TINY, framework, own)  # nobody asked for another stride
    with pytest.raises(parity.CheckpointError, match="its metadata says"):
        parity.create_model("resnet18", framework, own, output_stride=8)
    with pytest.raises(ValueError, match="output_stride"):
        parity.create_model(TINY, framework, own, output_stride=5)


def test_published_weights_are_those_of_a_dilated_network_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    from parity.files import sources

    config = get_config("resnet18").replace(output_stride=8)
    path = tmp_path / "w.pth"
    torch.save(random_torch(config).state_dict(), path)
    asked = []

    def download(published: Any, **_: Any) -> Path:
        asked.append(published.name)
        return path

    monkeypatch.setattr(sources, "download", download)
    model = parity.create_model("resnet18", weights="DEFAULT", output_stride=8)
    assert model.config == config
    assert parity.create_model(config, weights="IMAGENET1K_V1").config == config
    assert asked == ["IMAGENET1K_V1"] * 2
    name = resnet_spec.list_timm_weights("resnet18")[0]
    monkeypatch.setattr(sources, "load_selected", lambda *_, **__: parity.load(path))
    assert parity.create_model(config, weights=name).config == config
