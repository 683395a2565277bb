"""Networks of others, each as people write it in its framework, get a right verdict.

Every pair here is equal, and small; what is wrong is put into one of them.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from torch import nn
from torch.nn import functional

import parity
from parity.images import random_images
from parity.judging.kinks import Kinks
from parity.running.layouts import Layouts
from parity.running.taps import Quantity
from parity.weights.flax_state import own_variables
from parity.weights.names import to_flax, torch_name
from tests.support.networks import TINY, flax_like, random_torch

IMAGES = random_images((2, 3, 9, 8), seed=1)
TRAINING = ("G2 training", "G2 training isolated")


@pytest.fixture(autouse=True)
def loose() -> Any:
    """Others' networks need not be strict."""
    torch.manual_seed(0)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def conv() -> nn.Module:
    return nn.Conv2d(3, 4, 3, padding=1)


def flax_conv() -> nnx.Module:
    return nnx.Conv(3, 4, (3, 3), padding=((1, 1), (1, 1)), rngs=nnx.Rngs(0))


class Theirs(nn.Module):
    """A convolution, what a test puts behind it, and a classifier."""

    def __init__(self, body: Callable[[Any, torch.Tensor], Any], **parts: nn.Module):
        super().__init__()
        self.conv, self.body = conv(), body
        for name, part in parts.items():
            self.add_module(name, part)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> Any:
        return self.body(self, self.conv(x))


