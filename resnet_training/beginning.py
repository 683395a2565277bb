"""How a run begins, and goes on from a checkpoint in either framework."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from parity.files.atomic import replacing
from parity.files.download import Progress as Told
from parity.weights.twins import load_frameworks
from resnet_spec import TrainingRecipe
from resnet_training import checkpoint
from resnet_training.checkpoint import LAST, Progress
from resnet_training.data import open_data
from resnet_training.engine import Backend
from resnet_training.loader import require_batch
from resnet_training.loop import USUAL, Options, Run
from resnet_training.pictures import decoder
from resnet_training.plan import Plan
from resnet_training.sources import Data
from resnet_training.start import start_of

RECIPE, CLASSES = "recipe.json", "class_indices.json"


def begin(
    folder: str | os.PathLike[str],
    data: Data | str | os.PathLike[str],
    recipe: TrainingRecipe,
    backend: Backend = "torch",
    *,
    weights: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    val_split: float | None = None,
    options: Options = USUAL,
    progress: Told = lambda done, total: None,
) -> Run:
    """Begins a run in a new folder.

    Args:
        folder: made if it is not there.
        data: images, or where they are, as :func:`resnet_training.open_data` takes it.
        recipe: what is done. If it names weights, these must be given.
        backend: ``"torch"`` or ``"flax"``.
        weights: that the network starts from: its whole state, or published ones or a
            file, of which is taken what fits.
        val_split: part of each class to validate on, if nothing else says which.
        options: what changes no number.
        progress: told the bytes of a download.

    Raises:
        InputError: the data cannot be used, or are fewer than a batch.
        ValueError: they do not fit the recipe, or the folder holds a run.
        OutputError: the folder cannot be written.
    """
    folder = Path(folder)
    if (folder / LAST).exists():
        raise ValueError(
            f"{folder} holds a run; --resume {folder} goes on with it, another --out "
            "begins a new one"
        )
    data = _opened(data, val_split, recipe.seed)
    require_batch(data.train, recipe)
    plan = Plan(recipe, len(data.train), len(data.classes))
    plan.optimizer  # noqa: B018  refuses a run that is too short for it
    load_frameworks(backend)
    state, recipe, notes = start_of(plan, weights, progress=progress)
    at = Progress(
        step=0,
        recipe=recipe,
        data=data.fingerprint,
        images=plan.images,
        val_split=val_split,
        classes=tuple(data.classes),
        versions=versions(backend),
    )
    run = Run(folder, data, backend, at, state, options, notes=notes)
    if run.engine.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in (
            (RECIPE, json.loads(recipe.to_json())),
            (CLASSES, {str(i): c for i, c in enumerate(data.classes)}),
        ):
            with replacing(folder / name, True) as temporary:
                temporary.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
    return run


def resume(
    folder: str | os.PathLike[str],
    data: Data | str | os.PathLike[str],
    backend: Backend = "torch",
    *,
    recipe: Callable[[TrainingRecipe], TrainingRecipe] = lambda recipe: recipe,
    val_split: float | None = None,
    options: Options = USUAL,
) -> Run:
    """Goes on with a run where it was saved last, in either framework.

    Args:
        folder: of the run, or one of its checkpoints.
        data: the same images as then.
        backend: ``"torch"`` or ``"flax"``; another one than before, if you like.
        recipe: what is asked for now, given what was done; it must be the same.
        val_split: as it was begun with by default.
        options: what changes no number.

    Raises:
        CheckpointError: there is no run, or its checkpoint is damaged.
        ValueError: the data or the recipe are others.
    """
    folder = Path(folder)
    path = folder if folder.is_file() else folder / LAST
    arrays, at = checkpoint.read(path)
    asked = recipe(at.recipe)
    other = asked.differences(at.recipe)
    if other:
        raise ValueError(
            f"{path}: the run has another recipe: {'; '.join(other)}. Go on without "
            "these settings, or begin a new run with --out"
        )
    part = at.val_split if val_split is None else val_split
    data = _opened(data, part, at.recipe.seed)
    if tuple(data.classes) != at.classes:
        theirs, ours = (", ".join(names) for names in (at.classes, data.classes))
        raise ValueError(
            f"{path}: the run has the classes {theirs:.300}; the data have {ours:.300}"
        )
    if data.fingerprint != at.data:
        raise ValueError(
            f"{path}: the run was begun on other images: {at.images} with the "
            f"fingerprint {at.data[:16]}, and these are {len(data.train)} with "
            f"{data.fingerprint[:16]}. Go on with the same, or begin a new run with "
            "--out"
        )
    at = replace(at, versions=versions(backend))
    saved = path.name == LAST
    return Run(path.parent, data, backend, at, arrays, options, saved=saved)


def _opened(
    data: Data | str | os.PathLike[str], val_split: float | None, seed: int
) -> Data:
    if isinstance(data, Data):
        return data
    return open_data(data, val_split=val_split, seed=seed)


def versions(backend: Backend) -> dict[str, str]:
    """Returns what a run's numbers may depend on, by name."""
    packages = {"torch": ("torch",), "flax": ("jax", "flax", "optax")}[backend]
    found = {}
    for name in ("resnet-twins", "numpy", "pillow", *packages):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found | {"decoder": decoder(), "threads": str(_threads(backend))}


def _threads(backend: Backend) -> int:
    if backend == "torch":
        import torch

        return torch.get_num_threads()
    own = getattr(os, "sched_getaffinity", None)  # XLA starts one for each
    return len(own(0)) if own else os.cpu_count() or 1
