"""What a check says that it could not have seen, and what it sees of such things."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

import parity
import resnet_torch
from parity.images import random_images
from parity.judging.blind import _of_inputs, _of_state
from resnet_flax import layers
from tests.support.command import Called
from tests.support.networks import TINY, flax_like, random_torch
from tests.support.pairs import IMAGES, Mine, ReLU, Theirs, compared, pooled

RANDOM = random_images((2, 3, 33, 40), seed=1)


def hidden(
    images: np.ndarray = RANDOM, state: Mapping[str, list[float]] = {}
) -> list[str]:
    """What the inputs and a state alone hide."""
    arrays = {name: np.array(values) for name, values in state.items()}
    return [*_of_inputs(images), *_of_state(arrays)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (np.zeros_like, "one value throughout"),
        (lambda x: 0 * x + 0.5, "one value throughout"),
        (lambda x: 0 * x + [[[[1.0]]], [[[2.0]]]], "each input is one value"),
        (lambda x: x[..., :1, :1].repeat(33, 2).repeat(40, 3), "each channel is one"),
        (lambda x: x[:1], "one input"),
        (lambda x: np.concatenate([x[:1], x[:1]]), "all inputs are equal"),
        (lambda x: x[:, :1].repeat(3, 1), "all channels are equal"),
        (lambda x: x[..., :33], "square"),
    ],
)
def test_inputs_that_hide_faults_are_said(
    change: Callable[[np.ndarray], np.ndarray], said: str
):
    (line,) = hidden(change(RANDOM))
    assert said in line


def test_weights_that_hide_faults_are_said():
    norm = {"a.weight": [1.0, 1.0], "a.bias": [0.5, 0.0]}
    norm |= {"a.running_mean": [0.0, 0.0], "a.running_var": [1.0, 1.0]}
    (line,) = hidden(state=norm)
    assert line.startswith("every norm's weight, running_mean, running_var are as")
    norm["b.running_var"] = [1.0, 2.0]
    norm["b.weight"] = [0.0, 0.0]
    first, second = hidden(state=norm)
    assert first.startswith("every norm's running_mean is as created")
    assert second.startswith("b.weight is zero throughout")


class OthersNorm(nn.Module):
    """Of a root mean square, as others write it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight[:, None, None] * x.square().mean().rsqrt()


NORMS = {
    "group": (lambda: nn.GroupNorm(2, 4), "weight, bias are"),
    "layer": (lambda: nn.LayerNorm(8), "weight, bias are"),
    "another's": (OthersNorm, "weight is"),
}


@pytest.mark.parametrize("kind", NORMS)
def test_a_norm_without_statistics_is_said_as_it_is_created(kind: str):
    make, said = NORMS[kind]
    norm = make()

    model = Theirs(lambda net, x: pooled(net, net.norm(x)), norm=norm)

    def found() -> list[str]:
        def other(x: jax.Array) -> jax.Array:
            return jnp.ones((2, 5))

        return [*parity.compare_modules(model, other, IMAGES, gates=("G5",)).hidden]

    (line,) = found()
    assert line.startswith(f"every norm's {said} as created")
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(torch.rand(parameter.shape))
    assert found() == []


def test_nothing_is_said_of_a_random_network_and_random_images():
    model = random_torch(TINY)
    images = 4 * random_images((2, 3, 65, 49), seed=1)
    found = parity.check(model, flax_like(model), images, gates=("G5",))
    assert found.ok
    assert found.hidden == ()


def test_what_one_batch_hides_another_may_show():
    model = random_torch(TINY)
    both = [4 * RANDOM[..., :33], 4 * RANDOM]
    for inputs, lines in ((both[:1], 1), (both, 0)):
        found = parity.compare_modules(model, flax_like(model), inputs, gates=("G5",))
        assert len(found.hidden) == lines


def test_a_network_as_it_is_created_and_small_activations_are_said():
    torch.manual_seed(0)
    model = resnet_torch.create_model(TINY)
    images = 0.1 * random_images((2, 3, 65, 49), seed=1)
    found = parity.check(model, flax_like(model), images, gates=("G5",))
    assert ["every norm's weight, bias" in line for line in found.hidden] == [
        True,
        False,
    ]
    assert "no rectifier gave more than 6" in found.hidden[1]
    assert str(found).endswith(f"not seen: {found.hidden[1]}")
    assert found.hidden[1] in found.to_json()


