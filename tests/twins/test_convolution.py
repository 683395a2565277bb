"""The fast forms of convolutions against XLA's own, which are the definition."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from jax import lax

from parity.judging.distance import deviation
from parity.judging.tolerances import UNIT_ROUNDOFF
from resnet_flax import convolution
from resnet_flax.convolution import convolve
from tests.support.examples import examples

LAYOUT = ("NHWC", "HWIO", "NHWC")


@pytest.fixture
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def _xla(x: Any, kernel: Any, strides: Any, padding: Any, **settings: Any) -> jax.Array:
    return lax.conv_general_dilated(
        *(x, kernel, strides, padding), dimension_numbers=LAYOUT, **settings
    )


@st.composite
def _cases(draw: st.DrawFn) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Draws arguments: 1x1 and grouped, of every stride, dilation, padding and size."""
    groups = draw(st.sampled_from([1, 1, 2, 3, 5, 8, 12, 32]))
    window = (1, 1) if groups == 1 else draw(st.sampled_from([(3, 3), (1, 3), (1, 1)]))
    width = draw(st.sampled_from([1, 2, 4, 7, 40] if groups < 9 else [1, 4]))
    out = groups * draw(st.integers(1, 3))
    dilation = draw(st.sampled_from([(1, 1), (2, 2), (1, 3)]))
    sides = st.integers(0, 2)
    padding: Any = draw(st.sampled_from(["SAME", "VALID", None, None]))
    if padding is None:
        padding = tuple((draw(sides), draw(sides)) for _ in window)
        padding = ((0, 0), (0, 0)) if groups == 1 and draw(st.booleans()) else padding
    # No smaller than the window, dilated.
    size = [
        draw(st.integers((n - 1) * d + 1, 9))
        for n, d in zip(window, dilation, strict=True)
    ]
    random = np.random.default_rng(draw(st.integers(0, 9)))
    x = random.standard_normal((draw(st.integers(1, 3)), *size, groups * width))
    kernel = random.standard_normal((*window, width, out))
    strides = draw(st.sampled_from([(1, 1), (2, 2), (1, 2), (3, 1)]))
    settings = {"rhs_dilation": dilation, "feature_group_count": groups}
    return (x, kernel, strides, padding), settings


def _results(
    convolution: Callable[..., jax.Array], arguments: tuple[Any, ...], settings: Any
) -> list[jax.Array]:
    """The output and both gradients of a loss that is not linear in it."""
    x, kernel, *rest = arguments

    def loss(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = convolution(x, kernel, *rest, **settings)
        return jnp.sin(y).sum(), y

    gradients, y = jax.grad(loss, argnums=(0, 1), has_aux=True)(x, kernel)
    return [y, *gradients]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("jit", [False, True])
@given(case=_cases())
@hypothesis_settings(max_examples=examples(15))
def test_every_convolution_and_its_gradients_are_xlas(case, jit: bool):
    (x, kernel, *rest), settings = case
    arguments = (jnp.asarray(x), jnp.asarray(kernel), *rest)

    def run(convolution: Callable[..., jax.Array]) -> list[jax.Array]:
        function = partial(_results, convolution, settings=settings)
        if not jit:
            return function(arguments)
        return jax.jit(lambda x, k: function((x, k, *rest)))(*arguments[:2])

    for found, expected in zip(run(convolve), run(_xla), strict=True):
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype == jnp.float64
        assert deviation(np.asarray(found), np.asarray(expected)).l2 <= 1e-13


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize(
    ("window", "groups", "width"), [(3, 32, 4), (3, 4, 16), (3, 2, 40), (1, 1, 64)]
)
def test_other_dtypes_are_rounded_as_xlas_are(dtype, window, groups, width: int):
    random = np.random.default_rng(0)
    x = jnp.asarray(random.standard_normal((2, 9, 8, groups * width)), dtype)
    kernel = random.standard_normal((window, window, width, 2 * groups))
    arguments = (
        x,
        jnp.asarray(kernel / window, dtype),
        (2, 2),
        [(window // 2,) * 2] * 2,
    )
    settings = {"feature_group_count": groups}
    results = zip(
        _results(convolve, arguments, settings),
        _results(_xla, arguments, settings),
        strict=True,
    )
    for found, expected in results:
        assert found.dtype == expected.dtype == dtype
        exact = np.asarray(expected, np.float64)
        assert (
            deviation(np.asarray(found, np.float64), exact).l2
            <= 16 * UNIT_ROUNDOFF[dtype]
        )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("groups", [1, 4])
def test_forward_mode_and_second_derivatives_are_xlas(groups: int):
    random = np.random.default_rng(0)
    x = jnp.asarray(random.standard_normal((1, 5, 4, 8)))
    window = 1 if groups == 1 else 3
    kernel = jnp.asarray(random.standard_normal((window, window, 8 // groups, 4)))
    padding = [(window // 2,) * 2] * 2

    def loss(convolution: Callable[..., jax.Array], kernel: jax.Array) -> jax.Array:
        y = convolution(x, kernel, (1, 1), padding, feature_group_count=groups)
        return jnp.sin(y).sum()

    found, expected = (jax.hessian(partial(loss, f))(kernel) for f in (convolve, _xla))
    assert deviation(np.asarray(found), np.asarray(expected)).l2 <= 1e-13


def _primitives(*args: Any, **settings: Any) -> str:
    return str(
        jax.make_jaxpr(lambda x, k: convolve(x, k, *args, **settings))(
            jnp.ones((1, 6, 6, 64)),
            jnp.ones((1, 1, 64 // settings["feature_group_count"], 64)),
        )
    )


def test_no_images_give_no_maps():
    for groups in (1, 2):
        x, kernel = jnp.zeros((0, 5, 4, 8)), jnp.zeros((1, 1, 8 // groups, 6))
        found = convolve(x, kernel, (1, 1), "VALID", feature_group_count=groups)
        assert found.shape == (0, 5, 4, 6)


def test_a_1x1_is_a_product_and_groups_are_joined_to_32_channels():
    unpadded = ((0, 0), (0, 0))
    product = _primitives((2, 2), unpadded, feature_group_count=1)
    assert "dot_general" in product
    assert "conv_general_dilated" not in product
    grouped = _primitives((1, 1), unpadded, feature_group_count=16)
    assert grouped.count("conv_general_dilated[") == 2
    assert "feature_group_count=16" not in grouped


@pytest.mark.parametrize(
    ("groups", "settings"),
    [
        (1, {"padding": ((1, 0), (0, 0))}),
        (1, {"lhs_dilation": (2, 2)}),
        (2, {"lhs_dilation": (2, 2)}),
        (2, {"preferred_element_type": jnp.float32}),
    ],
)
def test_whatever_is_unusual_is_left_to_xla(groups: int, settings: dict[str, Any]):
    padding = settings.pop("padding", ((0, 0), (0, 0)))
    found = _primitives((1, 1), padding, feature_group_count=groups, **settings)
    assert found.count("conv_general_dilated[") == 1
    assert f"feature_group_count={groups}" in found


def test_elsewhere_than_on_a_cpu_the_convolution_stays_xlas(monkeypatch):
    monkeypatch.setattr(convolution.jax, "default_backend", lambda: "gpu")
    for groups in (1, 16):
        found = _primitives((1, 1), ((0, 0), (0, 0)), feature_group_count=groups)
        assert found.count("conv_general_dilated[") == 1
        assert "dot_general" not in found
