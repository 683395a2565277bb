"""Networks whose layers are numbered: a row of another network's children."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

import parity
from parity.weights.twins import abstract_torch
from resnet_spec import get_config


def body(model: nn.Module, *, last: int) -> nn.Module:
    """A network as fastai and Lightly cut it, with values of its own everywhere."""
    torch.manual_seed(7)
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 1:
            low = 0.5 if name.endswith(("weight", "var")) else -0.5
            tensor.uniform_(low, low + 1)
    return nn.Sequential(*list(model.children())[:last])


def whole(kind: str, name: str = "resnet18") -> Any:
    models: Any = torchvision.models
    model = models.resnet18() if name == "resnet18" else timm.create_model(name)
    if kind == "fastai":
        end: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(body(model, last=-2), nn.Sequential(*end, _head()))
    return nn.ModuleDict({"backbone": body(model, last=-1)})


def _head() -> nn.Linear:
    return nn.Linear(512, 7)


def logits(model: Any, kind: str, head: nn.Linear, images: torch.Tensor) -> np.ndarray:
    model.double().eval()
    with torch.no_grad():
        if kind == "fastai":
            return model(images).numpy()
        return head.double()(model["backbone"](images).flatten(1)).numpy()


@pytest.mark.parametrize(
    ("kind", "name"),
    [("fastai", "resnet18"), ("lightly", "resnet18"), ("fastai", "resnet18d")],
)
def test_what_a_row_computes_the_twin_computes(tmp_path: Path, kind: str, name: str):
    model = whole(kind, name)
    path, out = tmp_path / "theirs.pth", tmp_path / "back.pth"
    torch.save(model.state_dict(), path)
    ignore = ()
    head = model[1][-1] if kind == "fastai" else _head()
    if kind == "fastai":
        with pytest.raises(parity.CheckpointError, match=r"--ignore '1\*'$"):
            parity.load(path)
        ignore = ("1*",)
    found = parity.load(path, ignore=ignore)
    assert found.dialect == "sequential"
    assert found.config == get_config(name).replace(include_top=False)

    parity.convert(path, out, ignore=ignore, to="sequential")
    part: Any = model[0] if kind == "fastai" else model["backbone"]
    back = torch.load(out, weights_only=True)
    before = {key: tensor.clone() for key, tensor in part.state_dict().items()}
    part.load_state_dict({key: torch.zeros_like(t) for key, t in before.items()})
    part.load_state_dict(back, strict=True)
    assert all(torch.equal(part.state_dict()[key], before[key]) for key in before)

    state = dict(found)
    for leaf, value in (("weight", head.weight), ("bias", head.bias)):
        state[f"fc.{leaf}"] = value.detach().numpy().copy()
    config = get_config(name).replace(num_classes=7)
    twin = abstract_torch(config, param_dtype="float64")
    parity.load_state_dict(twin, parity.cast(state, "float64"))
    twin.eval()
    for size in ((64, 96), (65, 97)):
        images = torch.randn(2, 3, *size, dtype=torch.float64)
        theirs = logits(model, kind, head, images)
        with torch.no_grad():
            ours = twin(images).numpy()
        assert np.linalg.norm(ours - theirs) <= 1e-12 * np.linalg.norm(theirs)


def test_a_part_of_the_row_is_none(tmp_path: Path):
    path = tmp_path / "theirs.pth"
    state = whole("lightly").state_dict()
    del state["backbone.5.0.downsample.1.running_mean"]
    torch.save(state, path)
    with pytest.raises(parity.CheckpointError, match="no network known here"):
        parity.convert(path, tmp_path / "out.pth")


def test_a_row_has_no_head(tmp_path: Path):
    model: Any = torchvision.models.resnet18()
    with pytest.raises(parity.CheckpointError, match="include_top is True, there Fal"):
        parity.save(tmp_path / "a.pth", model.state_dict(), dialect="sequential")
