"""The Flax twin's random weights: one draw, traced or not, and without a compiler."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import example, given
from hypothesis import strategies as st

import parity
import resnet_flax
from resnet_flax import draws
from resnet_flax.draws import Draws, first_key, kaiming_normal, uniform
from resnet_flax.layers import Layers
from tests.support.networks import TINY, TINY_BOTTLENECK

BIASED = TINY_BOTTLENECK.replace(conv_bias=True)


def _create(seed: int = 3, config: Any = BIASED, **settings: Any) -> Any:
    return resnet_flax.create_model(config, rngs=nnx.Rngs(seed), **settings)


def _values(model: nnx.Module) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))]


def _same(one: nnx.Module, other: nnx.Module) -> bool:
    pairs = zip(_values(one), _values(other), strict=True)
    return all(a.tobytes() == b.tobytes() for a, b in pairs)


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16", "float16", "float64"])
def test_one_seed_gives_one_draw_traced_or_not(param_dtype: str):
    with jax.enable_x64(param_dtype == "float64"):
        plain = _create(param_dtype=param_dtype)
        traced = nnx.jit(lambda: _create(param_dtype=param_dtype))()
        assert plain.conv1.kernel.dtype == param_dtype
        assert _same(plain, traced)
        assert not _same(plain, _create(4, param_dtype=param_dtype))


def test_the_draw_is_what_it_was_in_every_release():
    # Philox and numpy's ziggurat: a change here changes what a seed means to all users.
    model = _create(0, TINY)
    found = np.asarray(model.conv1.kernel[0, 0, 0, :4])
    expected = np.array(FIRST, np.float32)
    assert found.tobytes() == expected.tobytes()


FIRST = [
    -0.0207496527582407,
    0.07132109999656677,
    -0.09977047890424728,
    -0.09627897292375565,
]


def test_many_networks_are_drawn_at_once_each_as_if_alone():
    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=0)
    def ensemble(rngs: nnx.Rngs) -> Any:
        return resnet_flax.create_model(TINY, rngs=rngs)

    keys = jax.random.split(nnx.Rngs(5).params(), 3)
    many = ensemble(nnx.Rngs(5))
    for index, key in enumerate(keys):
        one = resnet_flax.create_model(TINY, rngs=nnx.Rngs(key))
        pairs = zip(_values(many), _values(one), strict=True)
        assert all(np.array_equal(a[index], b) for a, b in pairs)
    kernels = np.asarray(many.conv1.kernel[...])
    assert not np.array_equal(kernels[0], kernels[1])


def test_nothing_is_drawn_for_shapes_alone(monkeypatch: pytest.MonkeyPatch):
    def draw(*_: Any) -> None:
        raise AssertionError("drawn")

    monkeypatch.setattr(draws, "_draw", draw)
    for create in (_create, lambda: resnet_flax.create_model(TINY, rngs=3)):
        shapes = nnx.eval_shape(create)
        assert shapes.conv1.kernel.shape == (7, 7, 3, 8)
        assert isinstance(shapes.conv1.kernel.get_value(), jax.ShapeDtypeStruct)


def test_a_network_takes_one_key_of_the_users():
    taken: list[Any] = []
    rngs: Any = SimpleNamespace(params=lambda: taken.append(1) or jax.random.key(0))
    resnet_flax.create_model(BIASED, rngs=rngs)
    assert taken == [1]
    rngs = nnx.Rngs(0)
    first, second = (resnet_flax.create_model(TINY, rngs=rngs) for _ in range(2))
    assert not _same(first, second)


def test_it_compiles_no_program_per_shape(caplog: pytest.LogCaptureFixture):
    _create(config=TINY)  # nnx.Rngs has its own, whatever the shapes
    with jax.log_compiles():
        jax.block_until_ready(jnp.ones(5) * 2)  # so that the log is known to tell
        assert "Compiling" in caplog.text
        caplog.clear()
        _create(config=BIASED.replace(widths=(24, 40)))
    assert "Compiling" not in caplog.text


def test_a_seed_compiles_nothing(caplog: pytest.LogCaptureFixture):
    with jax.log_compiles():
        resnet_flax.create_model(TINY, rngs=0)
    assert "Compiling" not in caplog.text


@pytest.mark.parametrize("x64", [False, True])
@given(seed=st.one_of(st.integers(0, 2**31 - 1), st.integers(-(2**31), 2**31)))
@example(seed=0)
def test_a_seeds_key_is_that_of_nnx(seed: int, x64: bool):
    with jax.enable_x64(x64):
        expected = nnx.Rngs(seed).params()
        assert jnp.array_equal(first_key(seed), expected)
        with jax.default_prng_impl("rbg"):
            assert jnp.array_equal(first_key(seed), nnx.Rngs(seed).params())


def test_a_seed_gives_the_same_draw_traced_or_not():
    plain = resnet_flax.create_model(TINY, rngs=3)
    assert _same(plain, nnx.jit(lambda: resnet_flax.create_model(TINY, rngs=3))())
    assert _same(plain, _create(config=TINY))


def test_a_bias_can_be_given_to_a_convolution_without():
    model: Any = resnet_flax.create_model(TINY, rngs=0)
    x = np.random.default_rng(0).normal(size=(2, 20, 21, 3)).astype(np.float32)
    before = np.asarray(model.conv1(x))
    model.conv1.bias = nnx.Param(jnp.arange(8.0))
    assert ("conv1", "bias") in nnx.to_flat_state(nnx.state(model)).paths
    assert np.array_equal(model.conv1(x), before + np.arange(8, dtype=np.float32))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_every_kind_of_key_will_do_old_and_new(impl: str):
    new = jax.random.key(1, impl=impl)
    shape = (3, 3, 4, 6)
    first = kaiming_normal(Draws(new).params(), shape, jnp.float32)
    old = kaiming_normal(Draws(jax.random.key_data(new)).params(), shape, jnp.float32)
    other = kaiming_normal(
        Draws(jax.random.key(2, impl=impl)).params(), shape, jnp.float32
    )
    assert np.array_equal(first, old)
    assert not np.array_equal(first, other)


def test_no_two_arrays_and_no_two_blocks_of_one_are_alike(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(draws, "_BLOCK", 64)
    stream = Draws(jax.random.key(0))
    init = uniform(1.0)
    a, b = (np.asarray(init(stream.params(), (4, 64), jnp.float32)) for _ in range(2))
    rows = {row.tobytes() for row in (*a, *b)}
    assert len(rows) == 8


def test_large_kernels_have_the_distribution_over_all_their_blocks():
    layers = Layers(config=TINY, rngs=nnx.Rngs(0))
    kernel = np.asarray(layers.conv(256, 512, 3).kernel[...], np.float64).ravel()
    assert kernel.size > 4 * draws._BLOCK
    deviation = (2 / (9 * 512)) ** 0.5
    for part in np.array_split(kernel, 9):
        assert abs(part.std() / deviation - 1) < 0.01
        assert abs(part.mean()) < 5 * deviation / part.size**0.5


def test_no_two_variables_share_memory():
    model = _create(config=TINY.replace(widths=(64, 64)))
    leaves = jax.tree.leaves(nnx.state(model))
    addresses = [leaf.unsafe_buffer_pointer() for leaf in leaves]
    assert len(set(addresses)) == len(addresses)


def test_a_new_network_can_be_trained_by_donation():
    model = _create(config=TINY)
    graph, state = nnx.split(model)
    before = parity.state_dict(model)

    @jax.jit
    def shift(state: Any) -> Any:
        return jax.tree.map(lambda v: v + jnp.ones((), v.dtype), state)

    donating = jax.jit(shift, donate_argnums=0)
    after = parity.state_dict(nnx.merge(graph, donating(state)))
    for name, value in before.items():
        if name.endswith("weight"):
            np.testing.assert_array_equal(after[name], value + np.float32(1))
