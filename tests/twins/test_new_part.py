"""The page on a new part is true: what it shows is a part of both twins."""

from __future__ import annotations

import re
from typing import Any

import jax
import pytest
import torch

import parity
import resnet_flax.attention
import resnet_spec.attention
import resnet_spec.config
import resnet_torch.attention
from parity.judging.distance import deviation
from parity.judging.tolerances import G1_FORWARD
from parity.weights.identify import identify
from tests.support.networks import TINY, flax_like, images, random_torch, run_flax
from tests.support.pages import ROOT
from tests.twins.test_mirror import ALLOWED

PAGE = (ROOT / "docs" / "new-part.md").read_text("utf-8")


def _made(module: Any, text: str) -> Any:
    """The class that a text defines, as if it stood in a module."""
    names = dict(vars(module))
    exec(text, names)
    return names["EffectiveSqueezeExcite"]


def test_the_attention_of_the_page_is_one_in_both_twins(
    monkeypatch: pytest.MonkeyPatch,
):
    match = re.search(r"```python\n(.*?)\n *```", PAGE, re.DOTALL)
    assert match
    text = re.sub(r"^   ", "", match[1], flags=re.MULTILINE)
    assert len([line for line in text.splitlines() if line]) + 1 <= 15
    name, layers = re.findall(r'`"(\w+)": \("(\w+)",\),`', PAGE)[0]
    others = text
    for ours, theirs in ALLOWED.items():
        others = re.sub(rf"\b{re.escape(ours)}\b", theirs, others)
    for module, code in ((resnet_torch, text), (resnet_flax, others)):
        kind = _made(module.attention, code)
        monkeypatch.setitem(module.attention.KINDS, name, kind)
    table: Any = resnet_spec.attention.ATTENTION
    monkeypatch.setitem(table, name, (layers,))
    choices: Any = resnet_spec.config._CHOICES
    monkeypatch.setitem(choices, "attention", ("none", *table))

    config = TINY.replace(attention=name)
    model = random_torch(config).double().eval()
    shapes = {key: entry.shape for key, entry in parity.entries(model).items()}
    assert f"layer1.0.se.{layers}.weight" in shapes
    assert identify(shapes) == config
    x = images(config, 40, 33)
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).numpy()
        plain = random_torch(TINY).double().eval()(torch.from_numpy(x)).numpy()
    with jax.enable_x64(True):
        twin = flax_like(model, "float64")
        twin.eval()
        found, _ = run_flax(twin, x)
    assert deviation(found, expected).l2 <= G1_FORWARD
    assert deviation(plain, expected).l2 > 1e-3