class TheirReLU(nn.Module):
    """A rectifier of others, that calls the function."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(x)


def _of_function(net: Any, x: Any) -> Any:
    relu: Any = functional.relu if isinstance(x, torch.Tensor) else nnx.relu
    return pooled(net, relu(x))


def _of_module(net: Any, x: Any) -> Any:
    return pooled(net, net.relu(x))


def _six(net: Any, x: Any) -> Any:
    return pooled(net, nnx.relu6(x))


THEIRS = {
    "function": Theirs(_of_function),
    "module": Theirs(_of_module, relu=TheirReLU()),
    "torch's": Theirs(_of_module, relu=nn.ReLU()),
}


@pytest.mark.usefixtures("loose")
@pytest.mark.parametrize("written", THEIRS)
def test_a_rectifier_is_looked_at_wherever_it_is_written(written: str):
    theirs = THEIRS[written]
    (line,) = compared(theirs, Mine(_of_function), gates=("G5",)).hidden
    assert line.startswith("no rectifier that is not judged alone gave more than 6")
    if written == "function":
        assert compared(theirs, Mine(_of_function), gates=("G4",)).hidden == (line,)
    else:
        found = compared(theirs, Mine(_of_module, relu=ReLU()), gates=("G5",))
        (line,) = found.hidden
        assert line.endswith("as relu6, shows in the isolated gates alone")


@pytest.mark.usefixtures("loose")
def test_a_function_that_ends_at_6_shows_where_nothing_is_said_of_it():
    theirs, six = THEIRS["function"], Mine(_six)
    assert compared(theirs, six, gates=("G2", "G2 isolated")).ok
    found = compared(theirs, six, 20 * IMAGES, ("G2",))
    assert found.hidden == ()
    assert not found.ok


class Cut(nnx.Module):
    """A rectifier that lets nothing below a bound through."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.where(x > 0.1, x, 0)


def test_a_rectifier_that_cuts_elsewhere_is_seen_by_the_gate_of_gradients_alone():
    # In training mode the reference follows a run to its side of a kink: not so far.
    model = random_torch(TINY)
    twin = flax_like(model)
    twin.layer2[0].relu = Cut()
    found = parity.check(model, twin, RANDOM, gates=("G1 training",))
    assert not found.ok
    row = found.gate("G1 training").failures[0]
    assert row.name == "layer2.0.relu"
    assert row.note.startswith("kink")


@pytest.mark.parametrize(
    ("dtype", "factor"),
    [
        ("bfloat16", 1.03),
        pytest.param("float16", 1.003, marks=pytest.mark.slow),
    ],
)
def test_a_factor_that_a_half_types_rounding_would_hide_is_seen(
    dtype: str, factor: float
):
    model = random_torch(TINY).to(getattr(torch, dtype))
    twin = flax_like(model, dtype)
    found = parity.check(model, twin, RANDOM, gates=("G2 isolated",))
    assert found.ok, found.verdict()
    norm = twin.layer2[0].bn1

    class Louder(type(norm)):
        def __call__(self, x: jax.Array) -> jax.Array:
            return (super().__call__(x) * factor).astype(x.dtype)

    norm.__class__ = Louder
    found = parity.check(model, twin, RANDOM, gates=("G2 isolated",))
    assert found.culprits == ("layer2.0.bn1",)
    (row,) = found.gate("G2 isolated").failures
    larger = float(re.findall(r"by a factor of (\S+)", row.note)[0])
    assert abs(larger - factor) < 0.2 * (factor - 1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_another_eps_hides_in_one_norm_of_a_half_type_as_the_limits_say(dtype: str):
    model = random_torch(TINY).to(getattr(torch, dtype))
    twin = flax_like(model, dtype)
    twin.layer2[0].bn1.eps = 1e-2
    gates = ("G2 isolated", "G2 training isolated")
    found = parity.check(model, twin, RANDOM, gates=gates)
    seen = () if dtype == "bfloat16" else ("layer2.0.bn1",)
    assert found.culprits == seen


def test_the_commands_default_check_sees_a_rectifier_that_ends_at_6(
    call: Called, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(layers.ReLU, "__call__", lambda self, x: nnx.relu6(x))
    shallow = ("--set", "layers=[1]", "--set", "widths=[16]", "--forward", "--brief")
    out, _ = call("check", "cifar_resnet20", *shallow, code=1)
    assert "; wrong by itself: relu, layer1.0.relu, layer1.0.relu@2\n" in out
