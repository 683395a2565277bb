"""timm's checkpoints by name, and folders of ours on the Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import parity
import resnet_spec
from parity.images import prepare
from parity.judging.distance import deviation
from parity.judging.tolerances import CEILINGS
from parity.weights.digest import differing_bits
from tests.conftest import torchvision  # noqa: F401  before timm
from tests.support.command import Called
from tests.support.hub_server import (
    HOW,
    Hub,
)
from tests.support.networks import TINY, random_torch

pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")

import huggingface_hub
from huggingface_hub import HfApi, constants

TIMM = "timm:resnet18.a1_in1k"


@pytest.fixture(scope="session")
def timms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What timm's own writer for the Hub makes, without what it says about photographs.

    So that these can only come from the table.
    """
    from safetensors.torch import save

    tensors = random_torch("resnet18").state_dict()
    told = {"architecture": "resnet18", "num_classes": 1000}
    weights = save({name: t.contiguous() for name, t in tensors.items()})
    return {"model.safetensors": weights, "config.json": json.dumps(told).encode()}


def test_a_name_of_timms_is_found_on_the_hub(
    hub: Hub, timms: Mapping[str, bytes], photo: Path, call: Called
):
    hub.add("timm/resnet18.a1_in1k", timms)
    model = parity.create_model("resnet18", weights=TIMM)
    images = parity.preprocess(photo, "resnet18", TIMM, framework="torch")
    assert images.shape == (1, 3, 288, 288)
    out, err = call(
        "predict", photo, "--model", "resnet18", "--weights", TIMM, "--json"
    )
    told = json.loads(out)
    assert told["weights"] == TIMM
    assert err.splitlines() == [
        f"note: {TIMM}: config.json beside it says anti_alias='none', stride_on='3x3'"
    ]
    best = resnet_spec.class_names()[int(model(images)[0].argmax())]
    for framework in ("torch", "flax"):
        assert told["top"][framework][0]["class"] == best
    small = parity.preprocess(photo, "resnet18", framework="torch")
    probability = model(small)[0].softmax(0).max().item()
    assert abs(told["top"]["torch"][0]["probability"] - probability) > 1e-4


def test_timms_weights_are_for_their_network_only(hub: Hub, call: Called, photo: Path):
    said = r"is for resnet18, not resnet34"
    for arguments in (
        ("check", "resnet34", "--weights", TIMM),
        ("predict", photo, "--model", "resnet34", "--weights", TIMM),
    ):
        assert re.search(said, call.error(*arguments))
    line = call.error("check", "resnet18", "--weights", "timm:resnet18.a1_in2k")
    assert "did you mean 'timm:resnet18.a1_in1k'" in line
    line = call.error("convert", "timm:ecaresnet50d_pruned.miil_in1k", "x.pth")
    assert "is for ecaresnet50d_pruned, which is none of the networks" in line
    assert hub.requests == []


def test_timms_checkpoint_becomes_a_folder_of_transformers_with_its_preprocessing(
    hub: Hub, timms: Mapping[str, bytes], tmp_path: Path
):
    hub.add("timm/resnet18.a1_in1k", timms)
    parity.convert(TIMM, tmp_path / "hf", to="huggingface")
    told = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    assert told["crop_size"] == {"height": 288, "width": 288}
    assert parity.load(tmp_path / "hf").metadata["source"]["name"] == TIMM


@pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # of theirs
@pytest.mark.parametrize("top", [True, False])
@pytest.mark.parametrize("form", ["huggingface", "timm"])
def test_what_a_card_shows_works_once_it_is_on_the_hub(
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: Any,
    top: bool,
):
    pytest.importorskip("transformers" if form == "huggingface" else "timm")
    model = random_torch(resnet_spec.get_config("resnet18").replace(include_top=top))
    folder = tmp_path / "saved"
    parity.save(folder, model, format=form)
    name = f"me/{form}-{top}"  # transformers remembers a name's commit
    hub.add(name, folder)
    # What the library has read from the environment before.
    theirs = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{repo_id}")[0]
    path = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(theirs)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + path)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    card = (folder / "README.md").read_text()
    shown = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    x = torch.ones(1, 3, 64, 64)
    results = []
    for code in shown:
        names: dict[str, Any] = {}
        exec(code.replace("OWNER/NAME", name), names)
        with torch.no_grad():
            found = names["model"].eval()(x)
        if not isinstance(found, torch.Tensor):
            found = found.logits if top else found.pooler_output
        results.append(_pooled(found))
    assert len(results) == 2
    with torch.no_grad():
        expected = _pooled(model.eval()(x))
    for found in results:
        limit = CEILINGS["float32"].ceiling
        assert deviation(found.numpy(), expected.numpy()).l2 <= limit


def _pooled(found: torch.Tensor) -> torch.Tensor:
    """Logits as they are; maps, which libraries pool or not, as their means."""
    return found if found.ndim == 2 else found.mean((2, 3))


@pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # of theirs
@pytest.mark.parametrize("form", ["huggingface", "timm"])
def test_a_saved_folder_is_uploaded_and_comes_back(
    hub: Hub, tmp_path: Path, photo: Path, form: Any
):
    config = TINY if form == "huggingface" else resnet_spec.get_config("resnet18")
    model = random_torch(config)
    folder = tmp_path / "saved"
    parity.save(folder, model, format=form, preprocessing=HOW)
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo("me/mine")
    huggingface_hub.utils.disable_progress_bars()
    try:
        api.upload_folder(repo_id="me/mine", folder_path=folder)
    finally:
        huggingface_hub.utils.enable_progress_bars()
    assert set(hub.repositories["me/mine"].revisions["main"]) == {
        path.name for path in folder.iterdir()
    }
    again = parity.create_model(config, weights="hf://me/mine")
    assert differing_bits(parity.state_dict(again), parity.state_dict(model)) == {}
    with Image.open(photo) as image:
        found = parity.preprocess(image, config, "hf://me/mine")
        expected = prepare(image.convert("RGB"), **vars(HOW))
    assert differing_bits({"": found}, {"": expected}) == {}
    (text,) = {*hub.cards}
    card = huggingface_hub.ModelCard(text)
    told = card.data.to_dict()
    assert told["library_name"] == {"huggingface": "transformers"}.get(form, form)
    assert told["pipeline_tag"] == "image-classification"
    assert "license" not in told


def test_a_wrong_token_uploads_nothing(hub: Hub, folder: Path):
    api = HfApi(endpoint=hub.url, token="hf_wrong")
    hub.add("me/mine", {})
    with pytest.raises(huggingface_hub.errors.HfHubHTTPError):
        api.upload_folder(repo_id="me/mine", folder_path=folder)
    assert hub.repositories["me/mine"].revisions["main"] == {}
