"""The fast maximum over windows against XLA's own, and its gradient against torch's."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_flax import pooling
from resnet_flax.pooling import max_pool
from tests.support.examples import examples


@st.composite
def _cases(draw: st.DrawFn) -> tuple[np.ndarray, tuple[Any, ...]]:
    """Draws maps of few values, so that many are equal, and windows of every kind."""
    window = draw(st.sampled_from([(3, 3), (1, 3), (2, 2), (2, 3)]))
    strides = draw(st.sampled_from([(2, 2), (1, 1), (1, 2), (3, 2)]))
    padding = tuple((draw(st.integers(0, n // 2)),) * 2 for n in window)
    shape = [draw(st.integers(1, 2)), *(draw(st.integers(3, 9)) for _ in "hw"), 3]
    random = np.random.default_rng(draw(st.integers(0, 9)))
    x = random.integers(-3, 1, shape).astype(np.float32)
    if draw(st.booleans()):
        x[random.random(shape) < 0.1] = np.nan
    return x, (window, strides, padding)


@given(case=_cases())
@settings(max_examples=examples(25))
def test_maximum_is_xlas_and_its_gradient_torchs_at_ties_too(case):
    x, (window, strides, padding) = case
    y, back = jax.vjp(lambda x: max_pool(x, window, strides, padding), jnp.asarray(x))
    expected = nnx.max_pool(jnp.asarray(x), window, strides, padding)  # type: ignore
    np.testing.assert_array_equal(y, expected)
    # Powers of two: their sums are exact in every order.
    gradient = 2.0 ** np.random.default_rng(0).integers(0, 8, y.shape)
    gradient = gradient.astype(np.float32)
    theirs = torch.from_numpy(x.transpose(0, 3, 1, 2)).requires_grad_()
    pads = tuple(low for low, _ in padding)
    out = torch.nn.functional.max_pool2d(theirs, window, strides, pads)
    out.backward(torch.from_numpy(gradient.transpose(0, 3, 1, 2)))
    assert theirs.grad is not None
    wanted = theirs.grad.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(back(jnp.asarray(gradient))[0], wanted)


def test_elsewhere_than_on_a_cpu_the_maximum_stays_xlas(monkeypatch):
    def primitives() -> str:
        window = ((3, 3), (2, 2), ((1, 1), (1, 1)))
        return str(
            jax.make_jaxpr(lambda x: max_pool(x, *window))(jnp.ones((1, 9, 9, 4)))
        )

    assert "reduce_window" not in primitives()
    monkeypatch.setattr(pooling.jax, "default_backend", lambda: "gpu")
    assert "reduce_window" in primitives()
