"""What all modes are given: weights, images, labels, and the reference's results.

Drawn and computed once for a case, in a process of its own, and left in a folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.plans.cases import Case
from resnet_spec import OptimizerConfig, ResNetConfig, Schedule

WEIGHTS, IMAGES, LABELS = "weights.npz", "images.npy", "labels.npy"
REFERENCE, FACTS = "reference.npz", "facts.json"

# Large enough that a step shows in float32's digits, too small to diverge in fifty.
OPTIMIZER = OptimizerConfig(
    schedule=Schedule(learning_rate=0.02), momentum=0.9, weight_decay=1e-4
)

STEPS = 1
"""Training steps that the gate looks at.

After the second, kinks have moved the statistics too (2e-4 in resnet18). That momentum
and schedules agree in longer runs is what ``parity.compare_training`` proves.
"""


def depth(config: ResNetConfig) -> int:
    """Returns about how many layers follow upon each other."""
    return 3 * sum(config.layers)


def read_weights(folder: Path, name: str = WEIGHTS) -> dict[str, np.ndarray]:
    """Reads the state that all modes get, in torch's names and layouts."""
    with np.load(folder / name) as file:
        return dict(file)


def read_batch(folder: Path, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Reads images (n, c, h, w) and labels (n,), as many as the case has."""
    images, labels = (np.load(folder / name) for name in (IMAGES, LABELS))
    return images[: case.batch], labels[: case.batch]


def changes(
    losses: list[float], before: Mapping[str, np.ndarray], after: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Returns what the gate compares after training steps.

    Args:
        losses: of the steps.
        before: the state at first, in torch's names.
        after: the state now.
    """
    kinds: dict[str, list[np.ndarray]] = {"step": [], "statistics": []}
    for name in sorted(before):
        leaf = name.rpartition(".")[2]
        if leaf == "num_batches_tracked":
            continue
        kind = "statistics" if leaf.startswith("running_") else "step"
        change = np.asarray(after[name]) - before[name]
        kinds[kind].append(change.ravel())
    return {
        "losses": np.array(losses),
        **{kind: np.concatenate(parts) for kind, parts in kinds.items() if parts},
    }


def prepare(case: Case, folder: Path) -> None:
    """Draws the inputs of a case and computes what must come out of it.

    Leaves them in the folder, with facts as JSON: how much rounding errors grow, the
    number of parameters and of floating-point operations.
    """
    import parity
    from benchmarks.measuring.flops import flops
    from parity.weights.twins import abstract_torch

    config = case.spec
    shape = (case.batch, config.in_channels, *case.size)
    images = parity.random_images(shape, seed=case.seed)
    rng = np.random.default_rng(case.seed)
    labels = rng.integers(0, config.num_classes, case.batch).astype(np.int32)
    model = abstract_torch(config)
    state = _weights(case, model)
    for name, array in ((IMAGES, images), (LABELS, labels)):
        np.save(folder / name, array)
    np.savez(folder / WEIGHTS, allow_pickle=False, **state)
    facts = {
        "growth": reference(case.judged, config, folder),
        "parameters": sum(
            layer.parameters for layer in parity.layers(model, shape[1:])
        ),
        "flops": flops(config, case.task, case.batch, case.size),
    }
    (folder / FACTS).write_text(json.dumps(facts))


def _weights(case: Case, model: Any) -> dict[str, np.ndarray]:
    """Draws weights that show faults; for training, such as training soon comes to.

    In a deep network that is quite new, rounding grows so much backwards that nothing
    of a bfloat16 gradient is right (1.3 of resnet50's is wrong). One whose blocks begin
    with little to add, as with ``zero_init_residual``, has a gradient in all dtypes.
    """
    import torch

    import parity
    import resnet_torch

    if case.task == "inference":
        return parity.random_state(parity.entries(model), seed=case.seed)
    config = case.spec.replace(zero_init_residual=True)
    generator = torch.Generator().manual_seed(case.seed)
    state = parity.state_dict(resnet_torch.create_model(config, generator=generator))
    for name, array in state.items():
        if name.endswith("weight") and not array.any():
            state[name] = np.full_like(array, 0.25)
    return state


def reference(
    case: Case,
    config: ResNetConfig,
    folder: Path,
    *,
    weights: str = WEIGHTS,
    results: str = REFERENCE,
) -> float:
    """Computes a case in float64 with the torch twin; returns how errors grow in it.

    That is measured as ``parity`` does: the state and the images of the first images
    are moved by a roundoff.

    Args:
        case: what is computed.
        config: the network; a peer may have another than the case's.
        folder: with weights and batch; the results are left there.
        weights: file of the state.
        results: file to write.
    """
    import torch

    from parity.judging.distance import deviation
    from parity.running.perturbing import PERTURBATION
    from parity.running.torch_copies import perturb
    from parity.weights import torch_state
    from parity.weights.twins import build
    from resnet_torch.optim import create_optimizer, train_step

    state = read_weights(folder, weights)
    images, labels = read_batch(folder, case)
    images = images.astype(np.float64)

    def run(images: np.ndarray, *, moved: bool) -> dict[str, np.ndarray]:
        model = build("torch", config, state).double()
        if moved:
            images = perturb(model, images, 0)
        before = torch_state.state(model)
        model.to(case.device)
        x = torch.from_numpy(images).to(case.device)
        if case.task == "inference":
            with torch.no_grad():
                return {"logits": model(x).cpu().numpy()}
        optimizer = create_optimizer(model.train(), OPTIMIZER)
        y = torch.from_numpy(labels[: len(images)]).to(case.device)
        losses = [train_step(model, optimizer, x, y).item() for _ in range(STEPS)]
        return changes(losses, before, torch_state.state(model))

    found = run(images, moved=False)
    np.savez(folder / results, allow_pickle=False, **found)
    few = images if case.task == "training" else images[:2]
    expected = found if len(few) == len(images) else run(few, moved=False)
    other = run(few, moved=True)
    return max(
        [depth(config) ** 0.5]
        + [
            deviation(other[name], expected[name]).l2 / PERTURBATION
            for name in expected
        ]
    )
