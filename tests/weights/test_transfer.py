"""A checkpoint's body under another head, and for another number of channels."""

from __future__ import annotations

import numpy as np
import pytest
import timm.models
import torch

import parity
from parity.errors import CheckpointError
from parity.weights.digest import differing_bits
from parity.weights.twins import abstract_flax, abstract_torch
from resnet_spec import get_config
from tests.support.networks import TINY, flax_like, random_torch


@pytest.fixture
def state() -> dict[str, np.ndarray]:
    return parity.state_dict(random_torch("resnet18", seed=3))


def test_another_head_takes_the_body_and_says_what_was_left_out(state):
    ten = get_config("resnet18").replace(num_classes=10)
    model = random_torch(ten)
    for other in (model, flax_like(model)):
        before = parity.state_dict(other)
        found = parity.load_state_dict(other, state, ignore=("fc.*",))
        assert found.left_out == found.kept == ("fc.weight", "fc.bias")
        after = parity.state_dict(other)
        head = {name: before[name] for name in found.kept}
        body = {name: a for name, a in state.items() if not name.startswith("fc.")}
        assert differing_bits(after, body | head) == {}
        assert str(found) == "left out fc.weight, fc.bias; kept fc.weight, fc.bias"


def test_a_network_without_a_head_takes_a_whole_checkpoint():
    whole = parity.state_dict(random_torch("resnet34"))
    model = random_torch(get_config("resnet34").replace(include_top=False), seed=1)
    for other in (model, flax_like(model)):
        with pytest.raises(CheckpointError, match=r"unexpected: fc\.weight, fc\.bias"):
            parity.load_state_dict(other, whole)
        found = parity.load_state_dict(other, whole, ignore=("fc.*",))
        assert found.left_out == ("fc.weight", "fc.bias")
        assert found.kept == ()
        body = {name: a for name, a in whole.items() if not name.startswith("fc.")}
        assert differing_bits(parity.state_dict(other), body) == {}


def test_what_is_not_ignored_is_still_strict(state):
    model = random_torch(get_config("resnet18").replace(num_classes=10))
    before = parity.digest_of(model)
    del state["bn1.bias"]
    with pytest.raises(CheckpointError, match=r"missing: bn1\.bias"):
        parity.load_state_dict(model, state, ignore=("fc.*",))
    assert parity.digest_of(model) == before


def test_one_pattern_is_not_taken_for_its_letters(state):
    model = random_torch("resnet18", seed=8)
    found = parity.load_state_dict(model, state, ignore="fc.*")
    assert found.left_out == ("fc.weight", "fc.bias")
    after = parity.state_dict(model)
    assert differing_bits({"": after["bn1.bias"]}, {"": state["bn1.bias"]}) == {}


def test_a_model_without_data_must_get_all_of_it(state):
    ten = get_config("resnet18").replace(num_classes=10)
    for model in (abstract_torch(ten), abstract_flax(ten)):
        with pytest.raises(ValueError, match=r"no data, .*fc\.weight, fc\.bias"):
            parity.load_state_dict(model, state, ignore="fc.*")


def test_without_ignore_nothing_is_left_out(state):
    found = parity.load_state_dict(random_torch("resnet18"), state)
    assert (found.left_out, found.kept) == ((), ())


@pytest.mark.parametrize("in_channels", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(
    ("name", "key"), [("resnet18", "conv1.weight"), ("resnet50d", "conv1.0.weight")]
)
def test_channels_are_adapted_as_timm_does(in_channels: int, name: str, key: str):
    state = parity.state_dict(random_torch(name))
    found = parity.adapt_in_channels(state, in_channels)
    kernel = torch.from_numpy(state[key].copy())
    expected = timm.models.adapt_input_conv(in_channels, kernel).numpy()
    # Sums of three floats may be taken in another order.
    assert found[key].shape == expected.shape
    assert (
        np.abs(found[key] - expected).max()
        <= 2.0**-24 * np.abs(kernel.numpy()).max() * 4
    )
    rest = {n: a for n, a in found.items() if n != key}
    assert differing_bits(rest, {n: a for n, a in state.items() if n != key}) == {}
    model = random_torch(get_config(name).replace(in_channels=in_channels))
    parity.load_state_dict(model, found)


def test_a_gray_image_gives_what_it_gave_as_rgb():
    state = parity.state_dict(random_torch("resnet18"))
    gray = torch.randn(2, 1, 64, 64, dtype=torch.float64)
    rgb_model = random_torch("resnet18").double().eval()
    model = random_torch(get_config("resnet18").replace(in_channels=1)).double().eval()
    adapted = parity.adapt_in_channels(parity.cast(state, "float64"), 1)
    parity.load_state_dict(model, adapted)
    with torch.no_grad():
        expected, found = rgb_model(gray.expand(-1, 3, -1, -1)), model(gray)
    assert ((found - expected).norm() / expected.norm()).item() < 1e-12


def test_only_kernels_of_three_channels_are_adapted():
    state = parity.state_dict(random_torch(TINY.replace(in_channels=4)))
    with pytest.raises(ValueError, match=r"conv1\.weight has shape \(8, 4, 7, 7\)"):
        parity.adapt_in_channels(state, 1)
    with pytest.raises(ValueError, match=r"conv9\.weight has shape \(0,\)"):
        parity.adapt_in_channels(state, 1, key="conv9.weight")
    with pytest.raises(ValueError, match="in_channels is 0"):
        parity.adapt_in_channels(state, 0)


def test_tensors_are_adapted_too():
    model = random_torch(TINY)
    found = parity.adapt_in_channels(model.state_dict(), 1)
    gray = random_torch(TINY.replace(in_channels=1))
    parity.load_state_dict(gray, found)
