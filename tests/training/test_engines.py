"""Both engines take the same path, and each goes on where the other one was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from parity.judging.distance import deviation
from parity.judging.tolerances import AFTER_STEPS
from parity.weights.digest import differing_bits
from parity.weights.state import load_state_dict
from parity.weights.twins import ABSTRACT
from resnet_spec import TrainingRecipe
from resnet_training.engine import Backend, State
from resnet_training.loader import Loader
from resnet_training.slots import slots_of
from tests.support.runs import drawn, engine_of, learnt, plan_of, recipe

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


@pytest.mark.parametrize("name", TOGETHER)
@pytest.mark.parametrize("backend", ["torch", "flax"])
def test_what_is_restored_is_exported_bit_for_bit(name: str, backend: Backend):
    one = TOGETHER[name]
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
