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

import parity
from parity.images import random_images
from tests.support.pairs import IMAGES, Mine, Theirs, alike, compared, pooled

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


def _both_halves(net: Any, x: Any) -> Any:
    small, large = net.halves(x)
    net.says(x)
    return pooled(net, small + large)


class Halves(nn.Module):
    """Gives two maps."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x / 4, x.tanh()


class FlaxHalves(nnx.Module):
    def __init__(self, by: float = 4.0):
        self.by = by

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return x / self.by, jnp.tanh(x)


class Says(nn.Module):
    """Gives nothing."""

    def forward(self, x: torch.Tensor) -> None:
        assert x.ndim == 4


class FlaxSays(nnx.Module):
    def __call__(self, x: jax.Array) -> None:
        assert x.ndim == 4


def test_modules_inside_that_give_a_tuple_or_nothing_are_judged_with_what_is_around():
    theirs = Theirs(_both_halves, halves=Halves(), says=Says())
    gates = ("G2", "G2 isolated", "G2 training", "G2 training isolated")
    mine = Mine(_both_halves, halves=FlaxHalves(), says=FlaxSays())
    found = compared(theirs, mine, gates=gates)
    assert found.ok, found.verdict()
    for gate in ("G2 isolated", "G2 training isolated"):
        notes = {row.name: row.note for row in found.gate(gate).rows if row.note}
        assert notes
        assert all("halves" in name for name in notes)
        assert {*notes.values()} == {
            "is given, or gives, more than one array: not judged alone"
        }
    wrong = Mine(_both_halves, halves=FlaxHalves(4.1), says=FlaxSays())
    found = compared(theirs, wrong, gates=("G2", "G2 isolated"))
    assert found.first_divergence == "halves:0"
    assert found.culprits == ("output",)


def test_a_graph_in_a_registered_buffer_raises_no_alarm():
    theirs, mine = Theirs(pooled), Mine(pooled)
    scaled = theirs.fc.weight * 2  # as old weight norms have it
    theirs.register_buffer("last", scaled, persistent=False)
    assert theirs.get_buffer("last").grad_fn is not None
    found = compared(theirs, mine, gates=("G0", "G2"))
    assert found.ok, found.verdict()
    assert theirs.get_buffer("last") is scaled


class Joined(nn.Module):
    """One kernel for two parts."""

    def __init__(self):
        super().__init__()
        self.both, self.fc = nn.Linear(6, 16), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, other = self.both(x).chunk(2, -1)
        return self.fc(one * other.tanh())


class FlaxApart(nnx.Module):
    """A kernel for each."""

    def __init__(self):
        self.one, self.other = (nnx.Linear(6, 8, rngs=nnx.Rngs(i)) for i in (0, 1))
        self.fc = nnx.Linear(8, 5, rngs=nnx.Rngs(2))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc(self.one(x) * jnp.tanh(self.other(x)))


def _side_by_side(*names: str) -> dict[str, Any]:
    return {
        "both.weight": lambda w: np.concatenate([w[f"{n}.kernel"].T for n in names]),
        "both.bias": lambda w: np.concatenate([w[f"{n}.bias"] for n in names]),
    }


def test_a_kernel_that_is_joined_in_torch_and_apart_in_flax_is_judged():
    theirs, mine = Joined(), FlaxApart()
    weight, bias = (theirs.both.weight.detach(), theirs.both.bias.detach())
    with torch.no_grad():
        for layer, w, b in zip(
            (mine.one, mine.other), weight.chunk(2), bias.chunk(2), strict=True
        ):
            layer.kernel.set_value(jnp.asarray(w.T.numpy()))
            assert layer.bias is not None
            layer.bias.set_value(jnp.asarray(b.numpy()))
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    gates = ("G0", "G2", "G1 training", "G2 training")
    weights = _side_by_side("one", "other")
    found = compared(theirs, mine, x, gates, weights=weights)
    assert found.ok, found.verdict()
    judged = {row.name for row in found.gate("G1 training").rows if row.limit}
    assert {"both.weight", "both.bias", "fc.weight"} <= judged
    found = compared(theirs, mine, x, ("G0",), weights=_side_by_side("other", "one"))
    assert [r.name for r in found.gate("G0").failures] == ["both.weight", "both.bias"]


class Distributed(nn.Module):
    """Runs another network, as DistributedDataParallel does."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x)


