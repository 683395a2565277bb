"""3x3 convolutions by Winograd's algorithm, in the Flax twin."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import parity
import resnet_flax
import resnet_torch
from parity.judging.distance import deviation
from resnet_flax import filtering
from resnet_flax.layers import Conv2d
from resnet_spec import ResNetConfig
from tests.support.networks import TINY, flax_like, images, random_torch

WIDE = TINY.replace(widths=(64, 72))
SIZES = [(40, 40), (33, 40), (47, 33)]


@pytest.fixture(params=[0, 10**9], ids=["sixteen", "one"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets all products be apart, or one."""
    monkeypatch.setattr(filtering, "_FEW", request.param)
    jax.clear_caches()  # it is read when a function is traced


def _twins(config: ResNetConfig, dtype: str) -> tuple[Any, Any]:
    """Returns both twins, fused, the Flax one by Winograd."""
    model = random_torch(config).to(getattr(torch, dtype)).eval()
    twin = resnet_flax.fuse(flax_like(model, dtype))
    return resnet_torch.fuse(model), resnet_flax.winograd(twin)


def _kernels(model: nnx.Module) -> dict[str, tuple[int, ...]]:
    return {
        ".".join(map(str, path)): tuple(found.kernel.shape)
        for path, found in nnx.iter_modules(model)
        if isinstance(found, Conv2d)
    }


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(
    "size",
    [SIZES[0], *(pytest.param(s, marks=pytest.mark.slow) for s in SIZES[1:])],
)
def test_in_float64_the_engine_finds_it_equal(size: tuple[int, int]):
    x = images(WIDE, *size)
    with jax.enable_x64(True):
        torch_model, model = _twins(WIDE, "float64")
        assert (4, 4, 64, 64) in _kernels(model).values()
        gates = ("G1", "G2")
        report = parity.compare_modules(torch_model, model, x, gates=gates)
    assert report.ok, str(report)


def test_a_fault_in_it_is_seen(monkeypatch: pytest.MonkeyPatch):
    right = filtering._of_kernel
    monkeypatch.setattr(filtering, "_of_kernel", lambda g: [*right(g)[:3], g[1]])
    x = images(WIDE, 33, 40)
    with jax.enable_x64(True):
        torch_model, model = _twins(WIDE, "float64")
        report = parity.compare_modules(torch_model, model, x, gates=["G1"])
    assert report.first_divergence == "layer1.0.conv1"


@pytest.mark.usefixtures("form")
def test_in_float32_its_rounding_is_that_of_the_plain_convolution():
    x = images(WIDE, 64, 64, n=8)
    with jax.enable_x64(True):
        model = flax_like(random_torch(WIDE), "float64")
        model.eval()
        exact = np.asarray(model(jnp.asarray(x.transpose(0, 2, 3, 1))))
    plain = resnet_flax.fuse(flax_like(random_torch(WIDE)))
    x = jnp.asarray(x.transpose(0, 2, 3, 1), jnp.float32)
    errors = [
        deviation(np.asarray(model(x), np.float64), exact).l2
        for model in (plain, resnet_flax.winograd(plain))
    ]
    assert 0 < errors[1] < 3 * errors[0]


def test_only_those_that_it_is_for_are_changed():
    fused = resnet_flax.fuse(flax_like(random_torch(WIDE)))
    before, after = _kernels(fused), _kernels(resnet_flax.winograd(fused))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {
        *("layer1.0.conv1", "layer1.0.conv2"),
        *("layer2.0.conv2", "layer2.1.conv1", "layer2.1.conv2"),  # conv1 has stride 2
    }
    for name in changed:
        assert after[name] == (4, 4, *before[name][2:])


GROUPED = WIDE.replace(block="bottleneck", groups=2)
DILATED = WIDE.replace(block="bottleneck", replace_stride_with_dilation=(True,))


@pytest.mark.parametrize(
    ("config", "changed"),
    [
        (TINY, set()),
        (GROUPED, set()),
        (DILATED, {"layer1.0.conv2", "layer2.0.conv2"}),
    ],
)
def test_nothing_else_is(config: ResNetConfig, changed: set[str]):
    model = flax_like(random_torch(config))
    before, after = _kernels(model), _kernels(resnet_flax.winograd(model))
    assert {name for name in before if before[name] != after[name]} == changed


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_types_stay_as_they_are(dtype: str):
    model = flax_like(random_torch(WIDE), dtype)
    assert _kernels(resnet_flax.winograd(model)) == _kernels(model)
    model = resnet_flax.create_model(WIDE, rngs=nnx.Rngs(0), dtype=dtype)
    assert _kernels(resnet_flax.winograd(model)) == _kernels(model)


@pytest.mark.parametrize(
    ("dtype", "stored"), [("float32", "bfloat16"), ("float64", "float32")]
)
def test_kernels_are_rounded_to_what_computes_and_not_to_what_stores(
    dtype: str, stored: str
):
    with jax.enable_x64(True):
        model = resnet_flax.create_model(
            WIDE, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=stored
        )
        model.eval()
        x = jnp.asarray(images(WIDE, 33, 40).transpose(0, 2, 3, 1), dtype)
        copy = resnet_flax.winograd(model)
        assert _kernels(copy) != _kernels(model)
        found = deviation(np.asarray(copy(x)), np.asarray(model(x))).l2
    assert found < 20 * float(jnp.finfo(dtype).eps)


def test_a_layer_that_a_user_has_changed_stays_as_it_is():
    model = flax_like(random_torch(WIDE))
    model.layer1[0].conv1.input_dilation = 2
    model.layer1[0].conv2.conv_general_dilated = jax.lax.conv_general_dilated
    after = _kernels(resnet_flax.winograd(model))
    assert after["layer1.0.conv1"] == after["layer1.0.conv2"] == (3, 3, 64, 64)
    assert after["layer2.1.conv2"] == (4, 4, 72, 72)


def test_the_original_stays_and_the_copy_is_for_evaluation():
    model = flax_like(random_torch(WIDE))
    before = parity.state_dict(model)
    copy: Any = resnet_flax.winograd(model)
    assert copy.bn1.use_running_average
    assert not model.bn1.use_running_average
    parity.load_state_dict(model, {k: np.zeros_like(v) for k, v in before.items()})
    x = jnp.ones((2, 33, 33, 3))
    assert np.isfinite(np.asarray(copy(x))).all()
    assert np.ptp(np.asarray(copy(x))) > 0


def test_weights_of_a_file_no_longer_fit_and_that_is_said():
    model = flax_like(random_torch(WIDE))
    state = parity.state_dict(model)
    with pytest.raises(ValueError, match=r"layer1\.0\.conv1\.weight.*4, 4"):
        parity.load_state_dict(resnet_flax.winograd(model), state)


def test_what_is_no_network_is_refused():
    with pytest.raises(ValueError, match=r"takes a resnet_flax\.ResNet"):
        resnet_flax.winograd(random_torch(WIDE))
