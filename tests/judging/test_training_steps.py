"""Both twins trained for some steps: where they end, and what is wrong if they part."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import optax
import pytest
import torch

import parity
import resnet_flax.layers
import resnet_flax.optim
from parity.images import random_images
from parity.judging import steps
from parity.running.taps import Batch
from resnet_spec import OptimizerConfig, Schedule
from tests.support.networks import TINY, flax_like, random_torch

CONSTANT = Schedule(learning_rate=0.01)
OPTIMIZERS = {
    "sgd": OptimizerConfig(
        schedule=Schedule(
            learning_rate=0.05, kind="cosine", total_steps=30, warmup_steps=4
        ),
        momentum=0.9,
        nesterov=True,
        weight_decay=1e-4,
    ),
    "adamw": OptimizerConfig(
        schedule=Schedule(learning_rate=0.002, kind="step", step_size=7), kind="adamw"
    ),
    "rmsprop": OptimizerConfig(
        schedule=CONSTANT, kind="rmsprop", momentum=0.9, weight_decay=1e-3
    ),
}
BATCH = (4, 3, 33, 40)


def _one_of_each(names: Iterable[str], quick: str) -> list[Any]:
    """All of them, of which only one is in the default suite."""
    return [
        pytest.param(name, marks=() if name == quick else pytest.mark.slow)
        for name in names
    ]


def _learn(optimizer: OptimizerConfig, **kwargs) -> parity.Report:
    model = random_torch(TINY)
    return parity.compare_training(
        *(model, flax_like(model), random_images(BATCH, seed=1), optimizer), **kwargs
    )


@pytest.mark.parametrize("kind", _one_of_each(OPTIMIZERS, "adamw"))
def test_twenty_steps_end_at_the_same_place(kind: str):
    before = parity.digest_of(random_torch(TINY))
    found = _learn(OPTIMIZERS[kind])
    assert found.ok, found.verdict()
    (gate,) = found.gates
    names = {row.name for row in gate.rows}
    assert names >= {*parity.entries(random_torch(TINY)), "step 20", "output"}
    assert max(row.error for row in gate.rows) > 0
    losses = [row.name for row in gate.rows if row.kind == "loss"]
    assert losses == [f"step {i + 1}" for i in range(20)]
    assert parity.digest_of(random_torch(TINY)) == before


@pytest.mark.slow
def test_where_eps_matters_they_do_too():
    adam = OptimizerConfig(schedule=CONSTANT, kind="adam")
    assert _learn(adam, loss_scale=1e-7).ok


@pytest.mark.parametrize(
    ("fault", "optimizer"),
    [
        ({"weight_decay": 1e-4}, OPTIMIZERS["adamw"]),  # optax's default
        pytest.param(
            {"eps": 1e-6},
            OptimizerConfig(schedule=CONSTANT, kind="adam"),
            marks=pytest.mark.slow,
        ),
        pytest.param({"nesterov": False}, OPTIMIZERS["sgd"], marks=pytest.mark.slow),
        pytest.param({"schedule": CONSTANT}, OPTIMIZERS["sgd"], marks=pytest.mark.slow),
    ],
)
def test_a_wrong_optimiser_is_seen(
    fault: dict, optimizer: OptimizerConfig, monkeypatch: pytest.MonkeyPatch
):
    import dataclasses

    right = resnet_flax.optim.create_optimizer
    wrong = dataclasses.replace(optimizer, **fault)
    monkeypatch.setattr(
        *(resnet_flax.optim, "create_optimizer"), lambda model, _: right(model, wrong)
    )
    found = _learn(optimizer, steps=3, loss_scale=1e-7)
    assert not found.ok
    assert found.first_divergence == "the optimiser"


def _not_zeroed_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim.Optimizer, "zero_grad", lambda *_, **__: None)


def _not_zeroed_in_flax(monkeypatch: pytest.MonkeyPatch) -> None:
    right = resnet_flax.optim._transformation

    def added_up(
        config: OptimizerConfig, without: set[str]
    ) -> optax.GradientTransformation:
        return optax.chain(optax.trace(1.0), right(config, without))

    monkeypatch.setattr(resnet_flax.optim, "_transformation", added_up)


@pytest.mark.parametrize(
    "fault",
    [_not_zeroed_in_torch, pytest.param(_not_zeroed_in_flax, marks=pytest.mark.slow)],
)
def test_gradients_that_are_not_zeroed_are_seen_after_the_second_step(
    fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
):
    """Mutant 57: every step learns from all gradients so far."""
    fault(monkeypatch)
    (gate,) = _learn(OPTIMIZERS["sgd"], steps=3).gates
    assert gate.gate == "G1 steps"
    failed = {row.name: row.kind for row in gate.failures}
    # The first step has nothing to add to; the third's loss is the first to show it.
    assert [name for name, kind in failed.items() if kind == "loss"] == ["step 3"]
    assert failed["conv1.weight"] == "parameter"


def _mean_of_means(logits, labels, *, label_smoothing=0.0):
    """Mutant 59: the mean of two batches' means, of three images and of one."""
    right = RIGHT_LOSS
    parts = (slice(0, 3), slice(3, 4))
    means = [
        right(logits[p], labels[p], label_smoothing=label_smoothing) for p in parts
    ]
    return (means[0] + means[1]) / 2


