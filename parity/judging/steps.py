"""Whether two networks learn the same: many steps in float64, then every value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from parity.judging import tolerances
from parity.judging.distance import deviation, l2
from parity.judging.report import GateResult, Report, Row
from parity.machine import environment
from parity.running.objective import Objective, has_classes
from parity.running.pair import Mapped, Pair, pair_of
from parity.running.taps import (
    INPUT,
    LOSS,
    OUTPUT,
    Batch,
    Learnt,
    ModuleError,
    Quantity,
)
from parity.weights.digest import digest
from resnet_spec import OptimizerConfig

GATE = "G1 steps"

ATTEMPTS = 5

DRAWS = 3
"""Perturbations from which the growth of rounding over all steps is told."""

SAME_GRADIENT = 1e-8
"""Relative error of a gradient up to which what parts the networks is not the model."""

Steps = Sequence[dict[Quantity, np.ndarray]]


def compare_training(
    torch_module: Any,
    flax_module: Any,
    inputs: np.ndarray,
    optimizer: OptimizerConfig,
    *,
    steps: int = 20,
    label_smoothing: float = 0.1,
    loss_scale: float = 1.0,
    mapping: Mapped = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda what: None,
) -> Report:
    """Trains copies of two networks alike, in float64, and compares what they became.

    Both take the same steps with their own optimiser (``resnet_torch.optim``,
    ``resnet_flax.optim``), on batches drawn like the inputs: normal, with their shape,
    mean and deviation. Judged to 1e-10: the loss of every step, every parameter and
    buffer, and the logits in evaluation mode after the last step. Where an entry is
    beyond that, the torch network is trained once more, moved by one roundoff: an entry
    that this alone moves as far cannot be known any better, and is granted it.

    Where rounding carries a unit over a rectifier's kink the two go different ways, and
    rightly; then the next seed's batches are taken and the kink is reported. Five in a
    row fail.

    Args:
        torch_module: any torch module of one input that gives scores of classes.
        flax_module: a Flax NNX module.
        inputs: float array of images, (n, c, h, w), n at least 2.
        optimizer: the optimiser's settings.
        steps: how many steps.
        label_smoothing: of the cross-entropy.
        loss_scale: times the loss that is differentiated; 1e-7 shows an optimiser's
            eps.
        mapping: see :func:`parity.compare_modules`.
        seed: of batches and labels.
        progress: told in words what is about to be computed.

    Returns:
        A report with the gate ``"G1 steps"``.

    Raises:
        ValueError: the network gives no scores of classes.
    """
    pair = pair_of(torch_module, flax_module, mapping)
    inputs = np.asarray(inputs)
    shapes = pair.torch.output_shapes({INPUT: inputs})
    classes = has_classes(shapes.get(OUTPUT, ()))
    if not classes:
        raise ValueError("the network has no classes; training needs scores of them")
    scales = {"label_smoothing": label_smoothing, "loss_scale": loss_scale}
    learn: Any = partial(pair.learn, config=optimizer, **scales)
    torch_learn: Any = partial(pair.torch.learn, config=optimizer, **scales)
    objective: Any = partial(
        Objective, label_smoothing=label_smoothing, scale=loss_scale, seed=seed
    )
    notes: list[str] = []
    result = None
    for attempt in range(ATTEMPTS):
        progress(f"{steps} steps of {optimizer.kind} in float64, seed {seed + attempt}")
        batches = _batches(inputs, classes, steps, seed + attempt)
        try:
            learnt = learn(batches)
            rows = _rows(pair, learnt, batches)
            kink = None
            if not all(row.ok for row in rows):
                progress("torch once more, perturbed")
                kink = _kink(*(learnt[name][1] for name in ("torch", "flax")))
                perturbed = [torch_learn(batches, draw=draw) for draw in range(DRAWS)]
                rows = _rows(pair, learnt, batches, perturbed)
                if kink is None:
                    wrong = _before_parting(pair, rows, batches, learn)
                    told = _of_optimizer(pair, rows, batches, learn, objective)
                    rows = [*told, *wrong, *rows]
        except ModuleError as failure:
            row = Row(failure.path, False, note=failure.what)
            result = GateResult(GATE, "both networks learn", (row,))
            break
        what = f"float64, {steps} steps of {optimizer.kind}"
        result = GateResult(GATE, what, (*rows, *_seeds(notes)))
        if result.ok or kink is None:
            break
        notes.append(f"seed {seed + attempt}: {kink}; the next one was taken")
    else:
        row = Row("seeds", False, note=f"five kinks in a row: {'; '.join(notes)}")
        result = GateResult(GATE, "seeds without a kink", (row,))
    setting = {
        "optimizer": optimizer.to_json(),
        "steps": steps,
        **scales,
        "seed": seed,
        "inputs": {"shape": list(inputs.shape), "sha256": digest({"inputs": inputs})},
        **environment(),
    }
    return Report((result,), {}, setting)


def _batches(inputs: np.ndarray, classes: int, steps: int, seed: int) -> list[Batch]:
    rng = np.random.default_rng(seed)
    mean, scale = float(inputs.mean()), float(inputs.std()) or 1.0
    return [
        Batch(
            mean + scale * rng.standard_normal(inputs.shape),
            rng.integers(0, classes, len(inputs)),
        )
        for _ in range(steps)
    ]


def _rows(
    pair: Pair,
    learnt: Mapping[str, Learnt],
    batches: Sequence[Batch],
    perturbed: Sequence[Learnt] = (),
) -> list[Row]:
    (model, torch_steps), (twin, flax_steps) = learnt["torch"], learnt["flax"]
    images = batches[-1].images
    after = pair.with_models(model, twin)
    expected, found = _in_torch(after, images), _in_flax(after, images)
    moved = dict.fromkeys(expected, 0.0)
    for other, _ in perturbed:
        values = _in_torch(pair.with_models(other, twin), images)
        for name, value in values.items():
            moved[name] = max(moved[name], deviation(value, expected[name]).l2)
    learns = set(after.torch.parameters)
    rows = _losses(torch_steps, flax_steps)
    for name in [*expected, *(n for n in found if n not in expected)]:
        kind = "parameter" if name in learns else "statistic"
        kind = "output in evaluation" if name == OUTPUT else kind
        if name in expected and name in found:
            limit = tolerances.steps_limit(moved[name])
            rows.append(_row(name, kind, found[name], expected[name], limit))
        else:
            note = f"is in {'torch' if name in expected else 'Flax'} only"
            rows.append(Row(name, False, kind, float("inf"), note=note))
    return rows


def _in_torch(after: Pair, images: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the torch network's state, and its logits in evaluation mode."""
    found = after.torch.state()

    def visit(quantity: Quantity, value: np.ndarray) -> None:
        if quantity == Quantity("output", OUTPUT):
            found[OUTPUT] = value.copy()

    after.torch.forward({INPUT: images}, visit, float64=True)
    return found


