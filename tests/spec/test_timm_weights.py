"""The table of timm's checkpoints against timm's own, row by row."""

from __future__ import annotations

from math import floor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import parity
import resnet_spec
from parity.weights.digest import differing_bits
from resnet_spec import get_config, get_timm_weights
from resnet_spec.timm_weights import _TAGS, TimmWeights, timm_name
from tests.conftest import torchvision  # noqa: F401  before timm

timm = pytest.importorskip("timm", reason="timm is not installed")

NAMES = [f"{model}.{tag}" for model, tags in _TAGS.items() for tag in tags.split()]


def _theirs(name: str) -> dict[str, Any]:
    found = timm.get_pretrained_cfg(name)
    assert found is not None, f"timm has no {name}"
    config = timm.data.resolve_data_config(
        {}, pretrained_cfg=found.to_dict(), use_test_size=True
    )
    beside = {"num_classes": found.num_classes, "hub": found.hf_hub_id}
    return config | beside | {"architecture": found.architecture}


def test_every_checkpoint_of_timms_modules_is_in_the_table():
    found = [
        name
        for module in ("resnet", "resnest")
        for name in timm.list_models(module=module, pretrained=True)
    ]
    assert sorted(NAMES) == sorted(found)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_what_timm_says(name: str):
    model, _, tag = name.partition(".")
    ours, theirs = TimmWeights(model=model, tag=tag), _theirs(name)
    how = ours.preprocessing
    assert theirs["crop_mode"] == "center"
    assert (3, how.crop, how.crop) == theirs["input_size"]
    assert how.resize == floor(how.crop / theirs["crop_pct"])
    assert how.interpolation == theirs["interpolation"]
    assert (how.mean, how.std) == (theirs["mean"], theirs["std"])
    assert ours.num_classes == theirs["num_classes"]
    assert ours.repository == theirs["hub"]
    assert ours.model == theirs["architecture"]


KINDS = {
    TimmWeights(model=model, tag=tag).preprocessing: f"timm:{model}.{tag}"
    for model in resnet_spec.list_models()
    for tag in _TAGS.get(model, "").split()
}


@pytest.mark.parametrize("name", KINDS.values())
@pytest.mark.parametrize("size", [(512, 600), (333, 500), (301, 290)])
def test_a_photograph_is_timms_bit_for_bit(photo: Path, name: str, size: Any):
    theirs = _theirs(name.removeprefix("timm:"))
    for key in ("num_classes", "hub", "architecture"):
        del theirs[key]
    transform = timm.data.create_transform(**theirs, is_training=False)
    with Image.open(photo) as opened:
        image = opened.convert("RGB").resize(size)
    expected = transform(image)[None].numpy()
    ours = parity.preprocess(image, name.partition(":")[2].partition(".")[0], name)
    assert differing_bits({"": ours}, {"": expected}) == {}
    plain = parity.preprocess(image, weights=None)
    if name not in ("timm:resnet18.tv_in1k", KINDS.get(resnet_spec.Preprocessing())):
        assert plain.shape != ours.shape or np.abs(plain - ours).max() > 0.01


def test_the_networks_that_are_here_have_their_weights_listed():
    for model in resnet_spec.list_models():
        names = resnet_spec.list_timm_weights(model)
        assert bool(names) == (model in _TAGS)
        for name in names:
            found = get_timm_weights(name, model)
            assert (found.name, found.model) == (name, model)
    listed = resnet_spec.list_timm_weights("resnet50")
    assert len(listed) == 19
    assert "timm:resnet50.a1_in1k" in listed


def test_timms_name_of_a_network_is_found_whatever_its_ends():
    config = get_config("resnet50").replace(num_classes=3, in_channels=1)
    assert timm_name(config) == "resnet50"
    assert timm_name(config.replace(anti_alias="blur")) == "resnetblur50"
    assert timm_name(get_config("resnet50d")) == "resnet50d"
    assert timm_name(get_config("resnet50_v1")) is None
    assert timm_name(get_config("cifar_resnet20")) is None


def test_anti_aliased_weights_are_for_anti_aliased_networks():
    name = "timm:resnetblur50.bt_in1k"
    blurred = get_config("resnet50").replace(anti_alias="blur")
    assert get_timm_weights(name, blurred).model == "resnetblur50"
    with pytest.raises(ValueError, match="is for resnetblur50, not"):
        get_timm_weights(name, "resnet50")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm:resnet50.a1_in2k", r"did you mean 'timm:resnet50\.a1_in1k'.* are a1_in"),
        ("timm:resnet5O.a1_in1k", r"did you mean 'timm:resnet50\.a1_in1k'"),
        ("timm:resnet50", "the tags of resnet50 are a1_in1k, a1h_in1k"),
        ("timm:", "no weights 'timm:'"),
        ("timm:nothing.at_all", "`resnet-twins list` has those"),
        ("timm:seresnet50.a1_in1k", "is for seresnet50, not resnet50"),
        ("timm:resnet18.a1_in1k", "is for resnet18, not resnet50; make that network"),
    ],
)
def test_a_name_that_is_none_is_one_line(name: str, said: str):
    with pytest.raises(ValueError, match=said) as error:
        get_timm_weights(name, "resnet50")
    assert str(error.value).isprintable()
    with pytest.raises(ValueError, match=said):
        parity.create_model("resnet50", weights=name)
    with pytest.raises(ValueError, match=said):
        parity.preprocess(Image.new("RGB", (300, 300)), "resnet50", name)


def test_a_preprocessing_that_no_photograph_has_is_refused():
    every: tuple[dict[str, Any], ...] = (
        {"crop": 300},
        {"crop": 0},
        {"resize": 10**9},
        {"crop": 224.0},
        {"interpolation": "nearest"},
        {"std": (0.0, 1.0, 1.0)},
        {"mean": (0.5,)},
        {"mean": (float("nan"),) * 3},
    )
    for wrong in every:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            resnet_spec.Preprocessing(**wrong)
