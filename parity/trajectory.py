"""Whether two networks learn the same: many steps in float64, then every value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from parity import tolerances
from parity.compare import deviation
from parity.digest import digest, environment
from parity.gates import GateResult, Row
from parity.objective import has_classes
from parity.pair import Mapped, Pair
from parity.report import Report
from parity.taps import LOSS, OUTPUT, Batch, ModuleError, Quantity
from resnet_spec import OptimizerConfig

GATE = "G1 steps"

ATTEMPTS = 5

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
    buffer, and the logits in evaluation mode after the last step.

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
    pair = Pair(torch_module, flax_module, mapping)
    inputs = np.asarray(inputs)
    classes = has_classes(pair.output_shape(inputs))
    if not classes:
        raise ValueError("the network has no classes; training needs scores of them")
    notes: list[str] = []
    result = None
    for attempt in range(ATTEMPTS):
        progress(f"{steps} steps of {optimizer.kind} in float64, seed {seed + attempt}")
        batches = _batches(inputs, classes, steps, seed + attempt)
        try:
            learnt = pair.learn(
                *(batches, optimizer),
                label_smoothing=label_smoothing,
                loss_scale=loss_scale,
            )
        except ModuleError as failure:
            row = Row(failure.path, False, note=failure.what)
            result = GateResult(GATE, "both networks learn", (row,))
            break
        (model, torch_steps), (twin, flax_steps) = learnt["torch"], learnt["flax"]
        rows = [
            *_losses(torch_steps, flax_steps),
            *_states(pair.with_models(model, twin), batches[-1].images),
        ]
        what = f"float64, {steps} steps of {optimizer.kind}"
        result = GateResult(GATE, what, (*rows, *_seeds(notes)))
        if result.ok or (kink := _kink(torch_steps, flax_steps)) is None:
            break
        notes.append(f"seed {seed + attempt}: {kink}; the next one was taken")
    else:
        row = Row("seeds", False, note=f"five kinks in a row: {'; '.join(notes)}")
        result = GateResult(GATE, "seeds without a kink", (row,))
    setting = {
        "optimizer": optimizer.to_json(),
        "steps": steps,
        "label_smoothing": label_smoothing,
        "loss_scale": loss_scale,
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


def _losses(torch_steps: Steps, flax_steps: Steps) -> list[Row]:
    return [
        _row(f"step {index + 1}", "loss", flax[LOSS], torch[LOSS])
        for index, (torch, flax) in enumerate(zip(torch_steps, flax_steps, strict=True))
    ]


def _states(after: Pair, images: np.ndarray) -> list[Row]:
    states = after.torch_state(), after.flax_state()
    learns = set(after.torch_parameters())
    rows = []
    for name in [*states[0], *(n for n in states[1] if n not in states[0])]:
        kind = "parameter" if name in learns else "statistic"
        if name in states[0] and name in states[1]:
            rows.append(_row(name, kind, states[1][name], states[0][name]))
        else:
            where = "torch" if name in states[0] else "Flax"
            rows.append(
                Row(name, False, kind, float("inf"), note=f"is in {where} only")
            )
    outputs = {}
    output = Quantity("output", OUTPUT)

    def visit(quantity: Quantity, value: np.ndarray) -> None:
        if quantity == output:
            outputs["torch"] = value.copy()

    after.torch_forward(images, visit, float64=True)
    outputs["flax"] = dict(after.flax_forward(images, float64=True).here())[output]
    return [
        *rows,
        _row(OUTPUT, "output in evaluation", outputs["flax"], outputs["torch"]),
    ]


def _row(name: str, kind: str, value: np.ndarray, expected: np.ndarray) -> Row:
    limit = tolerances.AFTER_STEPS
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
