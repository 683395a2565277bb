"""What is asked of a network in fine-tuning: maps, frozen stages, parts dropped."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm
import torch
from flax import nnx

import parity
from parity.judging.distance import deviation
from parity.judging.tolerances import (
    FLOAT64_BUFFERS,
    G1_FORWARD,
)
from resnet_flax.dropping import Drop as FlaxDrop
from resnet_flax.layers import BatchNorm2d
from resnet_torch.dropping import Drop
from tests.support.networks import (
    DROPPING,
    TINY,
    flax_like,
    images,
    random_torch,
    run_flax,
)
from tests.twins.test_family import NARROW, shallow, sizes

# --- maps -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stride"),
    [("resnet50", 32), ("resnetrs50", 16), ("resnetblur18", 8), ("seresnet50t", 32)],
)
def test_maps_are_those_of_timms_features_only(name: str, stride: int):
    config = shallow(name, output_stride=stride)
    how: dict[str, Any] = {"channels": NARROW, "layers": config.layers}
    model = timm.create_model(name, features_only=True, output_stride=stride, **how)
    ours = random_torch(config).double().eval()
    state = {k: v for k, v in ours.state_dict().items() if not k.startswith("fc.")}
    model.double().eval().load_state_dict(state)
    info: Any = model.feature_info
    assert [i.channels for i in ours.feature_info] == info.channels()
    assert [i.stride for i in ours.feature_info] == info.reduction()
    x = torch.randn(1, 3, *sizes(config)[1], dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)
        for indices in (None, (1, 3), (4,), (-1, 0), 2, 5):
            found = ours.feature_maps(x, indices)
            chosen = [expected[i] for i in range(5)]
            if isinstance(indices, int):
                chosen = chosen[-indices:]
            elif indices is not None:
                chosen = [expected[i] for i in indices]
            assert len(found) == len(chosen)
            for map_, their in zip(found, chosen, strict=True):
                assert deviation(map_.numpy(), their.numpy()).l2 <= G1_FORWARD


def test_both_twins_have_the_same_maps_and_compute_none_beyond():
    config = TINY.replace(stem="tiered", stem_channels=8, stem_pool="conv")
    model = random_torch(config).double().eval()
    x = images(config, 40, 33)
    with torch.no_grad():
        expected = model.feature_maps(torch.from_numpy(x))
    with jax.enable_x64(True):
        twin = flax_like(model, "float64")
        twin.eval()
        y = jnp.asarray(x.transpose(0, 2, 3, 1))
        found = twin.feature_maps(y)
        del twin.layer2
        (first,) = twin.feature_maps(y, [1])
    assert model.feature_info == twin.feature_info
    for ours, theirs, info in zip(found, expected, model.feature_info, strict=True):
        nchw = np.asarray(ours).transpose(0, 3, 1, 2)
        assert deviation(nchw, theirs.numpy()).l2 <= G1_FORWARD
        assert nchw.shape[1] == info.channels
        assert nchw.shape[2] == -(-40 // info.stride)
    assert np.array_equal(first, found[1])


@pytest.mark.parametrize("indices", [(), 0, 4, (3,), (-4,), True, (True,), "0", 1.0])
def test_maps_that_there_are_not_are_refused(indices: Any):
    model = random_torch(TINY).eval()
    for network in (model, flax_like(model)):
        with pytest.raises(ValueError, match="number from 1 to 3, or indices from -3"):
            network.feature_maps(np.zeros((1, 40, 33, 3), np.float32), indices)


# --- frozen stages --------------------------------------------------------------------


@pytest.mark.parametrize("stages", [0, 1, 2])
def test_what_is_frozen_stays_and_the_rest_learns_alike_in_both(stages: int):
    model = random_torch(TINY).double().train()
    x = images(TINY, 40, 33, n=3)
    model.freeze(stages)
    before = parity.state_dict(model)
    with jax.enable_x64(True):
        twin = flax_like(model, "float64")
        (model(torch.from_numpy(x)) ** 2).sum().backward()
        twin.freeze(stages)
        twin.train()

        @nnx.jit
        def gradients(twin: Any, x: jax.Array) -> nnx.State:
            return nnx.grad(lambda twin, x: (twin(x) ** 2).sum())(twin, x)

        found = gradients(twin, jnp.asarray(x.transpose(0, 2, 3, 1)))
        after = parity.state_dict(twin)
        nnx.update(twin, found)
        by_name = parity.state_dict(twin)
    frozen = tuple(f"{name}." for name in model.frozen_names)
    assert len(frozen) == 4 + stages
    learnt = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learnt == {
        n for n, _ in model.named_parameters() if not n.startswith(frozen)
    }
    for name, value in parity.state_dict(model).items():
        assert deviation(after[name], value).l2 <= FLOAT64_BUFFERS
        if name.startswith(frozen):
            np.testing.assert_array_equal(value, before[name])
            np.testing.assert_array_equal(by_name[name], before[name])
        elif name.endswith("running_mean"):
            assert np.any(value != before[name])
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            grad = parameter.grad.numpy()
            assert deviation(by_name[name], grad).l2 <= FLOAT64_BUFFERS, name


def test_freezing_keeps_keys_and_mode_and_can_be_taken_back():
    model = random_torch(TINY).eval()
    twin = flax_like(model)
    twin.eval()
    keys = parity.entries(model)
    for network in (model, twin):
        network.freeze(1)
        assert parity.entries(network) == keys
        network.train()
        network.freeze(None)
        assert network.frozen_names == ()
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not twin.layer1[0].bn1.use_running_average
    assert isinstance(twin.layer1[0].conv1.kernel, nnx.Param)
    model.eval()
    twin.eval()
    model.freeze(2)
    twin.freeze(2)
    assert not any(module.training for module in model.modules())
    assert twin.layer2[0].bn1.use_running_average


def _modes(network: Any) -> dict[str, bool]:
    """What of a network trains: norms that note statistics, and what drops."""
    if isinstance(network, torch.nn.Module):
        found: Any = network.named_modules()
    else:
        found = ((".".join(map(str, p)), m) for p, m in nnx.iter_modules(network))
    modes = {}
    for name, module in found:
        if isinstance(module, torch.nn.BatchNorm2d | Drop):
            modes[name] = module.training
        elif isinstance(module, BatchNorm2d):
            modes[name] = not module.use_running_average
        elif isinstance(module, FlaxDrop):
            modes[name] = not module.deterministic
    return modes


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_freezing_in_any_order_leaves_both_twins_in_the_same_mode(norm: Any):
    config = DROPPING.replace(norm=norm, norm_groups=8 if norm == "group" else 32)
    model = random_torch(config)
    twin = flax_like(model)
    every, modes = len(config.layers), []
    for training in (True, False, True):
        for network in (model, twin):
            network.train() if training else network.eval()
        for stages in (every, None, 1, every, 2, None, None):
            for network in (model, twin):
                network.freeze(stages)
            modes.append(_modes(model))
            assert _modes(twin) == modes[-1]
            frozen = () if stages is None else tuple(f"{n}." for n in twin.frozen_names)
            for name, on in modes[-1].items():
                assert on == (training and not f"{name}.".startswith(frozen))
    assert {any(mode.values()) for mode in modes} == {True, False}


def test_what_is_frozen_drops_nothing_where_no_norm_has_statistics():
    config = DROPPING.replace(norm="group", norm_groups=8, drop_block_rate=0.0)
    model = random_torch(config).double().train()
    x = images(config, 70, 97)
    model.freeze(3)
    with jax.enable_x64(True):
        twin = flax_like(model, "float64")
        twin.train()
        twin.freeze(3)
        found, _ = run_flax(twin, x)
    with torch.no_grad():
        trained = model(torch.from_numpy(x)).numpy()
        assert np.array_equal(trained, model.eval()(torch.from_numpy(x)).numpy())
    assert deviation(found, trained).l2 <= FLOAT64_BUFFERS


@pytest.mark.parametrize("stages", [-1, 3, True, 1.0, "layer1"])
def test_stages_that_there_are_not_cannot_be_frozen(stages: Any):
    model = random_torch(TINY)
    for network in (model, flax_like(model)):
        with pytest.raises(ValueError, match="must be from 0 to 2, or None"):
            network.freeze(stages)
        assert network.frozen_names == ()


@pytest.mark.slow
def test_the_check_judges_frozen_twins_whole():
    model = random_torch(TINY)
    twin = flax_like(model)
    model.freeze(1)
    twin.freeze(1)
    x = images(TINY, 40, 33).astype(np.float32)
    report = parity.check(model, twin, x, gates=["G0", "G1", "G1 training"])
    assert report.ok, str(report)


# --- what is dropped ------------------------------------------------------------------