class Mine(nnx.Module):
    def __init__(self, body: Callable[[Any, jax.Array], Any], **parts: nnx.Module):
        self.conv, self.body = flax_conv(), body
        for name, part in parts.items():
            setattr(self, name, part)
        self.fc = nnx.Linear(4, 5, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> Any:
        return self.body(self, self.conv(x))


class ReLU(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.relu(x)


class Same(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return x


def alike(theirs: nn.Module, mine: Any) -> Any:
    """Gives the second the first's weights, where the names are the same."""
    state = parity.state_dict(theirs)
    for own, variable in own_variables(mine):
        leaf, name = own.rpartition(".")[2], torch_name(own, {})
        if name in state:
            variable.set_value(jnp.asarray(to_flax(leaf, state[name])))
    return mine


def compared(
    theirs: nn.Module,
    mine: Any,
    inputs: Any = IMAGES,
    gates: Sequence[str] = TRAINING,
    **wishes: Any,
) -> parity.Report:
    if isinstance(mine, nnx.Module):
        alike(theirs, mine)
    return parity.compare_modules(theirs, mine, inputs, gates=gates, **wishes)


def _pooled(net: Any, x: Any) -> Any:
    axes = (2, 3) if isinstance(x, torch.Tensor) else (1, 2)
    return net.fc(x.mean(axes))


# --- where no gradient comes, it is zero ----------------------------------------------


def _detached(net: Any, x: Any) -> Any:
    return _pooled(net, x.detach())


def _stopped(net: Any, x: Any) -> Any:
    return _pooled(net, jax.lax.stop_gradient(x))


def _beside(net: Any, x: Any) -> Any:
    net.aux(x)  # which no loss uses
    return _pooled(net, x)


def _rectified(net: Any, x: Any) -> Any:
    return _pooled(net, net.relu(net.same(x)))


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
    found = compared(Theirs(_detached), Mine(_pooled))
    assert not found.ok
    assert "gradient" in found.verdict()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("seed", [189, 206])
def test_a_serial_sum_of_equal_gradients_is_no_divergence(seed: int, threads: int):
    torch.manual_seed(seed)  # one thread lost 20 roundoffs in adding 144 equal terms
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = compared(Theirs(_pooled), Mine(_pooled))
    finally:
        torch.set_num_threads(before)
    assert found.ok, found.verdict()


# --- what is random, and what raises --------------------------------------------------


def _dropped(net: Any, x: Any) -> Any:
    return _pooled(net, net.drop(x))


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
    return _pooled(net, y)


def test_a_network_that_cannot_go_backwards_has_failed():
    found = compared(Theirs(_in_place_on_what_is_saved), Mine(_pooled))
    assert "raised RuntimeError" in found.verdict()


def test_graphs_in_buffers_and_what_cannot_be_copied_raise_no_alarm():
    theirs = Theirs(_pooled)
    theirs.last = theirs.fc.weight * 2  # as old weight norms have it
    theirs.lock = threading.Lock()  # type: ignore[assignment]
    found = compared(theirs, Mine(_pooled), gates=("G2",))
    assert found.ok, found.verdict()


# --- others' structures ---------------------------------------------------------------


def test_rectifiers_are_followed_wherever_they_are_written(
    monkeypatch: pytest.MonkeyPatch,
):
    theirs = Theirs(lambda net, x: _pooled(net, functional.relu(x)))
    for _ in range(2):  # a unit of every channel becomes nearly 0
        y = copy.deepcopy(theirs.conv).double()(torch.from_numpy(IMAGES).double())
        with torch.no_grad():
            theirs.get_parameter("conv.bias").sub_(y[0, :, 4, 4].float())
    bodies = (lambda net, x: nnx.relu(x)), (lambda net, x: net.act(x))
    several = [
        Mine(lambda net, x, body=body: _pooled(net, body(net, x)), act=ReLU())
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
        return lambda net, x: _pooled(net, relu(net)(other(net)(x) - 0.1))

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
    theirs = Theirs(_pooled)
    mine = alike(theirs, Mine(_pooled))
    for wrapped in (nn.DataParallel(theirs), torch.compile(theirs)):
        found = parity.compare_modules(wrapped, mine, IMAGES, gates=("G0", "G2"))
        assert found.ok, found.verdict()
    found = parity.compare_modules(Wrapper(theirs), mine, IMAGES, gates=("G0",))
    assert "pass model.model" in found.verdict()


def test_linen_behind_its_bridge_is_judged_as_one_module():
    theirs = Theirs(_pooled)
    images = jnp.asarray(IMAGES.transpose(0, 2, 3, 1))
    bridged = nnx.bridge.ToNNX(Linen(), rngs=nnx.Rngs(0)).lazy_init(images)
    found = compared(theirs, bridged, gates=("G0", "G2", *TRAINING))
    assert found.ok, found.verdict()


# --- functions ------------------------------------------------------------------------


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = linen.Conv(4, (3, 3), padding=((1, 1), (1, 1)), name="conv")(x)
        return linen.Dense(5, name="fc")(x.mean((1, 2)))


def variables_of(theirs: nn.Module, factor: float = 1.0) -> dict[str, Any]:
    state = parity.state_dict(theirs)
    kernel, bias = state["conv.weight"].transpose(2, 3, 1, 0), state["conv.bias"]
    fc = {"kernel": state["fc.weight"].T * factor, "bias": state["fc.bias"]}
    return {"params": {"conv": {"kernel": kernel, "bias": bias}, "fc": fc}}


OF_FUNCTIONS = ("G1", "G2", "G3", "G5", "G1 training")


@pytest.mark.parametrize("hidden", [False, True])
def test_a_function_is_judged_by_its_result_and_its_inputs_gradient(hidden: bool):
    theirs = Theirs(_pooled)
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
    theirs = Theirs(_pooled)
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


# --- state and surface ----------------------------------------------------------------


def _counting(net: Any, x: Any) -> Any:
    net.calls = getattr(net, "calls", 0) + 1
    return _pooled(net, x) * (1 if net.calls == 1 else 2)


def test_what_changes_at_the_second_call_is_seen():
    for theirs, mine in (
        (Theirs(_counting), Mine(_pooled)),
        (Theirs(_pooled), Mine(_counting)),
    ):
        found = compared(theirs, mine, gates=("G2",))
        assert found.first_divergence == "output@2"


def _normed(net: Any, x: Any) -> Any:
    return _pooled(net, net.norm(x))


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


def test_maps_that_only_another_method_gives_are_judged():
    model = random_torch(TINY)
    twin = flax_like(model)
    images = random_images((2, 3, 33, 40), seed=1)
    found = parity.check(model, twin, images, gates=("G1",))
    assert found.ok, found.verdict()

    class Wrong(type(twin)):
        def features(self, x: jax.Array) -> Any:
            return jax.tree.map(lambda y: 1.001 * y, super().features(x))

    twin.__class__ = Wrong
    found = parity.check(model, twin, images, gates=("G1",))
    assert not found.ok
    assert all("features" in row.name for row in found.gate("G1").failures)


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
