"""A network with weights, in one call: as people ask for it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

import parity
import resnet_spec
from parity.weights.digest import differing_bits
from resnet_spec import ResNetConfig
from tests.conftest import torchvision
from tests.support.networks import TINY, random_torch

FRAMEWORKS = ["torch", "flax"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network's weights, as torch saves them: nothing says what they are."""
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(random_torch(TINY).state_dict(), path)
    return path


def state_of(path: Path) -> dict[str, np.ndarray]:
    return {name: t.numpy() for name, t in torch.load(path, weights_only=True).items()}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_file_gives_a_twin_in_evaluation_mode_with_its_values(
    framework: Any, file: Path
):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = parity.create_model(TINY, framework, file)
    assert differing_bits(parity.state_dict(model), state_of(file)) == {}
    mode = model.training if framework == "torch" else not model.bn1.use_running_average
    assert not mode


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_file_says_how_many_classes_and_channels_there_are(
    framework: Any, tmp_path: Path
):
    config = TINY.replace(num_classes=3, in_channels=1)
    path = tmp_path / "other.safetensors"
    parity.save(path, parity.state_dict(random_torch(config)))
    model = parity.create_model(TINY.replace(num_classes=1000), framework, path)
    assert model.config == config


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_another_head_is_new_and_random_and_said(framework: Any, file: Path):
    with pytest.warns(
        parity.TransferWarning, match="tiny.pth: fc.weight, fc.bias are new"
    ):
        model = parity.create_model(TINY, framework, file, num_classes=3, seed=1)
    found, theirs = parity.state_dict(model), state_of(file)
    assert found["fc.weight"].shape == (3, 16)
    assert 0 < np.abs(found["fc.weight"]).max() <= 16**-0.5
    del found["fc.weight"], found["fc.bias"], theirs["fc.weight"], theirs["fc.bias"]
    assert differing_bits(found, theirs) == {}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_other_channels_give_what_gray_gave_as_rgb(framework: Any, file: Path):
    with pytest.warns(parity.TransferWarning, match="adapted from 3 to 1 channels"):
        gray = parity.create_model(TINY, framework, file, in_channels=1)
    expected = parity.adapt_in_channels(state_of(file), 1)
    assert differing_bits(parity.state_dict(gray), expected) == {}


def test_without_a_top_the_head_is_left_out_and_nothing_is_new(file: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        body = parity.create_model(TINY, weights=file, include_top=False)
    assert "fc.weight" not in parity.state_dict(body)
    assert "layer2.1.bn2.weight" in parity.state_dict(body)


def test_a_file_without_a_head_gets_a_new_one_where_asked(tmp_path: Path):
    body = random_torch(TINY.replace(include_top=False))
    path = tmp_path / "body.pth"
    torch.save(body.state_dict(), path)
    assert "fc.weight" not in parity.state_dict(parity.create_model(TINY, weights=path))
    with pytest.warns(parity.TransferWarning, match="fc.weight, fc.bias are new"):
        whole = parity.create_model(TINY, weights=path, include_top=True, num_classes=5)
    assert whole.config.num_classes == 5


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_without_weights_it_is_as_training_starts_and_the_seed_decides(framework: Any):
    first, again, other = (
        parity.state_dict(parity.create_model(TINY, framework, seed=seed))
        for seed in (1, 1, 2)
    )
    assert differing_bits(first, again) == {}
    assert "conv1.weight" in differing_bits(first, other)
    assert (first["bn1.weight"] == 1).all()
    model = parity.create_model(TINY, framework)
    mode = model.training if framework == "torch" else not model.bn1.use_running_average
    assert mode


def test_both_frameworks_have_the_same_random_weights():
    states = [
        parity.state_dict(parity.create_model(TINY, "torch", "random", seed=3)),
        parity.state_dict(parity.create_model(TINY, "flax", "random", seed=3)),
    ]
    assert differing_bits(*states) == {}


def test_what_is_wrong_is_said_before_anything_is_made(file: Path):
    wrong: Any = "keras"
    with pytest.raises(ValueError, match="framework is 'keras'; it must be"):
        parity.create_model(TINY, wrong)
    with pytest.raises(ValueError, match="no published weights 'IMAGENET1K_V9'"):
        parity.create_model("resnet50", weights="IMAGENET1K_V9")
    with pytest.raises(parity.CheckpointError, match=r"tiny\.pth"):
        parity.create_model("resnet50", weights=file)
    with pytest.raises(parity.CheckpointError, match=r"none\.pth: no such file"):
        parity.create_model("resnet50", weights=file.with_name("none.pth"))


@pytest.mark.parametrize("name", ["IMAGENET1K_V1", "IMAGENET1K_V2"])
def test_preprocessing_is_that_of_the_weights_in_every_form(name: str, photo: Path):
    theirs = torchvision.models.get_weight(f"ResNet50_Weights.{name}").transforms()
    with Image.open(photo) as image:
        expected = theirs(image.convert("RGB"))[None].numpy()
        opened = parity.preprocess(image, "resnet50", name)
    found = {
        "path": parity.preprocess(photo, "resnet50", name),
        "image": opened,
        "torch": parity.preprocess(photo, weights=name, framework="torch").numpy(),
        "flax": np.asarray(
            parity.preprocess(photo, weights=name, framework="flax")
        ).transpose(0, 3, 1, 2),
    }
    for form, pixels in found.items():
        assert differing_bits({form: pixels}, {form: expected}) == {}


def test_preprocessing_refuses_what_takes_no_photographs(photo: Path):
    with pytest.raises(ValueError, match="takes no such image"):
        parity.preprocess(photo, "resnet18_1d", None)
    wrong: Any = "keras"
    with pytest.raises(ValueError, match="framework is 'keras'"):
        parity.preprocess(photo, framework=wrong)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_five_lines_lead_from_a_photograph_to_classes(framework: Any, photo: Path):
    model = parity.create_model("resnet18", framework, weights="random")
    x = parity.preprocess(photo, "resnet18", framework=framework)
    scores = model(x)
    best = scores[0].argsort(descending=True)[:5].tolist()
    names = [resnet_spec.class_names()[i] for i in best]
    assert len(set(names)) == 5
    assert isinstance(scores, torch.Tensor if framework == "torch" else jnp.ndarray)


def test_a_configuration_that_a_file_was_not_written_for_is_refused(tmp_path: Path):
    path = tmp_path / "v1.safetensors"
    config = ResNetConfig(
        block="bottleneck", layers=(1, 1), widths=(4, 8), stride_on="1x1"
    )
    parity.save(path, random_torch(config))
    with pytest.raises(parity.CheckpointError, match="its metadata says"):
        parity.create_model(config.replace(stride_on="3x3"), weights=path)