def _sum_for_mean(logits, labels, *, label_smoothing=0.0):
    loss = RIGHT_LOSS(logits, labels, label_smoothing=label_smoothing)
    return loss * logits.shape[0]


def _smoothed_over_the_others(logits, labels, *, label_smoothing=0.0):
    """Mutant 58: ε spread over the K - 1 other classes."""
    classes = logits.shape[-1]
    return RIGHT_LOSS(
        logits, labels, label_smoothing=label_smoothing * classes / (classes - 1)
    )


RIGHT_LOSS = resnet_flax.optim.cross_entropy


@pytest.mark.parametrize(
    "fault",
    [
        _mean_of_means,
        pytest.param(_sum_for_mean, marks=pytest.mark.slow),
        _smoothed_over_the_others,
    ],
)
def test_a_wrong_loss_is_seen(fault, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resnet_flax.optim, "cross_entropy", fault)
    model = random_torch(TINY)
    twin, images = flax_like(model), random_images(BATCH, seed=1)
    found = parity.check(model, twin, images, gates=("G2 training",))
    assert found.gate("G2 training").failures[0].kind == "loss"


def _units_at_zero(*args) -> list[Batch]:
    """A batch of which every third pixel is at the mean of all."""
    values = np.tile([0.2, 0.4, 0.3], 4 * 33 * 40 // 3)
    grid = np.random.default_rng(0).permutation(values).reshape(4, 1, 33, 40)
    images = np.repeat(grid, 3, 1)
    return [Batch(images, np.array([0, 1, 2, 3]))]


@pytest.mark.slow
def test_kinks_in_training_are_reported_and_five_in_a_row_fail(
    monkeypatch: pytest.MonkeyPatch,
):
    model = random_torch(TINY.replace(stem="3x3"))  # no pool to hide a small value
    with torch.no_grad():  # a channel that copies pixels, normalised about 0
        model.conv1.weight[0] = 0
        model.conv1.weight[0, 0, 1, 1] = 0.7
        model.bn1.bias[0] = 0
    # Every third pixel lies on the mean, and rounding decides its sign.
    twin = flax_like(model)
    images = random_images(BATCH, seed=1)
    sgd = OptimizerConfig(schedule=CONSTANT)
    plain = steps._batches

    def first_kinked(inputs, classes, steps, seed):
        batches = _units_at_zero() if seed == 0 else plain(inputs, classes, 1, seed)
        return batches * steps

    monkeypatch.setattr(steps, "_batches", first_kinked)
    found = parity.compare_training(model, twin, images, sgd, steps=2)
    assert found.ok, found.verdict()
    (row,) = (row for row in found.gates[0].rows if row.name == "seeds")
    assert row.note.startswith("seed 0: kink at relu")
    monkeypatch.setattr(steps, "_batches", lambda *args: _units_at_zero())
    found = parity.compare_training(model, twin, images, sgd, steps=1)
    assert not found.ok
    assert "five kinks in a row" in found.verdict()


def test_networks_without_classes_are_not_trained():
    model = random_torch(TINY.replace(include_top=False))
    images = random_images(BATCH, seed=1)
    with pytest.raises(ValueError, match="no classes; training needs scores"):
        parity.compare_training(
            *(model, flax_like(model), images, OPTIMIZERS["sgd"]), steps=1
        )
