"""Networks of others, each as people write it in its framework, get a right verdict.

Every pair here is equal, and small; what is wrong is put into one of them.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
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
from parity.judging.kinks import Kinks
from parity.running.layouts import Layouts
from parity.running.taps import Quantity
from parity.weights.flax_state import own_variables
from tests.support.pairs import (
    IMAGES,
    TRAINING,
    Linen,
    Mine,
    ReLU,
    Same,
    Theirs,
    alike,
    compared,
    pooled,
)

pytestmark = pytest.mark.usefixtures("loose")


# --- where no gradient comes, it is zero ----------------------------------------------


def _detached(net: Any, x: Any) -> Any:
    return pooled(net, x.detach())


def _stopped(net: Any, x: Any) -> Any:
    return pooled(net, jax.lax.stop_gradient(x))


def _beside(net: Any, x: Any) -> Any:
    net.aux(x)  # which no loss uses
    return pooled(net, x)


def _rectified(net: Any, x: Any) -> Any:
    return pooled(net, net.relu(net.same(x)))


UNREACHED = {
    "a view that is worked on in place": (
        Theirs(_rectified, same=nn.Identity(), relu=nn.ReLU(inplace=True)),
        Mine(_rectified, same=Same(), relu=ReLU()),
    ),
    "a head that no loss uses": (
        Theirs(_beside, aux=nn.Conv2d(4, 2, 1)),
        Mine(_beside, aux=nnx.Conv(4, 2, (1, 1), rngs=nnx.Rngs(0))),
    ),
    "a backbone that does not learn": (Theirs(_detached), Mine(_stopped)),
}


@pytest.mark.parametrize("name", UNREACHED)
def test_no_gradient_is_a_gradient_of_zero(name: str):
    found = compared(*UNREACHED[name])
    assert found.ok, found.verdict()


def test_a_gradient_where_torch_has_none_is_a_difference():
    found = compared(Theirs(_detached), Mine(pooled))
    assert not found.ok
    assert "gradient" in found.verdict()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("seed", [189, 206])
def test_a_serial_sum_of_equal_gradients_is_no_divergence(seed: int, threads: int):
    torch.manual_seed(seed)  # one thread lost 20 roundoffs in adding 144 equal terms
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = compared(Theirs(pooled), Mine(pooled))
    finally:
        torch.set_num_threads(before)
    assert found.ok, found.verdict()


# --- what is random, and what raises --------------------------------------------------


def _dropped(net: Any, x: Any) -> Any:
    return pooled(net, net.drop(x))


@pytest.mark.parametrize(("rate", "ok"), [(0.5, True), (0.3, False)])
def test_dropout_is_left_out_and_its_rates_are_compared(rate: float, ok: bool):
    mine = Mine(_dropped, drop=nnx.Dropout(rate, rngs=nnx.Rngs(1)))
    gates = ("G2", *TRAINING)
    found = compared(Theirs(_dropped, drop=nn.Dropout(0.5)), mine, gates=gates)
    assert found.ok == ok, found.verdict()
    assert found.gate("G2").ok
    (row,) = (r for r in found.gate("G2 training").rows if r.kind == "dropout")
    said = "drops 0.5 at random, judged without" if ok else "0.5 in torch, 0.3 in Flax"
    assert said in row.note


def _in_place_on_what_is_saved(net: Any, x: Any) -> Any:
    y = torch.sigmoid(x)
    y.mul_(2)
    return pooled(net, y)


def test_a_network_that_cannot_go_backwards_has_failed():
    found = compared(Theirs(_in_place_on_what_is_saved), Mine(pooled))
    assert "raised RuntimeError" in found.verdict()


def test_graphs_in_buffers_and_what_cannot_be_copied_raise_no_alarm():
    theirs = Theirs(pooled)
    theirs.last = theirs.fc.weight * 2  # as old weight norms have it
    theirs.lock = threading.Lock()  # type: ignore[assignment]
    found = compared(theirs, Mine(pooled), gates=("G2",))
    assert found.ok, found.verdict()


# --- others' structures ---------------------------------------------------------------


def test_rectifiers_are_followed_wherever_they_are_written(
    monkeypatch: pytest.MonkeyPatch,
):
    theirs = Theirs(lambda net, x: pooled(net, functional.relu(x)))
    for _ in range(2):  # a unit of every channel becomes nearly 0
        y = copy.deepcopy(theirs.conv).double()(torch.from_numpy(IMAGES).double())
        with torch.no_grad():
            theirs.get_parameter("conv.bias").sub_(y[0, :, 4, 4].float())
    bodies = (lambda net, x: nnx.relu(x)), (lambda net, x: net.act(x))
    several = [
        Mine(lambda net, x, body=body: pooled(net, body(net, x)), act=ReLU())
        for body in bodies
    ]
    for mine in several:
        found = compared(theirs, mine, gates=("G4", "G2 training"))
        assert found.ok, found.verdict()
        (row,) = found.gate("G4").rows
        assert row.name == "output:kink"
        assert "in Flax" in row.note
    monkeypatch.setattr(Kinks, "of_flax", lambda *_: {})
    assert not compared(theirs, several[0], gates=("G2 training",)).ok


def test_a_rectifier_that_one_network_calls_more_often_raises_no_alarm():
    def both(relu: Any, other: Any) -> Callable[[Any, Any], Any]:
        return lambda net, x: pooled(net, relu(net)(other(net)(x) - 0.1))

    theirs = Theirs(both(lambda n: n.relu, lambda n: n.relu), relu=nn.ReLU())
    mine = Mine(both(lambda n: n.relu, lambda n: nnx.relu), relu=ReLU())
    found = compared(theirs, mine, gates=("G2", "G4", *TRAINING))
    assert found.ok, found.verdict()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)
        self.soft, self.fc = nn.Softmax(-1), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (y.unflatten(2, (2, 4)).transpose(1, 2) for y in self._parts(x))
        y = self.soft(q @ k.transpose(2, 3)) @ v
        return self.fc(y.transpose(1, 2).flatten(2).mean(1))

    def _parts(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.q(x), self.k(x), x


class Softmax(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.softmax(x)


class FlaxAttention(nnx.Module):
    """The same with one kernel for both."""

    def __init__(self):
        self.qk = nnx.Linear(8, 16, rngs=nnx.Rngs(0))
        self.soft, self.fc = Softmax(), nnx.Linear(8, 5, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        parts = (*jnp.split(self.qk(x), 2, -1), x)
        q, k, v = (y.reshape(*x.shape[:2], 2, 4).transpose(0, 2, 1, 3) for y in parts)
        y = self.soft(q @ k.transpose(0, 1, 3, 2)) @ v
        return self.fc(y.transpose(0, 2, 1, 3).reshape(x.shape).mean(1))


SPLIT = {
    "q.weight": lambda w: w["qk.kernel"][:, :8].T,
    "k.weight": lambda w: w["qk.kernel"][:, 8:].T,
    "q.bias": lambda w: w["qk.bias"][:8],
    "k.bias": lambda w: w["qk.bias"][8:],
}


def test_attention_with_split_kernels_passes_although_a_keys_bias_does_nothing():
    theirs, mine = Attention(), FlaxAttention()
    state = parity.state_dict(theirs)
    joined = [state[f"{n}.weight"].T for n in "qk"], [state[f"{n}.bias"] for n in "qk"]
    found = dict(own_variables(mine))
    found["qk.kernel"].set_value(jnp.asarray(np.concatenate(joined[0], 1)))
    found["qk.bias"].set_value(jnp.asarray(np.concatenate(joined[1])))
    words = np.random.default_rng(0).standard_normal((3, 6, 8)).astype(np.float32)
    gates = ("G0", "G2", "G1 training", *TRAINING)
    found = compared(theirs, mine, words, gates, weights=SPLIT)
    assert found.ok, found.verdict()
    judged = {row.name for row in found.gate("G1 training").rows if row.limit}
    assert {"soft", "q.weight", "k.bias"} <= judged
    wrong = {**SPLIT, "q.bias": SPLIT["k.bias"]}
    found = compared(theirs, mine, words, ("G0",), weights=wrong)
    assert found.first_divergence == "q.bias"


class Wrapper(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own
def test_wrappers_are_looked_through_or_the_way_in_is_said():
    theirs = Theirs(pooled)
    mine = alike(theirs, Mine(pooled))
    for wrapped in (nn.DataParallel(theirs), torch.compile(theirs)):
        found = parity.compare_modules(wrapped, mine, IMAGES, gates=("G0", "G2"))
        assert found.ok, found.verdict()
    found = parity.compare_modules(Wrapper(theirs), mine, IMAGES, gates=("G0",))
    assert "pass model.model" in found.verdict()


def test_linen_behind_its_bridge_is_judged_as_one_module():
    theirs = Theirs(pooled)
    images = jnp.asarray(IMAGES.transpose(0, 2, 3, 1))
    bridged = nnx.bridge.ToNNX(Linen(), rngs=nnx.Rngs(0)).lazy_init(images)
    found = compared(theirs, bridged, gates=("G0", "G2", *TRAINING))
    assert found.ok, found.verdict()


# --- state and surface ----------------------------------------------------------------


def _counting(net: Any, x: Any) -> Any:
    net.calls = getattr(net, "calls", 0) + 1
    return pooled(net, x) * (1 if net.calls == 1 else 2)


def test_what_changes_at_the_second_call_is_seen():
    for theirs, mine in (
        (Theirs(_counting), Mine(pooled)),
        (Theirs(pooled), Mine(_counting)),
    ):
        found = compared(theirs, mine, gates=("G2",))
        assert found.first_divergence == "output@2"


def _normed(net: Any, x: Any) -> Any:
    return pooled(net, net.norm(x))


def test_a_norm_that_was_put_into_evaluation_mode_stays_there():
    theirs = Theirs(_normed, norm=nn.BatchNorm2d(4))
    norm = nnx.BatchNorm(4, momentum=0.9, epsilon=1e-5, rngs=nnx.Rngs(0))
    mine = Mine(_normed, norm=norm)
    theirs.get_submodule("norm").eval()
    norm.eval()
    found = compared(theirs, mine)
    assert found.ok, found.verdict()
    statistics = [r for r in found.gate("G2 training").rows if r.kind == "statistic"]
    assert max(row.error for row in statistics) == 0
    norm.train()
    assert not compared(theirs, mine).ok


def test_a_layout_that_shapes_do_not_tell_is_said():
    torch.manual_seed(0)
    model = nn.Conv1d(4, 4, 3, padding=1)
    kernel = model.weight.detach().numpy().transpose(2, 1, 0)
    bias = model.bias.detach().numpy()  # type: ignore

    def function(x: jax.Array) -> jax.Array:  # (n, l, c)
        padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
        return sum(
            (padded[:, i : i + 4] @ kernel[i] for i in range(3)), jnp.array(bias)
        )

    x = np.random.default_rng(0).standard_normal((3, 4, 4)).astype(np.float32)
    gates = ("G1", "G2")
    layouts = {"input": "nlc->ncl", "output": "nlc->ncl"}
    found = parity.compare_modules(model, function, x, layouts=layouts, gates=gates)
    assert found.ok, found.verdict()
    assert found.setting["layouts"] == layouts
    assert not parity.compare_modules(model, function, x, gates=gates).ok
    with pytest.raises(ValueError, match="nlc"):
        parity.compare_modules(model, function, x, layouts={"input": "nlc"})


def test_a_height_and_width_that_are_mixed_up_are_no_layout():
    quantity = Quantity("output", "bn1")
    layouts = Layouts(shapes={quantity: (2, 6, 8, 6)})
    assert layouts.axes(quantity, (2, 6, 8, 6)) == (0, 3, 1, 2)  # (n, w, h, c)
    given = layouts.to_jax("bn1", np.zeros((2, 6, 8, 6)), (2, 6, 8, 6))
    assert given.shape == (2, 8, 6, 6)
    attention = Layouts(shapes={quantity: (2, 3, 5, 5)})
    assert attention.axes(quantity, (2, 3, 5, 5)) == (0, 1, 2, 3)
