"""What lies beside weights says what is done to photographs, or it is said to not."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import parity
import resnet_spec
from parity.files.preprocessing import (
    for_timm,
    for_transformers,
    of_timm,
    of_transformers,
    preprocessing_of,
)
from parity.images import prepare
from parity.judging.distance import deviation
from parity.judging.tolerances import CEILINGS, UNIT_ROUNDOFF
from parity.weights.digest import differing_bits
from resnet_spec import Preprocessing
from tests.conftest import torchvision  # noqa: F401  before timm
from tests.support.networks import TINY, random_torch

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

CONVNEXT = {
    "crop_pct": 0.875,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ConvNextFeatureExtractor",
    "image_mean": MEAN,
    "image_std": STD,
    "resample": 3,
    "size": 224,
}
"""As it lies beside the published ResNets of transformers."""

BIT = {
    "image_processor_type": "BitImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 2,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.25],
}

HOW = Preprocessing(resize=235, crop=224, interpolation="bicubic", mean=(0.5, 0.5, 0.5))


def _beside(folder: Path, told: Any, name: str = "preprocessor_config.json") -> Path:
    (folder / name).write_text(told if isinstance(told, str) else json.dumps(told))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    parity.save(path, random_torch(TINY), format="huggingface")
    return path


def _done(photo: Path, weights: Any) -> np.ndarray:
    with Image.open(photo) as image:
        return parity.preprocess(image, "resnet18", weights)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (CONVNEXT, Preprocessing(interpolation="bicubic")),
        (
            CONVNEXT
            | {"size": {"shortest_edge": 160}, "crop_pct": 0.95, "resample": 2}
            | {"image_processor_type": "ConvNextImageProcessorFast"},
            Preprocessing(resize=168, crop=160),
        ),
        (BIT, Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.25))),
        (
            BIT | {"size": 232, "crop_size": 200, "image_std": (1, 1, 1)},
            Preprocessing(resize=232, crop=200, mean=(0.5, 0.5, 0.5), std=(1, 1, 1)),
        ),
    ],
)
def test_a_folder_of_transformers_says_what_is_done(
    folder: Path, photo: Path, told: Any, expected: Preprocessing
):
    assert preprocessing_of(folder) is None
    _beside(folder, told)
    with Image.open(photo) as image:
        pixels = prepare(image.convert("RGB"), **vars(expected))
    for weights in (folder, str(folder), folder / "model.safetensors"):
        assert preprocessing_of(weights) == expected
        assert differing_bits({"": _done(photo, weights)}, {"": pixels}) == {}
    assert preprocessing_of(folder / "another.safetensors") is None


@pytest.mark.parametrize(
    "told",
    [
        BIT | {"size": {"height": 224, "width": 224}},
        BIT | {"size": 224, "image_processor_type": "ViTImageProcessor"},
        BIT | {"do_center_crop": False},
        BIT | {"do_rescale": False},
        BIT | {"rescale_factor": 1 / 127.5},
        BIT | {"resample": 0},
        BIT | {"crop_size": {"height": 224, "width": 200}},
        BIT | {"crop_size": {"height": 300, "width": 300}},
        BIT | {"image_std": [0, 1, 1]},
        BIT | {"image_mean": "abc"},
        BIT | {"size": {"shortest_edge": 10**9}},
        BIT | {"size": None},
        {key: value for key, value in BIT.items() if key != "image_mean"},
        CONVNEXT | {"size": 384},
        CONVNEXT | {"crop_pct": 0},
        CONVNEXT | {"do_normalize": False},
        {"image_processor_type": "Other"},
        "[1]",
        "{",
    ],
)
def test_what_is_not_understood_is_said_and_not_guessed(
    folder: Path, photo: Path, told: Any, tmp_path: Path
):
    _beside(folder, told)
    with pytest.raises(parity.CheckpointError) as error:
        _done(photo, folder)
    assert "preprocessor_config.json" in str(error.value)
    assert str(error.value).isprintable()
    assert ". " in str(error.value)
    done = parity.convert(folder, tmp_path / "other", to="huggingface")
    assert any("no preprocessing is written: " in note for note in done.notes)
    assert not (tmp_path / "other" / "preprocessor_config.json").exists()


TIMM = {
    "architecture": "resnet18",
    "num_classes": 7,
    "pretrained_cfg": {
        "input_size": [3, 224, 224],
        "test_input_size": [3, 288, 288],
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "test_crop_pct": 0.95,
        "mean": [0.5, 0.5, 0.5],
        "std": STD,
    },
}


def test_timms_config_says_what_is_done(folder: Path):
    _beside(folder, TIMM, "config.json")
    expected = Preprocessing(
        resize=303, crop=288, interpolation="bicubic", mean=(0.5, 0.5, 0.5)
    )
    assert preprocessing_of(folder) == expected
    flat = {"architecture": "resnet18", **TIMM["pretrained_cfg"]}  # as it once was
    _beside(folder, flat, "config.json")
    assert preprocessing_of(folder) == expected
    _beside(folder, BIT)
    assert preprocessing_of(folder) != expected
    (folder / "preprocessor_config.json").unlink()
    _beside(folder, flat | {"crop_mode": "squash", "test_crop_pct": 1}, "config.json")
    squeezed = preprocessing_of(folder)
    assert squeezed is not None
    assert (squeezed.resize, squeezed.crop) == (None, 288)
    for wrong in (
        {"crop_mode": "squash"},
        {"interpolation": "random"},
        {"test_input_size": [3, 288, 256]},
        {"test_input_size": "abc"},
        {"mean": None},
    ):
        _beside(folder, flat | wrong, "config.json")
        with pytest.raises(parity.CheckpointError, match=r"is not understood \("):
            preprocessing_of(folder)


def test_a_file_that_torchvision_publishes_is_known_by_its_name(tmp_path: Path):
    found = preprocessing_of(tmp_path / "resnet50-11ad3fa6.pth")
    assert found == resnet_spec.get_weights("resnet50", "IMAGENET1K_V2").preprocessing
    assert preprocessing_of(tmp_path / "resnet50.pth") is None


@pytest.mark.parametrize("key", ["id2label", "label_names"])
def test_classes_are_called_as_the_folder_says(
    tmp_path: Path, photo: Path, call: Any, key: str
):
    names = [f"animal {index}" for index in range(7)]
    config = resnet_spec.get_config("resnet18").replace(num_classes=7)
    folder = tmp_path / "folder"
    parity.save(folder, random_torch(config), format="huggingface")
    told = json.loads((folder / "config.json").read_text())
    asked = ("predict", photo, "--model", "resnet18", "--set", "num_classes=7")
    asked = (*asked, "--weights", folder, "--backend", "torch", "--json", "--top", 1)

    def first() -> str:
        return json.loads(call(*asked)[0])["top"]["torch"][0]["class"]

    number = first()
    assert number.startswith("class ")  # LABEL_0 is nothing that anybody said
    del told["id2label"]
    of_both = {"id2label": dict(enumerate(names)), "label_names": names}
    for found, expected in {
        "all": number.replace("class", "animal"),
        "too few": number,
        "no texts": number,
    }.items():
        said: Any = of_both[key]
        if found == "too few":
            said = {"0": "a"} if key == "id2label" else ["a"]
        elif found == "no texts":
            said = dict.fromkeys(said, 1) if key == "id2label" else [1] * 7
        _beside(folder, told | {key: said}, "config.json")
        assert first() == expected


@pytest.mark.parametrize("crop", range(32, 400, 7))
def test_what_is_written_is_what_is_read(crop: int):
    for resize in range(crop, crop + 40):
        how = Preprocessing(resize=resize, crop=crop, interpolation="bicubic")
        assert of_transformers(json.loads(for_transformers(how))) == how
        told = {"architecture": "resnet18", "pretrained_cfg": for_timm(how)}
        assert of_timm(json.loads(json.dumps(told))) == how
        share = for_timm(how)["crop_pct"]
        assert abs(share * resize / crop - 1) <= 4 * UNIT_ROUNDOFF["float64"]


def test_transformers_opens_a_saved_folder_and_does_the_same(
    tmp_path: Path, photo: Path
):
    transformers = pytest.importorskip("transformers")
    path = tmp_path / "folder"
    # What is cut off is even: theirs and torchvision's do not round half a pixel alike.
    how = replace(HOW, resize=236)
    parity.save(path, random_torch(TINY), format="huggingface", preprocessing=how)
    processor = transformers.AutoImageProcessor.from_pretrained(path)
    with Image.open(photo) as image:
        theirs = processor(image.convert("RGB"), return_tensors="np")["pixel_values"]
    ours = _done(photo, path)
    assert theirs.shape == ours.shape == (1, 3, 224, 224)
    levels = (theirs - ours) * np.array(how.std).reshape(3, 1, 1) * 255
    # Theirs resizes without PIL: here and there it rounds to the next of 256 levels.
    off = np.abs(np.rint(levels))
    assert off.max() <= 1
    assert off.mean() < 0.01
    assert np.abs(theirs - _done(photo, None)).mean() > 0.1


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resnet18", {"num_classes": 5}),
        ("resnet18", {"num_classes": 5, "anti_alias": "blur"}),
        ("resnet18", {"num_classes": 5, "in_channels": 1}),
        ("resnet18", {"include_top": False}),
        ("resnet26t", {"num_classes": 5}),
        ("resnetrs50", {"num_classes": 5}),
        pytest.param("resnet50_gn", {"num_classes": 5}, marks=pytest.mark.slow),
    ],
)
def test_timm_opens_a_saved_folder_and_computes_the_same(
    tmp_path: Path, name: str, settings: dict[str, Any]
):
    timm = pytest.importorskip("timm")
    config = resnet_spec.get_config(name).replace(**settings)
    model = random_torch(config).eval()
    path = tmp_path / "folder"
    how = None if config.in_channels == 1 else HOW
    parity.save(path, model, format="timm", preprocessing=how)
    theirs = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    x = torch.randn(1, config.in_channels, 65, 97)
    with torch.no_grad():
        ours = model(x) if config.include_top else model.forward_features(x)
        found = theirs(x) if config.include_top else theirs.forward_features(x)
    if config.anti_alias == "none" and name != "resnet50_gn":
        assert torch.equal(found, ours)
    else:  # blurs and group norms are computed in another order
        limit = CEILINGS["float32"].ceiling
        assert deviation(found.numpy(), ours.numpy()).l2 <= limit
    if how is not None:
        told = timm.data.resolve_model_data_config(theirs)
        assert tuple(told["input_size"]) == (3, HOW.crop, HOW.crop)
        assert math.floor(HOW.crop / told["crop_pct"]) == HOW.resize
        assert (*told["mean"], *told["std"]) == (*HOW.mean, *HOW.std)
        assert preprocessing_of(path) == HOW
    again = parity.create_model(config, weights=path)
    assert differing_bits(parity.state_dict(again), parity.state_dict(model)) == {}
    assert parity.load(path).config == config.as_function()


@pytest.mark.parametrize("name", ["resnet26t", "resnetrs50"])
def test_timm_adapts_the_first_convolution_of_a_saved_folder(tmp_path: Path, name: str):
    timm = pytest.importorskip("timm")
    model = random_torch(resnet_spec.get_config(name).replace(num_classes=5))
    parity.save(tmp_path / "folder", model, format="timm")
    address = f"local-dir:{tmp_path / 'folder'}"
    theirs = timm.create_model(address, pretrained=True, in_chans=1)
    expected = parity.adapt_in_channels(parity.state_dict(model), 1)
    assert differing_bits(parity.state_dict(theirs), expected) == {}


def test_convert_writes_a_folder_for_timm(pth: Path, tmp_path: Path, call: Any):
    folder = tmp_path / "resnet18.mine_in1k"
    call("convert", pth, folder, "--to", "timm")
    names = {"README.md", "config.json", "model.safetensors"}
    assert {path.name for path in folder.iterdir()} == names
    assert differing_bits(parity.load(folder), parity.load(pth)) == {}
    assert "exists. Use --force" in call.error(
        "convert", pth, folder, "--to", "timm", code=3
    )
    call("convert", pth, folder, "--to", "timm", "--force")
    call("convert", pth, tmp_path / "a.pth", "--to", "timm")
    assert (tmp_path / "a.pth").is_file()


def test_what_timm_has_no_name_for_is_refused(tmp_path: Path):
    with pytest.raises(parity.CheckpointError, match=r"timm has no network that is"):
        parity.save(tmp_path / "x", random_torch(TINY), format="timm")
    state = parity.state_dict(random_torch("resnet18"))
    with pytest.raises(parity.CheckpointError, match="whose names are torchvision's"):
        parity.save(tmp_path / "x", state, format="timm", dialect="huggingface")
    assert not (tmp_path / "x").exists()
