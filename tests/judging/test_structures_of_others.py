"""Parts of networks of others that are not in ours: tied weights, gates, odd norms.

Every pair here is equal, and small.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

from tests.support.pairs import Mine, Theirs, compared, pooled

pytestmark = pytest.mark.usefixtures("loose")


def test_a_parameter_without_axes_is_judged():
    def body(net: Any, x: Any) -> Any:
        return pooled(net, x * net.gate(x))

    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.alpha = nn.Parameter(torch.tensor(0.3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.alpha

    class FlaxGate(nnx.Module):
        def __init__(self):
            self.alpha = nnx.Param(jnp.zeros(()))

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.alpha[...]

    theirs, mine = Theirs(body, gate=Gate()), Mine(body, gate=FlaxGate())
    found = compared(theirs, mine, gates=("G0", "G2"))
    assert found.ok, found.verdict()


def test_weights_tied_to_an_embedding_are_judged():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.inner = nn.Embedding(11, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.linear(self.inner(self.embed(x)), self.embed.weight)

    class FlaxTied(nnx.Module):
        def __init__(self):
            self.embed = nnx.Embed(11, 8, rngs=nnx.Rngs(0))
            self.inner = nnx.Linear(8, 8, rngs=nnx.Rngs(0))

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.embed.attend(self.inner(self.embed(x)))

    words = np.random.default_rng(0).integers(0, 11, (3, 7))
    gates = ("G2 training", "G2 training isolated")
    found = compared(Tied(), FlaxTied(), words, gates)
    assert found.ok, found.verdict()


@pytest.mark.parametrize("in_place", [False, True])
def test_torchs_hardsigmoid_is_judged_in_float64(in_place: bool):
    def body(net: Any, x: Any) -> Any:
        y = net.fc(x.mean((2, 3)) if isinstance(x, torch.Tensor) else x.mean((1, 2)))
        return net.gate(4 * y)

    class Gate(nnx.Module):
        def __call__(self, x: jax.Array) -> jax.Array:
            return nnx.hard_sigmoid(x)

    theirs = Theirs(body, gate=nn.Hardsigmoid(inplace=in_place))
    mine = Mine(body, gate=Gate())
    found = compared(theirs, mine, gates=("G1 training isolated",))
    assert found.ok, found.verdict()
