"""Both engines take the same path, and each goes on where the other one was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from parity.judging.distance import deviation
from parity.judging.tolerances import AFTER_STEPS, CEILINGS, UNIT_ROUNDOFF
from parity.weights.digest import differing_bits
from parity.weights.state import load_state_dict
from parity.weights.twins import ABSTRACT
from resnet_spec import TrainingRecipe
from resnet_training.engine import Backend, State
from resnet_training.loader import Loader
from resnet_training.slots import slots_of
from tests.support.runs import drawn, engine_of, learnt, plan_of, recipe, trained

DATA = drawn()
PLAIN: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0}

PARTS: dict[str, TrainingRecipe] = {
    "nesterov, cosine, smoothing": recipe(
        nesterov=True, decay="cosine", milestones=(), warmup_epochs=0.5,
        label_smoothing=0.1,
    ),
    "milestones": recipe(),
    "line": recipe(decay="linear", milestones=(), warmup_epochs=1),
    "adam": recipe(optimizer="adam", learning_rate=1e-3),
    "adamw without decay on norms": recipe(
        optimizer="adamw", learning_rate=1e-3, weight_decay=0.3,
        no_decay=("norm", "bias"),
    ),
    "rmsprop": recipe(
        optimizer="rmsprop", learning_rate=1e-3, momentum=0.9, centered=True
    ),
    "lamb, clipped": recipe(
        optimizer="lamb", learning_rate=1e-2, weight_decay=0.1, eps=1e-6,
        no_decay=("norm",), clip_norm=1.0,
    ),
    "clipping": recipe(clip_norm=0.1),
    "accumulation": recipe(accumulate=2),
    "average": recipe(ema_decay=0.9, ema_every=2),
    "binary cross-entropy": recipe(loss="bce", label_smoothing=0.1),
    "mixup and cutmix": recipe(mixup=0.2, cutmix=1.0, batch=6),
    "mixing with binary cross-entropy": recipe(loss="bce", mixup=0.4, erasing=0.5),
    "erasing": recipe(erasing=0.9),
    "stochastic depth, in parts": recipe(drop_path=0.5, accumulate=2),
    "augmentation": recipe(crop="random-resized", augment="trivial", repeats=2),
}  # fmt: skip


TOGETHER: dict[str, TrainingRecipe] = {
    "sgd": recipe(
        nesterov=True, decay="cosine", milestones=(), warmup_epochs=0.5,
        label_smoothing=0.1, clip_norm=1.0, ema_decay=0.9, ema_every=2,
        drop_path=0.4,
    ),
    "adamw": recipe(
        optimizer="adamw", learning_rate=1e-3, weight_decay=0.3, erasing=0.5,
        no_decay=("norm", "bias"), mixup=0.2, cutmix=1.0,
    ),
    "lamb": recipe(
        optimizer="lamb", learning_rate=1e-2, weight_decay=0.1, eps=1e-6, loss="bce",
        no_decay=("norm",), label_smoothing=0.1, accumulate=2,
    ),
    "rmsprop": recipe(
        optimizer="rmsprop", learning_rate=1e-3, momentum=0.9, centered=True,
        crop="random-resized", augment="trivial", repeats=2, decay="linear",
        milestones=(),
    ),
}  # fmt: skip
"""All parts, several in a run."""


def apart(found: State, expected: State) -> tuple[float, str]:
    """The largest relative difference, and whose it is."""
    assert list(found) == list(expected)
    return max((deviation(found[name], expected[name]).l2, name) for name in expected)


@pytest.mark.parametrize(
    "name", [*TOGETHER, *(pytest.param(n, marks=pytest.mark.slow) for n in PARTS)]
)
def test_the_parts_of_a_recipe_are_one_trajectory_in_float64(name: str):
    one = (TOGETHER | PARTS)[name]
    losses, expected = learnt("torch", one, DATA)
    theirs, found = learnt("flax", one, DATA)
    assert deviation(np.array(theirs), np.array(losses)).l2 <= AFTER_STEPS
    difference, whose = apart(found, expected)
    assert difference <= AFTER_STEPS, whose


# What a part does must show, or its trajectory proves nothing.
@pytest.mark.parametrize("name", sorted(set(PARTS) - {"milestones"}))
def test_each_part_of_a_recipe_changes_the_path(name: str):
    one = PARTS[name]
    usual = recipe(
        batch=one.batch, **{f: getattr(one, f) for f in ("optimizer", "learning_rate")}
    )
    _, with_it = learnt("torch", one, DATA)
    _, without = learnt("torch", usual, DATA)
    states = [
        {n: a for n, a in s.items() if n.startswith(("average/", "conv", "layer"))}
        for s in (with_it, without)
    ]
    if name in ("adam", "rmsprop"):  # the rule itself: against plain steps
        _, without = learnt("torch", recipe(), DATA)
        states[1] = {n: a for n, a in without.items() if n in states[0]}
    common = states[0].keys() & states[1].keys()
    if name == "average":
        assert states[0].keys() - common
        averaged = with_it["average/conv1.weight"]
        assert deviation(averaged, with_it["conv1.weight"]).l2 > 1e-3
        return
    assert max(deviation(states[0][n], states[1][n]).l2 for n in common) > 1e-6


HAND_OVERS: list[tuple[Backend, Backend]] = [
    ("torch", "torch"),
    ("flax", "flax"),
    ("torch", "flax"),
    ("flax", "torch"),
]


@pytest.mark.parametrize("name", TOGETHER)
@pytest.mark.parametrize(("before", "after"), HAND_OVERS)
def test_a_run_goes_on_where_it_was_stopped(name: str, before: Backend, after: Backend):
    one = TOGETHER[name]
    losses, expected = learnt("torch" if before != after else before, one, DATA)
    first, arrays = learnt(before, one, DATA, stop=7)
    second, found = learnt(after, one, DATA, start=7, arrays=arrays)
    if before == after:
        assert [*first, *second] == losses
        assert not differing_bits(found, expected)
    else:
        assert (
            deviation(np.array([*first, *second]), np.array(losses)).l2 <= AFTER_STEPS
        )
        assert apart(found, expected)[0] <= AFTER_STEPS


def _moved(arrays: State, draw: int) -> State:
    """Moves every number up or down by a roundoff of its own dtype."""
    found, rng = {}, np.random.default_rng(draw)
    for name, array in arrays.items():
        to = np.where(rng.integers(0, 2, array.shape, bool), np.inf, -np.inf)
        real = array.dtype.kind == "f"
        found[name] = np.nextafter(array, to.astype(array.dtype)) if real else array
    return found


# Nothing is equal to the bit in float32: what one roundoff at the start does is what
# another order of sums does in every step. At most 3.1 times that was measured.
@pytest.mark.parametrize("name", TOGETHER)
def test_a_hand_over_in_float32_moves_a_run_no_more_than_roundoffs_do(name: str):
    one = replace(TOGETHER[name], dtype="float32")
    _, expected = learnt("torch", one, DATA)
    growth = dict.fromkeys(expected, UNIT_ROUNDOFF["float32"])
    for draw in range(3):
        engine = engine_of("torch", one, DATA)
        engine.restore(_moved(engine.arrays(), draw), 0)
        _, perturbed = trained(engine, one, DATA, 0, engine.plan.steps)
        for array, value in perturbed.items():
            off = deviation(value, expected[array]).l2
            growth[array] = max(growth[array], off)
    for before, after in HAND_OVERS[2:]:
        _, arrays = learnt(before, one, DATA, stop=7)
        assert {a.dtype.name for a in arrays.values()} <= {"float32", "int64"}
        _, found = learnt(after, one, DATA, start=7, arrays=arrays)
        for array, value in found.items():
            off = deviation(value, expected[array]).l2
            assert off <= 16 * growth[array], array


@pytest.mark.parametrize("backend", ["torch", "flax"])
def test_in_bfloat16_the_loss_is_bfloat16s_and_what_is_learnt_float32(
    backend: Backend,
):
    one = replace(TOGETHER["sgd"], dtype="bfloat16", drop_path=0.0)
    losses, found = learnt(backend, one, DATA)
    exact, _ = learnt("torch", replace(one, dtype="float64"), DATA)
    off = deviation(np.array(losses[:1]), np.array(exact[:1])).l2
    assert UNIT_ROUNDOFF["float32"] < off <= CEILINGS["bfloat16"].ceiling
    assert {a.dtype.name for a in found.values()} == {"float32", "int64"}
    first, arrays = learnt(backend, one, DATA, stop=7)
    second, again = learnt(backend, one, DATA, start=7, arrays=arrays)
    assert [*first, *second] == losses
    assert not differing_bits(again, found)
    other: Backend = "flax" if backend == "torch" else "torch"
    third, _ = learnt(other, one, DATA, start=7, arrays=arrays)
    assert deviation(np.array(third[:1]), np.array(second[:1])).l2 <= (
        CEILINGS["bfloat16"].ceiling
    )


RULES: dict[str, TrainingRecipe] = {
    **TOGETHER,
    "adam": recipe(optimizer="adam", learning_rate=1e-3),
    "plain steps": recipe(momentum=0.0, weight_decay=0.0),
    "average": recipe(ema_decay=0.9, optimizer="rmsprop", learning_rate=1e-3),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own imports
def test_compiled_by_torch_it_is_the_same_path_and_handed_over_too():
    one = TOGETHER["adamw"]
    _, expected = learnt("torch", one, DATA)
    engine = engine_of("torch", one, DATA, compiled=True)
    _, half = trained(engine, one, DATA, 0, 7)
    _, found = trained(engine, one, DATA, 7, engine.plan.steps)
    _, other = learnt("flax", one, DATA, start=7, arrays=half)
    for end in (found, other):
        difference, whose = apart(end, expected)
        assert difference <= AFTER_STEPS, whose


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("backend", ["torch", "flax"])
def test_what_is_restored_is_exported_bit_for_bit(name: str, backend: Backend):
    one = RULES[name]
    _, arrays = learnt("torch", one, DATA, stop=3)
    engine = engine_of(backend, one, DATA)
    engine.restore(arrays, 3)
    found = engine.arrays()
    assert list(found) == list(arrays)
    assert not differing_bits(found, arrays)


# Forgotten, the state of each optimiser moves the run by far more than the limit.
@pytest.mark.parametrize("name", TOGETHER)
@pytest.mark.parametrize("backend", ["torch", "flax"])
def test_a_forgotten_state_of_the_optimiser_shows(name: str, backend: Backend):
    one = TOGETHER[name]
    _, expected = learnt("torch", one, DATA)
    _, arrays = learnt("torch", one, DATA, stop=7)
    slots = slots_of(plan_of(one, DATA).optimizer)
    assert slots
    for slot in slots:
        forgotten = {
            n: np.zeros_like(a) if n.startswith(f"optimizer/{slot}/") else a
            for n, a in arrays.items()
        }
        _, found = learnt(backend, one, DATA, start=7, arrays=forgotten)
        assert not apart(found, expected)[0] <= 1e4 * AFTER_STEPS  # or it is none: NaN


# An engine that leaves a part out of its steps: each must be another path.
LEFT_OUT: dict[str, tuple[TrainingRecipe, dict[str, Any]]] = {
    "nesterov": (TOGETHER["sgd"], {"nesterov": False}),
    "smoothing": (TOGETHER["sgd"], {"label_smoothing": 0.0}),
    "warm-up": (TOGETHER["sgd"], {"warmup_epochs": 0.0}),
    "cosine": (TOGETHER["sgd"], {"decay": "constant"}),
    "clipping": (recipe(clip_norm=0.1), {"clip_norm": None}),
    "average": (TOGETHER["sgd"], {"ema_every": 1}),
    "stochastic depth": (TOGETHER["sgd"], {"drop_path": 0.0}),
    "milestones": (recipe(), {"decay": "constant", "milestones": ()}),
    "line": (TOGETHER["rmsprop"], {"decay": "constant"}),
    "weight decay": (recipe(), {"weight_decay": 0.0}),
    "momentum": (recipe(), {"momentum": 0.0}),
    "no decay on norms": (TOGETHER["adamw"], {"no_decay": ("bias",)}),
    "no decay on biases": (TOGETHER["adamw"], {"no_decay": ("norm",)}),
    "decay apart": (TOGETHER["adamw"], {"optimizer": "adam", "no_decay": ()}),
    "trust ratio": (TOGETHER["lamb"], {"optimizer": "adamw"}),
    "binary cross-entropy": (TOGETHER["lamb"], {"loss": "cross-entropy"}),
    "accumulation": (TOGETHER["lamb"], {"accumulate": 1}),
    "centering": (TOGETHER["rmsprop"], {"centered": False}),
}
_WITH_EVERY_CHANGE = ("smoothing", "stochastic depth", "accumulation")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=() if n in _WITH_EVERY_CHANGE else pytest.mark.slow)
        for n in LEFT_OUT
    ],
)
def test_an_engine_that_leaves_a_part_out_takes_another_path(name: str):
    one, without = LEFT_OUT[name]
    losses, expected = learnt("torch", one, DATA)
    engine = engine_of("flax", replace(one, **without), DATA)
    theirs, found = trained(engine, one, DATA, 0, engine.plan.steps)
    apart = max(
        deviation(np.array(theirs), np.array(losses)).l2,
        *(deviation(found[n], expected[n]).l2 for n in found.keys() & expected.keys()),
    )
    assert not apart <= 1e4 * AFTER_STEPS


@pytest.mark.parametrize("backend", ["torch", "flax"])
def test_an_evaluation_counts_every_image_once(backend: Backend):
    one = recipe(batch=4)  # of ten images: the last batch is filled up
    engine = engine_of(backend, one, DATA)
    with Loader(DATA.train, one) as loader:
        batches = list(loader.evaluation(DATA.validation))
    counts = engine.counted([engine.evaluate(batch) for batch in batches])
    twin = ABSTRACT["torch"](engine.plan.config, param_dtype="float64")
    load_state_dict(twin, engine.deployed())
    pixels = np.stack([np.asarray(DATA.validation.read(i)) for i in range(10)])
    x = torch.from_numpy((pixels / 255 - one.mean) / one.std).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = twin(x)
    labels = torch.from_numpy(DATA.validation.labels)
    loss = nn.functional.cross_entropy(logits, labels, reduction="sum").item()
    assert counts.images == len(DATA.validation) == 10
    assert counts.right == int((logits.argmax(1) == labels).sum())
    assert abs(counts.loss - loss) <= AFTER_STEPS * loss
