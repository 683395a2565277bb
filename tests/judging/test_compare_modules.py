"""Any pair of networks can be compared: others' names, functions, known mistakes."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

import parity
from parity.images import random_images
from parity.running.pair import pair_of
from parity.weights.flax_state import variables
from parity.weights.names import to_flax
from parity.weights.twins import abstract_flax
from resnet_spec import ResNetConfig, get_config
from tests.support.handmade import MAPPING, HandMade, stem, stem_of

CLASSES = 5
EVEN, ODD = (2, 3, 64, 96), (2, 3, 65, 97)
FORWARD = [gate for gate in parity.FORWARD if gate != "G2 eager"]


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=CLASSES)
    state = parity.random_state(parity.entries(model), seed=5)
    parity.load_state_dict(model, state)
    return model


def hand_made(theirs: nn.Module, *, same: bool) -> HandMade:
    model = HandMade(same=same, classes=CLASSES)
    state = parity.state_dict(theirs)
    aliases = pair_of(theirs, model, MAPPING).aliases
    for name, leaf, variable in variables(model, aliases=aliases):
        variable.set_value(jax.numpy.asarray(to_flax(leaf, state[name])))
    return model


@pytest.mark.slow
def test_a_network_with_names_of_its_own_passes_under_a_mapping(theirs: nn.Module):
    model = hand_made(theirs, same=False)
    with jax.numpy_rank_promotion("allow"):  # nnx's own batch norm needs it
        found = parity.compare_modules(
            *(theirs, model, random_images(EVEN, seed=1)),
            mapping=MAPPING,
            gates=FORWARD,
        )
    assert found.ok, found.verdict()
    judged = {row.name for row in found.gate("G1").rows if row.limit}
    assert {"conv1", "bn1", "layer3.0", "layer4.0.downsample.1", "fc"} <= judged
    notes = {row.name: row.note for row in found.gate("G0").rows if row.note}
    assert set(notes.values()) == {"Flax counts no batches, not compared"}
    assert all("num_batches_tracked" in name for name in notes)


def norms_of(model: nn.Module) -> set[str]:
    modules = model.named_modules()
    return {path for path, m in modules if isinstance(m, nn.BatchNorm2d)}


STRIDED = (
    "conv1",
    *(f"layer{i}.0.conv1" for i in (2, 3, 4)),
)


@pytest.mark.slow
def test_same_padding_is_exposed_at_the_layers_that_have_it(theirs: nn.Module):
    model = hand_made(theirs, same=True)
    with jax.numpy_rank_promotion("allow"):
        found = parity.compare_modules(
            *(theirs, model, random_images(EVEN, seed=1)),
            mapping=MAPPING,
            gates=FORWARD,
        )
    assert found.gate("G0").ok
    assert found.first_divergence == "conv1"
    # On the accumulating road all is wrong behind it; alone only these four are.
    assert found.culprits == STRIDED
    assert "wrong by itself: conv1, layer2.0.conv1" in found.verdict()


@pytest.mark.slow
def test_on_odd_sizes_same_padding_is_torchs(theirs: nn.Module):
    model = hand_made(theirs, same=True)
    with jax.numpy_rank_promotion("allow"):
        found = parity.compare_modules(
            *(theirs, model, random_images(ODD, seed=1)),
            mapping=MAPPING,
            gates=("G1 isolated",),
        )
    assert found.ok


@pytest.mark.slow
def test_in_training_nnxs_own_batch_norm_is_named_for_its_statistics(
    theirs: nn.Module,
):
    model = hand_made(theirs, same=False)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        found = parity.compare_modules(
            *(theirs, model, random_images((4, 3, 64, 96), seed=1)),
            mapping=MAPPING,
            gates=("G1 training isolated",),
        )
    # The variance that it keeps is the biased one; all else is as torch's.
    norms = norms_of(theirs)
    assert set(found.culprits) == norms
    kinds = {row.kind for row in found.gate("G1 training isolated").failures}
    assert kinds == {f"statistic {norm}.running_var" for norm in norms}


def test_a_mapping_may_be_a_function(theirs: nn.Module):
    twin = abstract_flax(_config())
    parity.load_state_dict(twin, parity.state_dict(theirs))
    found = parity.compare_modules(
        *(theirs, twin, random_images(EVEN, seed=1)),
        mapping=lambda path: path,
        gates=("G0", "G2"),
    )
    assert found.ok


def _config() -> ResNetConfig:
    return get_config("resnet18").replace(layers=(1, 1, 1, 1), num_classes=CLASSES)


def test_a_mapping_that_leads_nowhere_is_refused(theirs: nn.Module):
    model = HandMade(same=False, classes=CLASSES)
    x = random_images(EVEN, seed=1)
    with pytest.raises(ValueError, match=r"leads to stem.cov \(for conv1\), which JAX"):
        parity.compare_modules(
            theirs, model, x, mapping={**MAPPING, "conv1": "stem.cov"}
        )
    with pytest.raises(ValueError, match="names layer9, which torch does not have"):
        parity.compare_modules(theirs, model, x, mapping={**MAPPING, "layer9": "stem"})


# --- functions ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch_stem(theirs: nn.Module) -> nn.Module:
    names = ("conv1", "bn1", "relu")
    row = nn.Sequential()
    for name in names:
        row.add_module(name, theirs.get_submodule(name))
    return row


SHOWN = {"conv1": "first.convolved", "bn1": "first.normal"}


def test_a_function_is_judged_by_what_it_shows(torch_stem: nn.Module):
    parameters = stem_of(parity.state_dict(torch_stem))
    found = parity.compare_modules(
        *(torch_stem, partial(stem, parameters), random_images(EVEN, seed=1)),
        mapping=SHOWN,
    )
    assert found.ok, found.verdict()
    assert {row.name for row in found.gate("G1").rows if row.limit} == {
        *("conv1", "bn1", "output"),
    }
    assert found.gate("G0").skipped == "a function shows no weights by name"
    kinds = {row.kind for row in found.gate("G2 training").rows}
    assert kinds == {"output", "loss", "input gradient"}
    assert found.gate("G2 isolated").skipped == "a function shows no modules"


def test_a_wrong_function_is_named_where_it_parts(torch_stem: nn.Module):
    parameters = stem_of(parity.state_dict(torch_stem))
    parameters["mean"], parameters["var"] = parameters["var"], parameters["mean"] + 1
    found = parity.compare_modules(
        *(torch_stem, partial(stem, parameters), random_images(EVEN, seed=1)),
        mapping=SHOWN,
    )
    assert found.first_divergence == "bn1"


def test_hidden_parameters_cannot_be_raised_and_that_is_said(torch_stem: nn.Module):
    parameters = stem_of(parity.state_dict(torch_stem))
    with jax.numpy_dtype_promotion("standard"):
        found = parity.compare_modules(
            *(torch_stem, lambda x: stem(parameters, x), random_images(EVEN, seed=1)),
            mapping=SHOWN,
            gates=("G1", "G2"),
        )
    assert found.gate("G2").ok  # as it is, it is right
    assert not np.isnan(found.gate("G1").rows[0].error)


def test_what_is_no_network_is_refused(torch_stem: nn.Module):
    x = random_images(EVEN, seed=1)
    with pytest.raises(TypeError, match=r"expected a flax.nnx.Module, or a function"):
        parity.compare_modules(torch_stem, 3, x)
    model = HandMade(same=False, classes=CLASSES)
    with pytest.raises(TypeError, match="the torch model is one of flax"):
        parity.compare_modules(model, model, x)


@pytest.mark.slow
def test_torchvisions_own_resnet_can_be_compared_with_the_twin():
    theirs = torchvision.models.resnet18(num_classes=CLASSES)
    state = parity.random_state(parity.entries(theirs), seed=2)
    parity.load_state_dict(theirs, state)
    ours = abstract_flax(_config().replace(layers=(2, 2, 2, 2)))
    parity.load_state_dict(ours, state)
    gates = ("G0", "G2", "G5", "G4", "G2 training")
    found = parity.check(theirs, ours, random_images(EVEN, seed=3), gates=gates)
    assert found.ok, found.verdict()
