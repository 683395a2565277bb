"""The gate of a run passes for the engines as they are, and names what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import resnet_flax.optim
from resnet_flax.norm import BatchNorm2d
from resnet_spec import TrainingRecipe
from resnet_training import engine_flax, engine_torch
from resnet_training.engine import Engine
from resnet_training.loader import Loader
from resnet_training.proof import compare_runs
from resnet_training.sources import Source
from tests.support.command import Called
from tests.support.runs import drawn, recipe

DATA = drawn()
# Its rate falls after six steps.
SGD = recipe(steps=12, weight_decay=0.1, no_decay=("norm", "bias"), flip=0.5)
ADAM = recipe(optimizer="adamw", learning_rate=1e-3, decay="constant", milestones=())
STEPS = 8  # of which six are an epoch and a half


@pytest.mark.parametrize(
    "one",
    [
        pytest.param(SGD, id="sgd"),
        pytest.param(ADAM, id="adamw", marks=pytest.mark.slow),
    ],
)
def test_equal_engines_make_equal_runs(one: TrainingRecipe):
    report = compare_runs(one, DATA, steps=STEPS)
    assert report.ok, report
    (gate,) = report.gates
    assert len(gate.rows) > 50
    assert max(row.error for row in gate.rows if row.limit) > 0  # something was judged


def _forgotten(monkeypatch: pytest.MonkeyPatch, engine: type[Engine]) -> None:
    """Momentum, where the run goes on."""
    right: Any = engine.restore

    def restore(self: Any, arrays: Any, step: int) -> None:
        none = {
            n: np.zeros_like(a) if n.startswith("optimizer/momentum") else a
            for n, a in arrays.items()
        }
        right(self, none, step)

    monkeypatch.setattr(engine, "restore", restore)


def _count_off(monkeypatch: pytest.MonkeyPatch, engine: type[Engine]) -> None:
    """Where the run goes on."""
    right: Any = engine.restore
    monkeypatch.setattr(engine, "restore", lambda s, a, step: right(s, a, step + 1))


def _withheld(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch's optimiser remembers is not in what it exports."""
    monkeypatch.setattr(engine_torch.TorchEngine, "remembered", lambda self: {})


def _late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate of the step before."""
    right = resnet_flax.optim._rate
    monkeypatch.setattr(
        *(resnet_flax.optim, "_rate"),
        lambda schedule, step: right(schedule, step - (step > 0).astype(step.dtype)),
    )


def _decayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms too."""
    monkeypatch.setattr(resnet_flax.optim, "undecayed", lambda model, config: set())


def _local(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics of half a batch."""
    right = BatchNorm2d._batch_statistics
    monkeypatch.setattr(
        *(BatchNorm2d, "_batch_statistics"),
        lambda self, x, centre: right(self, x[: len(x) // 2], centre),
    )


def _thrice_the_average(monkeypatch: pytest.MonkeyPatch) -> None:
    right = engine_flax.FlaxEngine._blended
    monkeypatch.setattr(
        *(engine_flax.FlaxEngine, "_blended"),
        lambda self, average, own: right(self, right(self, average, own), own),
    )


FAULTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], TrainingRecipe, str]] = {
    "forgotten momentum": (
        partial(_forgotten, engine=engine_flax.FlaxEngine), SGD, "the optimiser",
    ),
    "momentum that torch forgets": (
        partial(_forgotten, engine=engine_torch.TorchEngine), SGD, "the optimiser",
    ),
    "momentum that torch withholds": (_withheld, SGD, "the optimiser"),
    "count off by one": (
        partial(_count_off, engine=engine_flax.FlaxEngine), ADAM, "the step",
    ),
    "torch's count off by one": (
        partial(_count_off, engine=engine_torch.TorchEngine), ADAM, "the step",
    ),
    "rate one step late": (_late, SGD, "the step"),
    "decay on norms": (_decayed, SGD, "weight decay"),
    "statistics of a part of the batch": (_local, SGD, "batch statistics"),
    "average twice": (_thrice_the_average, recipe(ema_decay=0.9), "the average"),
}  # fmt: skip


SLOW = (
    *("forgotten momentum", "momentum that torch withholds", "rate one step late"),
    *("average twice", "torch's count off by one"),
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in FAULTS],
)
def test_a_fault_of_an_engine_is_caught_and_named(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    fault, one, culprit = FAULTS[name]
    fault(monkeypatch)
    report = compare_runs(one, DATA, steps=STEPS)
    assert not report.ok
    assert report.first_divergence == culprit


def test_the_command_checks_a_run(call: Called):
    small = ("--set", "layers=[1,1,1]", "--set", "widths=[6,8,12]")
    asked = ("check", "cifar_resnet20", "--train", "cifar-paper", "--steps", 2, *small)
    out, _ = call(*asked, "--json")
    found = json.loads(out)
    assert found["ok"]
    assert found["setting"]["recipe"]["momentum"] == 0.9
    assert found["setting"]["steps"] == 2


class _NotShuffled(Loader):
    """Every epoch has the order of the first."""

    def __init__(self, source: Source, recipe: TrainingRecipe) -> None:
        super().__init__(source, recipe)
        right = self._order.of_epoch
        self._order.of_epoch = lambda epoch: right(0)  # type: ignore[method-assign]


class _OtherNumbers(Loader):
    """Flips and cuts by another seed."""

    def __init__(self, source: Source, recipe: TrainingRecipe) -> None:
        super().__init__(source, recipe)
        right = self._order.keys
        self._order.keys = lambda places: [  # type: ignore[method-assign]
            (first ^ 1, second) for first, second in right(places)
        ]


@pytest.mark.parametrize(
    ("loader", "step", "what"),
    [
        (_NotShuffled, 4, "labels of the batch are others: other images"),
        (_OtherNumbers, 1, "images of the batch are others: the same images, another"),
    ],
)
def test_a_fault_of_a_loader_is_caught_and_named(
    loader: type[Loader], step: int, what: str
):
    report = compare_runs(SGD, DATA, steps=STEPS, flax_loader=loader)
    assert not report.ok
    assert report.first_divergence == f"batch of step {step}"
    assert what in report.gates[0].failures[0].note
