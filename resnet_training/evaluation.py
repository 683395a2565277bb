"""The accuracy of weights over images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from parity.errors import InputError
from parity.files.download import Progress
from parity.files.preprocessing import preprocessing_for
from parity.files.safetensors_format import own_config
from parity.files.sources import weights_for
from resnet_spec import (
    RECIPES,
    Preprocessing,
    ResNetConfig,
    TrainingRecipe,
    class_names,
    is_published,
    list_models,
    resolve,
)
from resnet_spec.variants import closest_name
from resnet_training import checkpoint
from resnet_training.arrays import validation_of_npz
from resnet_training.cifar import find_cifar
from resnet_training.data import is_npz, open_data
from resnet_training.engine import Backend
from resnet_training.engines import create_engine
from resnet_training.folders import ImageFolder, class_folders
from resnet_training.loader import Loader
from resnet_training.plan import Plan
from resnet_training.sources import Source


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation has found.

    Args:
        facts: accuracy, mean loss, and the numbers that they come from.
        notes: what was accepted or changed on the way.
        rank: of the process, among those that have evaluated together.
    """

    facts: Mapping[str, Any]
    notes: tuple[str, ...]
    rank: int


def open_images(path: str | os.PathLike[str]) -> Source:
    """Opens images to evaluate on.

    Args:
        path: as :func:`resnet_training.open_data` takes it; all images of a folder of
            classes, or of a ``.npz``, that has none to validate on.

    Raises:
        InputError: there is nothing of the kind, or a class has no image.
    """
    path = os.fspath(path)
    if os.path.isdir(path) and find_cifar(path) is None:
        folders = class_folders(path)
        return ImageFolder(os.path.join(path, "val") if "val" in folders else path)
    if is_npz(path):
        return validation_of_npz(path)
    return open_data(path).validation


def evaluate(
    source: Source,
    weights: str | os.PathLike[str],
    backend: Backend = "torch",
    *,
    model: ResNetConfig | None = None,
    batch: int | None = None,
    workers: int = 0,
    skip_broken: bool = False,
    progress: Progress = lambda done, total: None,
    **options: Any,
) -> Evaluation:
    """Counts how many images a network knows, each image once.

    Args:
        source: the images.
        weights: a run's checkpoint, whose preprocessing and classes are its own; other
            weights by name or path.
        backend: ``"torch"`` or ``"flax"``.
        model: the network that the weights are for; what they say by default, or
            resnet50.
        batch: images at once; the recipe's by default.
        workers: processes that read images.
        skip_broken: leave out images that cannot be read.
        progress: told the bytes of a download.
        **options: of the framework's engine.

    Raises:
        CheckpointError: the file is damaged, or is not this network's.
        ValueError: the images' classes are not the network's.
    """
    weights = os.fspath(weights)
    told = None if is_published(weights) else checkpoint.progress_in(weights)
    notes = []
    if told is not None:
        classes = told.classes
        model = model or told.recipe.config(len(classes))
        recipe = _as_evaluated(told.recipe)
    else:
        classes = class_names()
        model = model or own_config(weights) or resolve("resnet50")
        recipe, notes = _usual(model, weights)
    chosen = weights_for(model, weights, fit=told is None, progress=progress)
    count = chosen.config.num_classes
    names = classes if len(classes) == count else ()
    if names and tuple(source.classes) != tuple(names) and told is not None:
        theirs, ours = (", ".join(n) for n in (names, source.classes))
        raise InputError(
            f"has the classes {theirs:.200}; the images have {ours:.200}", path=weights
        )
    if len(source.classes) != count:
        raise InputError(
            f"tells {count} classes apart; the images have {len(source.classes)}",
            path=weights,
        )
    recipe = replace(recipe, batch=batch or recipe.batch)
    plan = Plan(recipe, len(source), count, chosen.config)
    if backend == "flax":
        options = {"devices": 1, **options}
    engine = create_engine(backend, plan, chosen.state, **options)
    with Loader(
        source,
        recipe,
        workers=workers,
        rank=engine.rank,
        ranks=engine.ranks,
        skip_broken=skip_broken,
    ) as loader:
        counts = engine.counted(
            [engine.evaluate(batch) for batch in loader.evaluation(source)]
        )
        skipped = tuple(loader.skipped)
    images = max(counts.images, 1)
    facts = {
        "accuracy": counts.right / images,
        "loss": counts.loss / images,
        "right": counts.right,
        "images": counts.images,
        "skipped": len(skipped),
    }
    return Evaluation(facts, (*chosen.notes, *notes), engine.rank)


def _as_evaluated(recipe: TrainingRecipe) -> TrainingRecipe:
    """Returns a recipe without all that is for training."""
    kept = ("network", "settings", "batch", "dtype", "size", "interpolation", "mean")
    kept += ("std", "evaluation_resize", "evaluation_crop")
    fields: dict[str, Any] = {name: getattr(recipe, name) for name in kept}
    return TrainingRecipe(epochs=None, steps=1, **fields)


def _usual(model: ResNetConfig, weights: str) -> tuple[TrainingRecipe, list[str]]:
    """Returns a recipe with the preprocessing of weights, and what it assumes."""
    name = closest_name(model) or list_models()[0]
    how, notes = preprocessing_for(model, weights), []
    if how is None:
        small = model.stem == "3x3"
        how = RECIPES["cifar-paper"].preprocessing if small else Preprocessing()
        usual = "CIFAR's" if small else "that of torchvision's first ones"
        notes = [f"nothing tells their preprocessing; it is taken to be {usual}"]
    channels = model.in_channels
    mean, std = how.mean, how.std
    if channels != 3:
        mean, std = (0.0,) * channels, (1.0,) * channels
    recipe = TrainingRecipe(
        network=name,
        settings=(("in_channels", channels),),
        epochs=None,
        steps=1,
        size=how.crop,
        evaluation_resize=how.resize,
        interpolation=how.interpolation,
        mean=mean,
        std=std,
    )
    return recipe, notes
