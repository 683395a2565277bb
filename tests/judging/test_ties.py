"""Values that are almost equal: rounding decides which of them a pool takes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

import parity
import resnet_flax.layers
from parity.images import random_images
from parity.running.folds import RELU, Pieces
from tests.support.networks import TINY, TINY_BOTTLENECK, flax_like, random_torch
from tests.support.tf32 import tf32


def _nearly_alike(n: int, height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """Rows of one colour each, but for a roundoff."""
    rows = random_images((n, 3, height, 1), seed=seed)
    images = np.repeat(rows, width, axis=3)
    up = np.random.default_rng(seed).integers(0, 2, images.shape, bool)
    return np.where(up, np.nextafter(images, np.float32(np.inf)), images)


@pytest.mark.parametrize("seed", range(3))
def test_a_pool_may_take_either_of_two_values_that_rounding_tells_apart(seed: int):
    config = TINY.replace(stem="7x7")
    model = random_torch(config, seed=seed)
    images = _nearly_alike(2, 33, 33, seed=seed)
    # Without jit: XLA may compute what a pool is given once more where it uses it.
    gates = ("G4", "G2 training eager")
    found = parity.check(model, flax_like(model), images, gates=gates, seed=seed)
    assert found.ok, str(found)
    assert "in torch" in _turned(found)["maxpool"]


def _turned(found: parity.Report) -> dict[str, str]:
    """Where a run took another way than the reference."""
    (gate,) = (gate for gate in found.gates if gate.gate == "G4")
    return {row.name: row.note for row in gate.rows}


class _Pooled(nn.Module):
    """A maximum over the whole map, as heads of retrieval networks have it."""

    def __init__(self, pool: Any) -> None:
        super().__init__()
        self.conv, self.fc, self.pool = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pool(self.conv(x)).flatten(1))


class _FlaxPooled(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 8, (3, 3), padding="VALID", rngs=rngs)
        self.fc = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        y = self.conv(x)
        return self.fc(nnx.max_pool(y, y.shape[1:3])[:, 0, 0])


POOLS: dict[str, Any] = {
    "module": nn.AdaptiveMaxPool2d(1),
    "function": lambda x: nn.functional.adaptive_max_pool2d(x, 1),
    "largest window": lambda x: nn.functional.max_pool2d(x, x.shape[2:]),
}


@pytest.mark.parametrize("pool", POOLS)
def test_pools_of_others_are_followed(pool: str):
    model, twin = _Pooled(POOLS[pool]).train(), _FlaxPooled()
    parity.load_state_dict(twin, parity.state_dict(model))
    for seed in range(3):
        images = _nearly_alike(2, 16, 16, seed=seed)
        found = parity.check(model, twin, images, gates=("G4", "G2 training"))
        assert found.ok, str(found)
        assert any("in torch" in note for note in _turned(found).values())


@pytest.mark.parametrize(
    ("fold", "x", "slopes", "expected"),
    [
        (RELU, [1e-9, -1e-9, 1e-9, -0.5, 0.5], [0, 1, 1, 1, 0], [0, 1, 1, 0, 1]),
        (RELU, [1e-9, -1e-9], [0.5, 0.5], [1, 0]),  # of no rectifier's derivative
        (
            *(Pieces((0.0,), ((0.0, 0.1, 0.0), (0.0, 1.0, 0.0))), [1e-9, -1e-9]),
            *([np.float32(0.1), 1], [0, 1]),
        ),
        (
            Pieces((-1.0, 1.0), ((0.0, 0.0, -1.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))),
            *([-1 - 1e-9, -1 + 1e-9, 1 - 1e-9, 1 + 1e-9, 0.0], [1, 0, 0, 1, 0]),
            [1, 0, 2, 1, 1],
        ),
    ],
)
def test_the_gradient_tells_on_which_side_a_unit_near_a_jump_was(
    fold: Any, x: list[float], slopes: list[float], expected: list[int]
):
    given, after = np.array(x), np.full(len(x), 0.3, np.float32)
    before = np.array(slopes, np.float32) * after
    found = fold.way_of_gradients(given, fold.way(given), before, after, close=1e-6)
    assert found.tolist() == expected
    silent = np.zeros_like(after)
    same = fold.way_of_gradients(given, fold.way(given), before, silent, close=1e-6)
    assert same.tolist() == fold.way(given).tolist()


@jax.custom_vjp
def _cuts_gradients(x: jax.Array) -> jax.Array:
    return jax.nn.relu(x)


def _cut(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    return (jnp.where(x > jnp.asarray(0.1, x.dtype), gradient, 0),)


_cuts_gradients.defvjp(lambda x: (jax.nn.relu(x), x), _cut)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gradient_that_is_cut_above_the_kink_is_no_rounding(
    monkeypatch: pytest.MonkeyPatch, dtype: str
):
    monkeypatch.setattr(
        *(resnet_flax.layers.ReLU, "__call__", lambda self, x: _cuts_gradients(x))
    )
    model = random_torch(TINY).to(getattr(torch, dtype))
    images = random_images((4, 3, 33, 29), seed=0).astype(dtype).astype(np.float32)
    found = parity.check(
        *(model, flax_like(model, dtype), images), gates=("G2 training",)
    )
    assert not found.ok
    # What goes into a rectifier straight from a norm is what its gradient may tell of.
    wrong = {row.name for row in found.gate("G2 training").failures}
    assert {"bn1", "layer1.0.bn1"} <= wrong


@pytest.mark.parametrize(
    ("in_torch", "in_flax"),
    [
        (True, True),
        pytest.param(True, False, marks=pytest.mark.slow),
        pytest.param(False, True, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    ("network", "shape"),
    [
        pytest.param(TINY_BOTTLENECK, (2, 3, 33, 29), id="tiny"),
        pytest.param(
            *("resnet18", (4, 3, 97, 65)), id="resnet18", marks=pytest.mark.exhaustive
        ),
    ],
)
def test_equal_twins_pass_where_products_are_tf32(
    network: Any, shape: tuple[int, int, int, int], in_torch: bool, in_flax: bool
):
    model = random_torch(network)
    images = random_images(shape, seed=0)
    gates = ("G2", "G3", "G4", "G2 training", "G3 training")
    with tf32(in_torch=in_torch, in_flax=in_flax):
        found = parity.check(
            *(model, flax_like(model), images), gates=gates, precision="tf32"
        )
    assert found.ok, str(found)
    assert found.setting["arithmetic"] == "tf32"
    worst = max(
        row.figures[side]["l2"]
        for gate in found.gates
        if gate.gate == "G2"
        for row in gate.rows
        for side, rounds in (("torch", in_torch), ("flax", in_flax))
        if rounds
    )
    assert worst > 2.0**-13