def _in_flax(after: Pair, images: np.ndarray) -> dict[str, np.ndarray]:
    outputs = dict(after.jax.forward({INPUT: images}, {}, float64=True).here())
    return {**after.flax.state(), OUTPUT: outputs[Quantity("output", OUTPUT)]}


def _before_parting(
    pair: Pair,
    rows: Sequence[Row],
    batches: Sequence[Batch],
    learn: Callable[[Sequence[Batch]], Mapping[str, Learnt]],
) -> list[Row]:
    """Lists what was wrong when the losses still agreed: all else follows from it.

    What is nearest to the output comes first: a wrong gradient spoils those before it.
    """
    losses = [row.ok for row in rows if row.kind == "loss"]
    if all(losses) or (steps := losses.index(False)) == 0:
        return []
    found = _rows(pair, learn(batches[:steps]), batches[:steps])
    return [
        replace(row, kind=f"{row.kind} after {steps} of the steps")
        for row in reversed(found)
        if not row.ok and row.name != OUTPUT
    ]


def _of_optimizer(
    pair: Pair,
    rows: Sequence[Row],
    batches: Sequence[Batch],
    learn: Callable[[Sequence[Batch]], Mapping[str, Learnt]],
    objective: Callable[..., Objective],
) -> list[Row]:
    """Says so where the gradients agree, and what is made of them does not.

    In the step after which the losses part, or the first: both networks as they were
    before it are differentiated once more.
    """
    losses = [row.ok for row in rows if row.kind == "loss"]
    step = losses.index(False) if False in losses else 1
    parted = any(not row.ok for row in rows if row.kind == "parameter")
    if step == 0 or not parted:  # the first loss, or the statistics alone
        return []
    before = pair
    if step > 1:
        learnt = learn(batches[: step - 1])
        before = pair.with_models(*(learnt[name][0] for name in ("torch", "flax")))
    batch = batches[step - 1]
    given = {INPUT: batch.images}
    of_batch = objective(labels=batch.labels)
    expected: dict[Quantity, np.ndarray] = {}

    def visit(quantity: Quantity, value: np.ndarray) -> None:
        if quantity.kind == "parameter gradient":
            expected[quantity] = value.copy()

    before.training(given, of_batch, visit, float64=True)
    program = before.flax.training(
        given, of_batch, {}, fixed=before.torch.fixed, float64=True
    )
    found = {q: value for q, value in program.here() if q in expected}
    frozen = {Quantity("parameter gradient", name) for name in pair.torch.frozen}
    whole = np.sqrt(sum(float(np.square(value).sum()) for value in expected.values()))
    for quantity, value in expected.items():
        other = found.get(quantity)
        if quantity in frozen or other is None or other.shape != value.shape:
            return []
        scale = max(l2(value), 1e-6 * whole)
        if l2(other - value) > SAME_GRADIENT * scale:
            return []
    worst = max((row for row in rows if row.kind == "parameter"), key=lambda r: r.error)
    note = f"makes something else of equal gradients, in step {step}"
    return [Row("the optimiser", False, "", worst.error, worst.limit, note)]


