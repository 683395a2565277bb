"""Whether both engines make the same run of a recipe: batches, losses, every array."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np

from parity.judging import tolerances
from parity.judging.distance import deviation
from parity.judging.report import GateResult, Report, Row
from parity.machine import environment
from parity.running.perturbing import moved
from parity.weights.names import COUNTER
from resnet_spec import TrainingRecipe
from resnet_training.arrays import of_arrays
from resnet_training.engine import AVERAGE, OPTIMIZER, Backend, Engine, State
from resnet_training.engines import create_engine
from resnet_training.initial import initial_state
from resnet_training.loader import Batch, Loader
from resnet_training.plan import Plan
from resnet_training.sources import Data, Source

GATE = "G1 run"
PERTURBATIONS = 2
"""Runs, moved by one roundoff at the start, from which the growth of it is told."""

Arrays = Mapping[str, np.ndarray]


def drawn(recipe: TrainingRecipe, *, seed: int = 0) -> Data:
    """Draws images for a recipe: noise, in three epochs' batches of an epoch's length.

    Args:
        recipe: of the size and channels that they shall have.
        seed: of the numbers.
    """
    rng = np.random.default_rng(seed)
    count = max(3 * recipe.batch // 2, 8)
    side = max(recipe.size, recipe.centre)
    shape = (2 * count, side, side, len(recipe.mean))
    images = rng.integers(0, 256, shape, np.uint8)
    labels = np.arange(2 * count) % 4
    return of_arrays(
        images[:count],
        labels[:count],
        val_images=images[count:],
        val_labels=labels[count:],
    )


def compare_runs(
    recipe: TrainingRecipe,
    data: Data | None = None,
    *,
    steps: int = 20,
    flax_loader: Callable[[Source, TrainingRecipe], Loader] = Loader,
    progress: Callable[[str], None] = lambda what: None,
) -> Report:
    """Runs a recipe's first steps by both engines, in float64, and compares all.

    Each reads its own batches. Judged: that they are the same, bit for bit; to 1e-10
    the loss and every array after each step: statistics, what the optimiser remembers,
    parameters, averages. Halfway, each goes on in a new engine, from what the other one
    has exported. Rows are those of the first step in which something differs, in the
    order in which one thing causes the next; without any, those of the last step.

    Where an array is beyond the limit the torch engine runs again, moved by one
    roundoff at the start; what that alone moves as far, as a unit that goes over a
    kink does, is granted.

    Args:
        recipe: what is done; its dtype is not asked.
        data: images; some are drawn by default.
        steps: how many of the recipe's.
        flax_loader: that the engine of Flax reads from.
        progress: told in words what is about to be computed.

    Returns:
        A report with the gate ``"G1 run"``.
    """
    recipe = replace(recipe, dtype="float64", norm="global")
    data = data or drawn(recipe)
    plan = Plan(recipe, len(data.train), len(data.classes))
    steps = min(steps, plan.steps)
    start = initial_state(plan.config, seed=recipe.seed)
    progress(f"{steps} steps of {recipe.network} in float64, in both engines")
    rows: list[Row] = []
    torch, flax = (_engine(plan, start, backend) for backend in _BACKENDS)
    with (
        Loader(data.train, recipe) as ours,
        flax_loader(data.train, recipe) as theirs,
    ):
        both = zip(ours.batches(0, steps), theirs.batches(0, steps), strict=True)
        for step, (batch, other) in enumerate(both, 1):
            loss, expected = _step(torch, batch)
            found_loss, found = _step(flax, other)
            images = _batches(step, batch, other)
            compared = partial(_rows, step, expected, found, loss, found_loss)
            rows = compared({})
            if images[0].ok and not all(row.ok for row in rows):
                if expected.keys() == found.keys():
                    progress("torch again, perturbed")
                    rows = compared(_growth(plan, data, start, expected, step))
                rows = [*_told(recipe, rows, expected), *rows]
            rows = [*images, *rows]
            if not all(row.ok for row in rows):
                break
            if step == steps // 2:
                torch, flax = (
                    _engine(plan, start, backend, (arrays, step))
                    for backend, arrays in zip(
                        _BACKENDS, (found, expected), strict=True
                    )
                )
    what = f"float64, {steps} steps of a run with {recipe.optimizer}"
    setting = {
        "recipe": asdict(recipe),
        "sha256": recipe.sha256,
        "steps": steps,
        "data": data.fingerprint,
        **environment(),
    }
    return Report((GateResult(GATE, what, tuple(rows)),), {}, setting)


_BACKENDS: tuple[Backend, Backend] = ("torch", "flax")


def _engine(
    plan: Plan,
    start: State,
    backend: Backend,
    saved: tuple[State, int] | None = None,
) -> Engine:
    """Returns a new engine, which goes on from what was saved after some step."""
    options: dict[str, Any] = {"devices": 1} if backend == "flax" else {}
    engine = create_engine(backend, plan, start, **options)
    if saved is not None:
        engine.restore(*saved)
    return engine


def _step(engine: Engine, batch: Batch) -> tuple[float, State]:
    (loss,) = engine.losses([engine.step(batch)])
    return loss, engine.arrays()


def _growth(
    plan: Plan, data: Data, start: State, expected: Arrays, steps: int
) -> dict[str, float]:
    """Returns how far one roundoff at the start moves each array in torch alone."""
    growth = dict.fromkeys(expected, 0.0)
    for draw in range(PERTURBATIONS):
        perturbed = _engine(plan, start, "torch")
        arrays = perturbed.arrays()
        perturbed.restore({n: moved(a, draw) for n, a in arrays.items()}, 0)
        with Loader(data.train, plan.recipe) as loader:
            for batch in loader.batches(0, steps):
                perturbed.step(batch)
        for name, array in perturbed.arrays().items():
            by = deviation(array, expected[name]).l2
            growth[name] = max(growth[name], by)
    return growth


def _batches(step: int, one: Batch, other: Batch) -> list[Row]:
    """Says whether two batches are the same, and what of them is not."""
    unlike = [
        name
        for name, value in vars(one).items()
        if not _same(value, getattr(other, name))
    ]
    note = ""
    if unlike:
        note = f"{', '.join(unlike)} of the batch are others"
        same = "labels" not in unlike
        note += ": the same images, another augmentation" if same else ": other images"
    return [Row(f"batch of step {step}", not unlike, "images", note=note)]


def _same(one: Any, other: Any) -> bool:
    return (one is None) == (other is None) and np.array_equal(one, other)


_KINDS = ("statistic", "loss", "remembered", "parameter", "average")
"""What is judged, each caused by those before it."""


def _kind(name: str, learnt: set[str]) -> str:
    if name.startswith(OPTIMIZER):
        return "remembered"
    if name.startswith(AVERAGE):
        return "average"
    return "parameter" if name in learnt else "statistic"


def _rows(
    step: int,
    expected: Arrays,
    found: Arrays,
    loss: float,
    found_loss: float,
    moved_by: Mapping[str, float],
) -> list[Row]:
    learnt = {n for n in expected if not n.endswith(("mean", "var", COUNTER))}
    rows = []
    for name in dict.fromkeys((*expected, *found)):
        limit = tolerances.steps_limit(moved_by.get(name, 0.0))
        if (name in expected) != (name in found):
            note = f"is in {'torch' if name in expected else 'Flax'} only"
            rows.append(Row(name, False, _kind(name, learnt), note=note))
            continue
        off = deviation(found[name], expected[name])
        ok = off.finite and off.l2 <= limit
        rows.append(Row(name, ok, _kind(name, learnt), off.l2, limit))
    off = abs(found_loss - loss) / max(abs(loss), 1e-300)
    limit = tolerances.AFTER_STEPS
    rows.append(Row(f"step {step}", off <= limit, "loss", off, limit))
    rows.sort(key=lambda row: _KINDS.index(row.kind))
    return rows


def _told(recipe: TrainingRecipe, rows: list[Row], expected: Arrays) -> list[Row]:
    """Says in words what the rows that fail have in common, if anything is sure."""
    failed = [row for row in rows if not row.ok]
    if not failed:
        return []
    kinds = {row.kind for row in failed}
    worst = max(failed, key=lambda row: row.error)

    def said(what: str, note: str) -> list[Row]:
        return [Row(what, False, "", worst.error, worst.limit, note)]

    if "statistic" in kinds:
        return said("batch statistics", "of equal images and weights are others")
    if "loss" in kinds:
        return said("the loss", "of equal images and weights is another")
    names = {row.name.rpartition("/")[2] for row in failed if row.kind != "average"}
    one_axis = {n for n in names if n in expected and expected[n].ndim == 1}
    if recipe.weight_decay and names == one_axis and names:
        return said("weight decay", "of norms and biases alone makes a difference")
    if "remembered" in kinds:
        return said("the optimiser", "remembers something else of equal gradients")
    if "parameter" in kinds:
        return said("the step", "is another, of equal gradients and memories: its rate")
    return said("the average", "of equal weights is another")
