"""Flax's layers against torch's: the bottom rung of the ladder, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

import parity
import resnet_flax
from parity.judging.distance import deviation
from parity.judging.tolerances import FLOAT64_BUFFERS, G1_FORWARD, arithmetic_floor
from resnet_flax.layers import BatchNorm2d, Layers, ReLU, Sequential, flatten
from resnet_torch.layers import flatten as torch_flatten
from tests.support.networks import TINY


@pytest.fixture
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def _nhwc(x: np.ndarray) -> jax.Array:
    return jnp.asarray(x.transpose(0, 2, 3, 1))


def _nchw(y: jax.Array) -> np.ndarray:
    return np.asarray(y).transpose(0, 3, 1, 2)


def _maker(dtype: str = "float64") -> Layers:
    return Layers(config=TINY, rngs=nnx.Rngs(0), param_dtype=jnp.dtype(dtype))


def _draw(*shape: int, seed: int = 0, mean: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape) + mean


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("size", [(8, 6), (9, 7)])
@pytest.mark.parametrize(
    ("kernel", "settings"),
    [
        (7, {"stride": 2}),
        (3, {}),
        (3, {"stride": 2}),
        (3, {"dilation": 2}),
        (3, {"stride": 2, "groups": 2}),
        (1, {"stride": 2}),
    ],
)
def test_convolution_is_torchs(size, kernel: int, settings: dict[str, Any]):
    flax = _maker().conv(4, 6, kernel, **settings)
    padding = settings.get("dilation", 1) * (kernel - 1) // 2
    torch_conv = nn.Conv2d(
        4, 6, kernel, padding=padding, bias=False, **settings
    ).double()
    parity.load_state_dict(flax, torch_conv.state_dict())
    x = _draw(2, 4, *size)
    expected = torch_conv(torch.from_numpy(x)).detach().numpy()
    assert deviation(_nchw(flax(_nhwc(x))), expected).l2 <= G1_FORWARD


def test_convolution_says_what_it_takes():
    conv = _maker("float32").conv(3, 6, 3)
    with pytest.raises(
        ValueError, match=r"\(1, 3, 8, 8\).*\(n, h, w, 3\), channels last"
    ):
        conv(jnp.ones((1, 3, 8, 8)))
    with pytest.raises(ValueError, match="channels last"):
        conv(jnp.ones((8, 8, 3)))


def _norms(mean: float = 0.0) -> tuple[BatchNorm2d, nn.BatchNorm2d]:
    theirs = nn.BatchNorm2d(5, eps=1e-3, momentum=0.3).double()
    state = parity.cast(parity.random_state(parity.entries(theirs), seed=3), "float64")
    state["running_mean"] += mean
    ours = BatchNorm2d(5, eps=1e-3, momentum=0.3, param_dtype=jnp.float64)
    for model in (theirs, ours):
        parity.load_state_dict(model, state)
    return ours, theirs


@pytest.mark.usefixtures("x64")
def test_norm_in_evaluation_is_torchs():
    ours, theirs = _norms()
    ours.eval()
    x = _draw(3, 5, 4, 6)
    expected = theirs.eval()(torch.from_numpy(x)).detach().numpy()
    assert deviation(_nchw(ours(_nhwc(x))), expected).l2 <= G1_FORWARD


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("n", "size", "mean"), [(3, (4, 6), 0.0), (2, (1, 1), 0.0), (4, (5, 5), 1000.0)]
)
def test_norm_in_training_is_torchs_with_its_statistics(n: int, size, mean: float):
    # (2, 1, 1): n/(n-1) is 2 and a biased variance shows. Mean 1000: E[x²]-E[x]² does.
    ours, theirs = _norms(mean)
    for step in range(3):
        x = _draw(n, 5, *size, seed=step, mean=mean)
        expected = theirs.train()(torch.from_numpy(x)).detach().numpy()
        # The input itself carries |mean|·2⁻⁵³, which normalising brings to the front.
        limit = G1_FORWARD * max(1.0, mean)
        assert deviation(_nchw(ours(_nhwc(x))), expected).l2 <= limit
    expected, found = parity.state_dict(theirs), parity.state_dict(ours)
    assert found["num_batches_tracked"] == expected["num_batches_tracked"]
    for name in ("running_mean", "running_var"):
        assert deviation(found[name], expected[name]).l2 <= FLOAT64_BUFFERS


@pytest.mark.usefixtures("x64")
def test_gradients_go_through_the_batchs_statistics_as_in_torch():
    ours, theirs = _norms()
    x, weights = _draw(3, 5, 4, 6), _draw(3, 5, 4, 6, seed=9)
    leaf = torch.from_numpy(x).requires_grad_()
    (theirs.train()(leaf) * torch.from_numpy(weights)).sum().backward()

    def loss(norm: BatchNorm2d, x: jax.Array) -> jax.Array:
        return (norm(x) * _nhwc(weights)).sum()

    assert leaf.grad is not None
    found = deviation(
        _nchw(nnx.grad(loss, argnums=1)(ours, _nhwc(x))), leaf.grad.numpy()
    )
    assert found.l2 <= FLOAT64_BUFFERS


def test_norm_refuses_one_value_per_channel_in_training_only():
    norm = BatchNorm2d(5)
    with pytest.raises(ValueError, match="more than one value per channel"):
        norm(jnp.ones((1, 1, 1, 5)))
    assert parity.state_dict(norm)["num_batches_tracked"] == 0
    norm.eval()
    assert norm(jnp.ones((1, 1, 1, 5))).shape == (1, 1, 1, 5)


def test_norm_counts_past_what_jax_can_hold_in_one_integer():
    norm = BatchNorm2d(2)
    state = parity.state_dict(norm)
    state["num_batches_tracked"] = np.array(2**32 - 1)
    parity.load_state_dict(norm, state)
    for _ in range(2):
        norm(jnp.asarray(_draw(2, 1, 1, 2).astype(np.float32)))
    assert parity.state_dict(norm)["num_batches_tracked"] == 2**32 + 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_norm_in_half_types_computes_in_float32(dtype: str):
    # 4096 values of 8 ± 1: their sum does not fit into either type's digits.
    x = _draw(4, 3, 32, 32, mean=8.0)
    norm = BatchNorm2d(3, dtype=jnp.dtype(dtype), param_dtype=jnp.float32)
    y = norm(_nhwc(x).astype(dtype))
    assert y.dtype == dtype
    rounded = np.asarray(_nhwc(x).astype(dtype).astype(jnp.float32))
    found = np.asarray(norm.mean[...])
    expected = 0.1 * rounded.mean((0, 1, 2), dtype=np.float64)
    assert deviation(found, expected).l2 < 1e-6


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("size", [(8, 6), (9, 7), (1, 2)])
def test_max_pool_is_torchs_on_negative_maps(size):
    # Padded with zeros, a negative map would show zeros at its rim.
    x = -np.abs(_draw(2, 3, *size)) - 1
    expected = nn.MaxPool2d(3, 2, 1)(torch.from_numpy(x)).numpy()
    found = _nchw(_maker().maxpool(3, stride=2)(_nhwc(x)))
    assert found.tobytes() == expected.tobytes()


def test_relu_has_torchs_derivative_at_zero():
    assert jax.grad(ReLU())(jnp.float32(0)) == 0
    x = torch.zeros((), requires_grad=True)
    nn.ReLU()(x).backward()
    assert x.grad == 0


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("size", [(7, 7), (9, 10), (1, 1)])
def test_average_pool_takes_the_whole_map(size):
    x = _draw(2, 3, *size)
    expected = nn.AdaptiveAvgPool2d((1, 1))(torch.from_numpy(x)).numpy()
    found = _nchw(_maker().avgpool()(_nhwc(x)))
    assert deviation(found, expected).l2 <= G1_FORWARD


def test_flatten_has_torchs_order():
    x = _draw(2, 3, 4, 5).astype(np.float32)
    expected = torch_flatten(torch.from_numpy(x)).numpy()
    assert np.asarray(flatten(_nhwc(x))).tobytes() == expected.tobytes()


def test_sequential_has_torchs_paths():
    layers = Sequential(ReLU(), _maker("float32").norm(4))
    assert next(iter(parity.state_dict(layers))) == "1.weight"


def test_random_weights_have_torchvisions_distributions():
    layers = _maker("float32")
    kernel = np.asarray(layers.conv(64, 256, 3).kernel[...], np.float64)
    std = (2 / (9 * 256)) ** 0.5
    # 147456 draws: their deviation is known to 0.2 %; a truncated one is 12 % off.
    assert abs(kernel.std() / std - 1) < 0.01
    assert np.abs(kernel).max() > 3.5 * std  # not truncated
    assert abs(kernel.mean()) < 5 * std / kernel.size**0.5
    linear = layers.linear(400, 1000)
    assert linear.bias is not None
    for values in (linear.kernel[...], linear.bias[...]):
        values = np.asarray(values, np.float64)
        assert np.abs(values).max() <= 400**-0.5
        assert abs(values.std() * (3 * 400) ** 0.5 - 1) < 0.1
    norm = layers.norm(8)
    assert np.array_equal(norm.scale[...], np.ones(8))
    assert not np.any(layers.norm(8, zero_init=True).scale[...])


def test_rngs_decide_the_weights():
    a, b, c = (
        parity.digest_of(resnet_flax.create_model(TINY, rngs=nnx.Rngs(seed)))
        for seed in (1, 1, 2)
    )
    assert a == b != c


@pytest.mark.parametrize("setting", ["dtype", "param_dtype"])
def test_float64_without_x64_mode_is_refused_with_the_way_out(setting: str):
    with pytest.raises(
        ValueError, match=r"float64 needs JAX's x64 mode.*JAX_ENABLE_X64"
    ):
        resnet_flax.create_model(TINY, rngs=nnx.Rngs(0), **{setting: jnp.float64})


@pytest.mark.parametrize(
    ("dtype", "param_dtype", "result"),
    [
        (None, "bfloat16", "bfloat16"),
        (None, "float16", "float16"),
        ("bfloat16", "float32", "bfloat16"),
        ("float16", "float32", "float16"),
        ("float32", "bfloat16", "float32"),
        (None, "float32", "float32"),
    ],
)
def test_it_computes_in_dtype_and_stores_in_param_dtype(dtype, param_dtype, result):
    model = resnet_flax.create_model(
        TINY, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=jnp.dtype(param_dtype)
    )
    x = jnp.asarray(_draw(2, 40, 40, 3), jnp.dtype(dtype or param_dtype))
    for model_mode in (model.train, model.eval):
        model_mode()
        y = model(x)
        assert y.dtype == result
        assert jnp.isfinite(y).all()
    dtypes = {entry.dtype for entry in parity.entries(model).values()}
    assert dtypes == {param_dtype, "int64"}


UNLIKE = {
    "one image": np.s_[0],
    "one row": np.s_[:, 0],
    "the pixels that the centre is taken of": np.s_[:, ::4, ::4],
}


@pytest.mark.parametrize("n", [2, 32])
@pytest.mark.parametrize("where", UNLIKE)
def test_a_part_unlike_the_rest_costs_no_more_than_four_bits(where: str, n: int):
    x = np.random.default_rng(n).standard_normal((n, 8, 12, 3)).astype(np.float32)
    x[UNLIKE[where]] += 1000
    norm = BatchNorm2d(3, momentum=1.0)
    y = np.asarray(norm(jnp.asarray(x)))
    wide = x.astype(np.float64)
    mean, var = wide.mean((0, 1, 2)), wide.var((0, 1, 2))
    expected = (wide - mean) / np.sqrt(var + 1e-5)
    # The centre is √15 deviations off at most: rounding counts up to sixteen times.
    limit = arithmetic_floor("float32", growth=16)
    assert deviation(y, expected).l2 <= limit
    found = np.asarray(norm.var[...]) * (1 - 1 / x[..., 0].size)
    assert deviation(found, var).l2 <= 2 * limit  # whose root is what is divided by