class FlaxWrapper(nnx.Module):
    def __init__(self, net: nnx.Module):
        self.net = net

    def __call__(self, x: jax.Array) -> Any:
        return self.net(x)  # type: ignore[operator]


def test_a_wrapper_in_either_framework_is_said_with_the_way_in():
    theirs = Theirs(pooled)
    mine = alike(theirs, Mine(pooled))
    averaged = torch.optim.swa_utils.AveragedModel(theirs)
    assert parity.compare_modules(averaged, mine, IMAGES, gates=("G0", "G2")).ok
    for pair, said in (
        ((Distributed(theirs), mine), "in torch: pass model.module"),
        ((theirs, FlaxWrapper(mine)), "in Flax: pass model.net"),
    ):
        found = parity.compare_modules(*pair, IMAGES, gates=("G0",))
        assert not found.ok
        assert said in found.verdict()
        assert len(found.gate("G0").rows) == 1


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


def _normed(net: Any, x: Any) -> Any:
    return pooled(net, net.norm(x))


NORMS = {
    # Without momentum: Flax's running variance is another one.
    "batch": (
        lambda: nn.BatchNorm2d(4, momentum=0.0),
        lambda: nnx.BatchNorm(4, momentum=1.0, epsilon=1e-5, rngs=nnx.Rngs(0)),
    ),
    "group": (
        lambda: nn.GroupNorm(2, 4),
        lambda: nnx.GroupNorm(4, num_groups=2, epsilon=1e-5, rngs=nnx.Rngs(0)),
    ),
}


@pytest.mark.parametrize("kind", NORMS)
def test_a_norm_before_a_mean_raises_no_alarm_at_large_maps(kind: str):
    # Gradients are equal throughout an image: serial sums lose the same at each step.
    theirs, mine = (make() for make in NORMS[kind])
    pair = Theirs(_normed, norm=theirs), Mine(_normed, norm=mine)
    found = compared(*pair, random_images((2, 3, 64, 60), seed=1), ("G2 training",))
    assert found.ok, found.verdict()
    rows = {(row.kind, row.name): row for row in found.gate("G2 training").rows}
    assert 1e-6 < rows["gradient", "conv"].limit < 1e-2


class Softmax(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.softmax(-1)


class FlaxSoftmax(nnx.Module):
    def __init__(self, axis: int):
        self.axis = axis

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.softmax(x, self.axis)


def _attended(net: Any, x: Any) -> Any:
    """Four heads over four words: (n, 4, 4, 4)."""
    y = net.q(x).reshape(len(x), 4, 4, 2).swapaxes(1, 2)
    return (net.soft(y @ y.swapaxes(2, 3)) @ y).sum((1, 2))


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.soft = nn.Linear(8, 8), Softmax()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _attended(self, x)


class FlaxHeads(nnx.Module):
    def __init__(self, axis: int):
        self.q = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
        self.soft = FlaxSoftmax(axis)

    def __call__(self, x: jax.Array) -> jax.Array:
        return _attended(self, x)


@pytest.mark.parametrize(
    ("axis", "said"), [(-1, "read in the layout that fits"), (-2, "taken for (n, h, w")]
)
def test_a_layout_that_shapes_do_not_tell_is_told_by_values(axis: int, said: str):
    words = np.random.default_rng(0).standard_normal((3, 4, 8)).astype(np.float32)
    found = compared(Heads(), FlaxHeads(axis), words, ("G2",))
    assert found.ok == (axis == -1), found.verdict()
    assert any(f"of soft are equal: {said}" in line for line in found.hidden)
    assert ("layouts" in found.setting) == found.ok
    if not found.ok:
        assert found.first_divergence == "soft"
