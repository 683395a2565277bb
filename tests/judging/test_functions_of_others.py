"""Functions of JAX, and networks of several inputs and outputs, get a right verdict."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

import parity
from parity.weights.flax_state import own_variables
from tests.support.pairs import (
    TRAINING,
    Linen,
    Theirs,
    compared,
    pooled,
)

pytestmark = pytest.mark.usefixtures("loose")


def variables_of(theirs: nn.Module, factor: float = 1.0) -> dict[str, Any]:
    state = parity.state_dict(theirs)
    kernel, bias = state["conv.weight"].transpose(2, 3, 1, 0), state["conv.bias"]
    fc = {"kernel": state["fc.weight"].T * factor, "bias": state["fc.bias"]}
    return {"params": {"conv": {"kernel": kernel, "bias": bias}, "fc": fc}}


OF_FUNCTIONS = ("G1", "G2", "G3", "G5", "G1 training")


@pytest.mark.parametrize("hidden", [False, True])
def test_a_function_is_judged_by_its_result_and_its_inputs_gradient(hidden: bool):
    theirs = Theirs(pooled)
    known = variables_of(theirs)
    function: Any = partial(Linen().apply, known)
    if hidden:
        function = jax.jit(lambda x: Linen().apply(known, x))
    found = compared(theirs, function, gates=OF_FUNCTIONS)
    assert found.ok, found.verdict()
    assert not any(gate.skipped for gate in found.gates)
    kinds = {row.kind for row in found.gate("G1 training").rows}
    assert kinds == {"output", "loss", "input gradient"}


def test_a_function_that_is_wrong_or_whose_gradient_is_is_seen():
    theirs = Theirs(pooled)
    wrong = partial(Linen().apply, variables_of(theirs, 1 + 1e-6))
    assert not compared(theirs, wrong, gates=("G1",)).ok
    right = partial(Linen().apply, variables_of(theirs))

    def halved(x: jax.Array) -> Any:
        return right(x / 2 + jax.lax.stop_gradient(x / 2))

    found = compared(theirs, halved, gates=("G2", "G2 training"))
    assert found.gate("G2").ok
    assert found.gate("G2 training").failures[0].kind == "input gradient"


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.first = nn.Embedding(11, 8), nn.Parameter(torch.ones(1, 1, 8))
        self.fc = nn.Linear(8, 5)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> Any:
        x = self.table(ids) * mask[..., None] + self.first
        return {"scores": self.fc(x.mean(1)), "states": [x]}


class FlaxWords(nnx.Module):
    def __init__(self):
        self.table = nnx.Embed(11, 8, rngs=nnx.Rngs(0))
        self.first = nnx.Param(jnp.zeros((1, 1, 8)))
        self.fc = nnx.Linear(8, 5, rngs=nnx.Rngs(0))

    def __call__(self, ids: jax.Array, mask: jax.Array) -> Any:
        x = self.table(ids) * mask[..., None] + self.first[...]
        return self.fc(x.mean(1)), x


def test_several_inputs_outputs_and_batches_are_compared_and_wishes_are_stated():
    rng = np.random.default_rng(0)
    mask = rng.random((3, 6)).astype(np.float32)
    whole = {"ids": rng.integers(0, 11, (3, 6)), "mask": mask}
    batches = [whole, (whole["ids"][:2], mask[:2])]
    theirs, mine = Words(), FlaxWords()
    mapping = {"output:scores": "output:0", "output:states:0": "output:1"}
    gates = ("G0", "G2", "G5", *TRAINING)
    found = compared(theirs, mine, batches, gates, mapping=mapping)
    assert found.ok, found.verdict()
    judged = {row.name for row in found.gate("G2").rows if row.limit}
    assert {"output:scores", "output:states:0", "table"} <= judged
    bias = dict(own_variables(mine))["fc.bias"]
    bias.set_value(bias.get_value() + 1e-4)
    asked: dict[str, Any] = {"mapping": mapping, "gates": ("G0", "G2")}
    found = parity.compare_modules(theirs, mine, batches, **asked)
    assert not found.ok
    wishes = {"skip": "fc.bias", "rtol": {"fc": 1e-2, "output:*": 1e-2}}
    found = parity.compare_modules(theirs, mine, batches, **asked, **wishes)
    assert found.ok
    assert "but for what was asked: fc.bias skipped, fc granted 0.01" in found.verdict()


@jax.tree_util.register_dataclass
@dataclass
class Dense:
    """A layer that is a pytree and is called, as Equinox's are."""

    weight: jax.Array
    bias: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.weight.T + self.bias


@jax.tree_util.register_dataclass
@dataclass
class Perceptron:
    """A network of such layers, on features (n, c)."""

    first: Dense
    second: Dense

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(jnp.tanh(self.first(x)))


class TheirPerceptron(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).tanh())


@pytest.mark.parametrize("closed", [False, True])
def test_a_pytree_that_is_called_is_judged_by_its_arrays_too(closed: bool):
    theirs = TheirPerceptron()
    state = {name: jnp.asarray(a) for name, a in parity.state_dict(theirs).items()}

    def mine(factor: float = 1.0) -> Any:
        names = ("first", "second")
        layers = [Dense(state[f"{n}.weight"], state[f"{n}.bias"]) for n in names]
        layers[1].bias = layers[1].bias * factor
        net = Perceptron(*layers)
        return (lambda x: net(x)) if closed else net

    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    gates = ("G0", "G1", "G2", "G5", "G1 training")
    weights = {name: lambda w, name=name: w[name] for name in state}
    found = compared(theirs, mine(), x, gates, weights=weights)
    assert found.ok, found.verdict()
    assert not any(gate.skipped for gate in found.gates)
    assert {row.name for row in found.gate("G0").rows} == {*state}
    judged = found.gate("G1 training").rows
    assert {*state} <= {r.name for r in judged if r.kind == "parameter gradient"}
    found = compared(theirs, mine(1 + 1e-6), x, ("G0", "G1"), weights=weights)
    assert not found.gate("G1").ok
    assert [row.name for row in found.gate("G0").failures] == ["second.bias"]