def _losses(torch_steps: Steps, flax_steps: Steps) -> list[Row]:
    return [
        _row(f"step {index + 1}", "loss", flax[LOSS], torch[LOSS])
        for index, (torch, flax) in enumerate(zip(torch_steps, flax_steps, strict=True))
    ]


def _row(
    name: str,
    kind: str,
    value: np.ndarray,
    expected: np.ndarray,
    limit: float = tolerances.AFTER_STEPS,
) -> Row:
    if value.shape != expected.shape:
        return Row(name, False, kind, float("inf"), limit, "has another shape in Flax")
    found = deviation(value, expected)
    note = "" if found.finite else "not finite"
    return Row(name, found.finite and found.l2 <= limit, kind, found.l2, limit, note)


def _kink(torch_steps: Steps, flax_steps: Steps) -> str | None:
    """Names the first rectifier that another sign came out of, if one did.

    Only as long as the losses agree: what parted before is no kink, and a kink itself
    moves no loss.
    """
    losses = _losses(torch_steps, flax_steps)
    for index, (torch, flax) in enumerate(zip(torch_steps, flax_steps, strict=True)):
        if not losses[index].ok:
            return None
        for quantity, signs in torch.items():
            other = flax.get(quantity)
            if quantity == LOSS or other is None or other.shape != signs.shape:
                continue
            units = int(np.unpackbits(np.bitwise_xor(signs, other)).sum())
            if units:
                some = "units" if units > 1 else "unit"
                return f"kink at {quantity.name}, {units} {some}, in step {index + 1}"
    return None


def _seeds(notes: Sequence[str]) -> list[Row]:
    return [Row("seeds", True, note=note) for note in notes]
