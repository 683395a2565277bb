"""Small runs for tests: a network of three blocks, images that are drawn, few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from resnet_spec import TrainingRecipe, get_recipe
from resnet_training import BEST, LAST, Data
from resnet_training.arrays import of_arrays
from resnet_training.engine import Backend, Engine, State
from resnet_training.engines import create_engine
from resnet_training.initial import initial_state
from resnet_training.loader import Loader
from resnet_training.metrics import METRICS
from resnet_training.plan import Plan

SMALL: dict[str, Any] = {
    "network": "cifar_resnet20",
    "settings": {"layers": [1, 1], "widths": [4, 6]},
    "batch": 8,
    "size": 12,
    "evaluation_resize": 12,
    "steps": 20,
    "dtype": "float64",
}


def recipe(name: str = "cifar-paper", **fields: Any) -> TrainingRecipe:
    """A recipe in small, in float64."""
    return get_recipe(name, **{**SMALL, **fields})


def drawn(images: int = 40, classes: int = 4, side: int = 12, seed: int = 0) -> Data:
    """Images that are noise about a colour of their class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    colours = rng.integers(40, 216, (classes, 1, 1, 3))
    noise = rng.integers(-40, 40, (images, side, side, 3))
    pixels = (colours[labels] + noise).astype(np.uint8)
    held = images // 4
    return of_arrays(
        pixels[held:],
        labels[held:],
        val_images=pixels[:held],
        val_labels=labels[:held],
    )


def plan_of(recipe: TrainingRecipe, data: Data) -> Plan:
    """The recipe for these images."""
    return Plan(recipe, len(data.train), len(data.classes))


def engine_of(
    backend: Backend, recipe: TrainingRecipe, data: Data, **options: Any
) -> Engine:
    """An engine at its first step."""
    plan = plan_of(recipe, data)
    state = initial_state(plan.config, seed=recipe.seed)
    return create_engine(backend, plan, state, **options)


def learnt(
    backend: Backend,
    recipe: TrainingRecipe,
    data: Data,
    *,
    start: int = 0,
    stop: int | None = None,
    arrays: State | None = None,
) -> tuple[list[float], State]:
    """Trains from a step to another; returns the losses, and all that the end is."""
    engine = engine_of(backend, recipe, data)
    if arrays is not None:
        engine.restore(arrays, start)
    stop = stop or engine.plan.steps
    return trained(engine, recipe, data, start, stop)


def trained(
    engine: Engine, recipe: TrainingRecipe, data: Data, start: int, stop: int
) -> tuple[list[float], State]:
    """Trains an engine, by this process's part of each batch."""
    with loader_of(engine, recipe, data) as loader:
        losses = [engine.step(batch) for batch in loader.batches(start, stop)]
    return engine.losses(losses), engine.arrays()


def loader_of(engine: Engine, recipe: TrainingRecipe, data: Data) -> Loader:
    """Reads this process's part of each batch."""
    return Loader(data.train, recipe, rank=engine.rank, ranks=engine.ranks)


FILES = (LAST, BEST, METRICS, "recipe.json", "class_indices.json")


def same_files(found: Path, expected: Path) -> None:
    """Refuses a run whose files are not, byte for byte, those of another."""
    for name in FILES:
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
