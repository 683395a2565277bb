"""Batch norms folded into convolutions, in both twins."""

from __future__ import annotations

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import example, given, settings

import parity
import resnet_flax
import resnet_torch
from parity.judging.distance import deviation
from resnet_flax.layers import BatchNorm2d
from resnet_spec import ResNetConfig
from tests.support.examples import examples
from tests.support.networks import (
    TINY,
    TINY_BOTTLENECK,
    configs_with_images,
    flax_like,
    images,
    random_torch,
    run_flax,
)

ROUNDINGS = 5e-14
"""What the other order of operations may cost in float64, relative to the output."""

DEEP = TINY_BOTTLENECK.replace(stem="deep", shortcut="D", conv_bias=True)


GROUPS = TINY.replace(norm="group", norm_groups=4, stem="deep", attention="se")
POOLED = TINY.replace(stem_pool="conv", anti_alias="blur", conv_bias=True)


def _norms(model: Any) -> list[Any]:
    modules = (
        model.modules()
        if isinstance(model, torch.nn.Module)
        else (module for _, module in nnx.iter_modules(model))
    )
    return [m for m in modules if isinstance(m, (torch.nn.BatchNorm2d, BatchNorm2d))]


@given(case=configs_with_images())
@settings(max_examples=examples(12))
@example(case=(GROUPS, images(GROUPS, 40, 33)))
@example(case=(POOLED, images(POOLED, 40, 34)))
def test_fused_twins_compute_what_the_networks_do(case):
    config, x = case
    model = random_torch(config).double().eval()
    expected = model(torch.from_numpy(x)).detach().numpy()
    fused = resnet_torch.fuse(model)
    assert bool(_norms(model)) == (config.norm == "batch")
    assert not _norms(fused)
    found = fused(torch.from_numpy(x)).detach().numpy()
    assert deviation(found, expected).l2 <= ROUNDINGS
    with jax.enable_x64(True):
        twin = flax_like(model, "float64")
        twin.eval()
        fused_twin = resnet_flax.fuse(twin)
        assert len(_norms(twin)) == len(_norms(model))
        assert not _norms(fused_twin)
        found, _ = run_flax(fused_twin, x)
    assert deviation(found, expected).l2 <= ROUNDINGS
    ours, theirs = parity.state_dict(fused), parity.state_dict(fused_twin)
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        # By the largest value: a bias is a difference, which may happen to be near 0.
        assert deviation(theirs[name], value).max <= 1e-14


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(TINY, id="basic"),
        pytest.param(DEEP, id="bottleneck", marks=pytest.mark.slow),
    ],
)
def test_fused_twins_pass_the_check_and_a_fault_does_not(config: ResNetConfig):
    model = random_torch(config).eval()
    twin = flax_like(model)
    x = images(config, 40, 33).astype(np.float32)
    fused = resnet_torch.fuse(model), resnet_flax.fuse(twin)
    report = parity.check(*fused, x, gates=parity.FORWARD)
    assert report.ok, str(report)
    for _, module in nnx.iter_modules(twin):
        if isinstance(module, BatchNorm2d):
            module.eps = 0.0
    wrong = resnet_flax.fuse(twin)
    report = parity.check(fused[0], wrong, x, gates=parity.FORWARD)
    assert not report.ok


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_folded_values_are_rounded_once_from_float64(dtype: str):
    model = random_torch(DEEP).to(getattr(torch, dtype)).eval()
    wide = resnet_torch.fuse(copy.deepcopy(model).double())
    expected = parity.cast(parity.state_dict(wide), dtype)
    found = parity.state_dict(resnet_torch.fuse(model))
    for name, value in found.items():
        assert value.dtype == expected[name].dtype
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    twin = flax_like(model, dtype)
    # numpy's arithmetic may differ from torch's in the last bit of a float64, and so,
    # seldom, in the last bit of what it is rounded to.
    for name, value in parity.state_dict(resnet_flax.fuse(twin)).items():
        assert value.dtype == expected[name].dtype
        equal = np.mean(value == expected[name])
        assert equal > 0.99, name


def test_the_original_stays_as_it_is():
    model = random_torch(DEEP).train()
    twin = flax_like(model)
    x = images(DEEP, 40, 33).astype(np.float32)
    for network, fuse in ((model, resnet_torch.fuse), (twin, resnet_flax.fuse)):
        before = parity.state_dict(network)
        fused: Any = fuse(network)
        after = parity.state_dict(network)
        assert list(before) == list(after)
        assert all(np.array_equal(before[n], after[n]) for n in before)
        parity.load_state_dict(fused, _zeros(parity.state_dict(fused)))
        again = parity.state_dict(network)
        assert all(np.array_equal(before[n], again[n]) for n in before)
    assert model.training
    assert not twin.bn1.use_running_average
    assert parity.check(model, twin, x, gates=["G0"]).ok


def _zeros(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.zeros_like(value) for name, value in state.items()}


def test_what_stands_where_a_norm_was_is_in_evaluation_mode():
    fused = resnet_torch.fuse(random_torch(DEEP).train())
    assert not any(module.training for module in fused.modules())


def test_paths_and_settings_stay_and_training_mode_changes_nothing():
    model = random_torch(DEEP).eval()
    fused = resnet_torch.fuse(model)
    assert [n for n, _ in fused.named_modules()] == [
        n for n, _ in model.named_modules()
    ]
    assert fused.config == DEEP
    twin = resnet_flax.fuse(flax_like(model))
    assert twin.config == DEEP
    x = images(DEEP, 40, 33).astype(np.float32)
    expected, y = fused(torch.from_numpy(x)), jnp.asarray(x.transpose(0, 2, 3, 1))
    result: Any = twin(y)
    fused.train()
    twin.train()
    assert torch.equal(fused(torch.from_numpy(x)), expected)
    assert np.array_equal(twin(y), result)


@pytest.mark.parametrize("framework", ["torch", "flax"])
def test_what_cannot_be_fused_is_refused(framework: str):
    model: Any = random_torch(TINY)
    package: Any = resnet_torch
    if framework == "flax":
        model, package = flax_like(model), resnet_flax
    with pytest.raises(ValueError, match="fused already"):
        package.fuse(package.fuse(model))
    with pytest.raises(ValueError, match=rf"takes a resnet_{framework}\.ResNet"):
        package.fuse(model.fc)
    model.layer1[0].bn2 = torch.nn.Identity() if framework == "torch" else model.relu
    with pytest.raises(ValueError, match=r"behind Conv2d; fuse knows BatchNorm2d"):
        package.fuse(model)


def test_the_original_and_its_copies_share_no_array_so_that_each_may_be_donated():
    config = DEEP.replace(widths=(64, 64))
    twin = flax_like(random_torch(config))
    x = jnp.asarray(images(config, 40, 33).transpose(0, 2, 3, 1), jnp.float32)
    copies: list[Any] = [resnet_flax.fuse(twin), resnet_flax.winograd(twin)]
    copies.append(resnet_flax.winograd(copies[0]))
    expected = [copy(x) for copy in copies]
    for network in (twin, copies[0]):
        for leaf in jax.tree.leaves(nnx.state(network)):
            leaf.delete()  # as a donated one is
    assert np.array_equal(copies[1](x), expected[1])
    assert np.array_equal(copies[2](x), expected[2])
    model = random_torch(config)
    addresses = {tensor.data_ptr() for tensor in model.state_dict().values()}
    fused = resnet_torch.fuse(model).state_dict().values()
    assert addresses.isdisjoint(tensor.data_ptr() for tensor in fused)
