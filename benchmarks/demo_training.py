"""Real digits: begun in torch, ended in Flax; and depth with and without shortcuts.

Run it with ``make demo-training``, or ``python -m benchmarks.demo_training [OUT]``.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.demo import headline
from parity.text import table
from resnet_spec import TrainingRecipe, get_recipe
from resnet_training import (
    LAST,
    Backend,
    Outcome,
    Run,
    Seen,
    Source,
    begin,
    evaluate,
    resume,
)
from resnet_training.arrays import of_arrays
from resnet_training.metrics import read
from resnet_training.sources import Data

LEAST = 0.97
BACKENDS: tuple[Backend, ...] = ("torch", "flax")
NETWORKS = ("cifar_plain20", "cifar_plain56", "cifar_resnet20", "cifar_resnet56")


def digits() -> Data:
    """1,797 digits of 8x8 pixels that 43 people wrote, doubled; 397 for validation.

    The split knows nothing of who wrote which, so this is no accuracy on unknown hands.
    """
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    images = np.rint(found.images * 255 / 16).astype(np.uint8)
    images = images.repeat(2, axis=1).repeat(2, axis=2)
    order = np.random.default_rng(0).permutation(len(images))
    train, held = order[397:], order[:397]
    return of_arrays(
        images[train],
        found.target[train],
        val_images=images[held],
        val_labels=found.target[held],
        where="scikit-learn's digits",
    )


def recipe(network: str, **fields: Any) -> TrainingRecipe:
    """The paper's for CIFAR, as far as it fits digits: no flip, ten epochs."""
    usual: dict[str, Any] = {
        "batch": 64,
        "epochs": 10,
        "steps": None,
        "learning_rate": 0.1,
        "decay": "cosine",
        "milestones": (),
        "warmup_epochs": 1,
        "size": 16,
        "evaluation_resize": 16,
        "crop": "shifted",
        "flip": 0.0,
        "mean": (0.5,),
        "std": (0.5,),
    }
    settings = {"in_channels": 1}
    return get_recipe(
        "cifar-paper", network=network, settings=settings, **usual | fields
    )


def main(out: Path) -> int:
    data = digits()
    headline("cifar_resnet20 on real digits: five epochs in torch, five in Flax")
    folder = out / "resnet20"
    first = begin(folder, data, recipe("cifar_resnet20"), "torch")
    half = first.plan.steps // 2
    _learn(first, "torch", half)
    _learn(resume(folder, data, "flax"), "flax")
    for backend in BACKENDS:
        found = _accuracy(data.validation, folder, backend)
        print(f"validation accuracy in {backend} {found:.2%}: {folder / LAST}")
        if found < LEAST:
            print(f"that is less than {LEAST:.0%}")
            return 1

    headline("depth with shortcuts and without, the same recipe, lr 0.03, in torch")
    rows, curves = [], {}
    for name in NETWORKS:
        started = time.process_time()
        run = begin(out / name, data, recipe(name, learning_rate=0.03, seed=1), "torch")
        outcome = _learn(run, name)
        learnt = _accuracy(data.train, run.folder, "torch")
        curves[name] = [line["loss"] for line in read(out / name) if "loss" in line]
        took = f"{time.process_time() - started:.0f} s"
        rows.append((name, f"{learnt:.1%}", f"{outcome.last:.1%}", took))
    print(table(("network", "training", "validation", "CPU"), rows))
    picture = out / "degradation.png"
    _draw(picture, curves)
    print(f"picture: {picture}")
    accuracy = {name: float(learnt.rstrip("%")) for name, learnt, *_ in rows}
    if accuracy["cifar_resnet56"] < 95 or accuracy["cifar_plain56"] > 60:
        print("the plain network of 56 layers should fail, and the residual one not")
        return 1
    return 0


def _learn(run: Run, what: str, stop: int | None = None) -> Outcome:
    seen: list[Seen] = []
    outcome = run.to(stop, watch=seen.append)
    rate = f"{seen[-1].images_per_second:.0f} images/s"
    first = f"first step after {seen[-1].first:.1f} s"
    print(f"{what}: {outcome.step} steps, loss {seen[-1].loss:.3f}, {rate}, {first}")
    return outcome


def _accuracy(images: Source, folder: Path, backend: Backend) -> float:
    return evaluate(images, folder / LAST, backend).facts["accuracy"]


def _draw(path: Path, curves: dict[str, Sequence[float]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    plain, residual = figure.subplots(1, 2, sharey=True)
    for axes, kind in ((plain, "plain"), (residual, "resnet")):
        for name, losses in curves.items():
            if kind not in name:
                continue
            window = 21  # an epoch has about as many steps
            means = np.convolve(losses, np.ones(window) / window, "valid")
            steps = np.arange(len(means)) + window
            deep = name.endswith("56")
            axes.plot(
                steps,
                means,
                color="C3" if deep else "C0",
                label=f"{name[-2:]} layers",
                linewidth=2,
            )
        axes.set(xlabel="step", title="plain" if kind == "plain" else "with shortcuts")
        axes.grid(alpha=0.3)
        axes.legend()
    plain.set(ylabel="training loss", ylim=(0, None))
    figure.savefig(path, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    start = time.perf_counter()
    if len(sys.argv) > 1:
        Path(sys.argv[1]).mkdir(parents=True)
        code = main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory(prefix="resnet-twins-digits-") as name:
            code = main(Path(name))
    print(f"\nthe demo took {time.perf_counter() - start:.0f} s")
    sys.exit(code)
