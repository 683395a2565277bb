"""Recipes: their numbers, their names, what contradicts itself, and their options."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity.errors import CheckpointError
from parity.files import opening
from parity.files.writing import save
from parity.judging.distance import deviation
from parity.judging.tolerances import AFTER_STEPS
from parity.weights.digest import differing_bits
from resnet_spec import RECIPES, TrainingRecipe, get_recipe
from resnet_spec.training import CHOICES
from resnet_training import LAST, begin, checkpoint
from resnet_training.engine import Backend
from resnet_training.plan import Plan
from tests.support.command import Called
from tests.support.runs import drawn, engine_of, learnt, loader_of, plan_of, recipe

DATA = drawn()

# The references' script; torchvision's references/classification with the metadata of
# ResNet50_Weights; Wightman et al. 2021, table 2; He et al. 2015, section 4.2.
NUMBERS: dict[str, dict[str, Any]] = {
    "reference": {
        "network": "resnet34", "batch": 32, "epochs": 20, "optimizer": "adam",
        "learning_rate": 1e-3, "weight_decay": None, "decay": "constant", "size": 224,
        "crop": "random-resized", "flip": 0.5, "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5), "evaluation_resize": None, "centre": 224,
    },
    "imagenet-v1": {
        "network": "resnet50", "batch": 256, "epochs": 90, "optimizer": "sgd",
        "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "gamma": 0.1,
        "milestones": (1 / 3, 2 / 3), "evaluation_resize": 256, "centre": 224,
    },
    "imagenet-v2": {
        "batch": 1024, "epochs": 600, "learning_rate": 0.5, "momentum": 0.9,
        "weight_decay": 2e-5, "no_decay": ("norm",), "decay": "cosine",
        "warmup_epochs": 5, "warmup_factor": 0.01, "label_smoothing": 0.1,
        "augment": "trivial", "erasing": 0.1, "mixup": 0.2, "cutmix": 1.0,
        "repeats": 4, "size": 176, "evaluation_resize": 232, "centre": 224,
    },
    "rsb-a1": {
        "batch": 2048, "epochs": 600, "optimizer": "lamb", "learning_rate": 5e-3,
        "weight_decay": 0.01, "label_smoothing": 0.1, "drop_path": 0.05,
        "repeats": 3, "mixup": 0.2, "cutmix": 1.0, "loss": "bce", "size": 224,
        "warmup_epochs": 5, "evaluation_resize": 236, "centre": 224,
    },
    "rsb-a2": {
        "batch": 2048, "epochs": 300, "optimizer": "lamb", "learning_rate": 5e-3,
        "weight_decay": 0.02, "label_smoothing": 0, "drop_path": 0.05, "repeats": 3,
        "mixup": 0.1, "cutmix": 1.0, "loss": "bce", "size": 224,
    },
    "rsb-a3": {
        "batch": 2048, "epochs": 100, "optimizer": "lamb", "learning_rate": 8e-3,
        "weight_decay": 0.02, "label_smoothing": 0, "drop_path": 0, "repeats": 1,
        "mixup": 0.1, "cutmix": 1.0, "loss": "bce", "size": 160, "centre": 224,
    },
    "cifar-paper": {
        "network": "cifar_resnet20", "batch": 128, "steps": 64_000,
        "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 1e-4,
        "milestones": (0.5, 0.75), "size": 32, "crop": "padded", "flip": 0.5,
    },
    "finetune": {
        "learning_rate": 0.01, "momentum": 0.9, "decay": "cosine", "epochs": 10,
    },
}  # fmt: skip


def test_every_recipe_has_its_sources_numbers():
    assert NUMBERS.keys() == RECIPES.keys()
    for name, numbers in NUMBERS.items():
        found = RECIPES[name]
        assert {n: getattr(found, n) for n in numbers} == numbers, name


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_and_goes_down_the_same_path_in_both(name: str):
    one = recipe(
        name,
        steps=4,
        warmup_epochs=min(RECIPES[name].warmup_epochs, 0.5),
        evaluation_crop=12,
        settings={"layers": [1], "widths": [4]},
    )
    losses, expected = learnt("torch", one, DATA)
    theirs, found = learnt("flax", one, DATA)
    assert np.isfinite(losses).all()
    assert deviation(np.array(theirs), np.array(losses)).l2 <= AFTER_STEPS
    for entry, array in expected.items():
        assert deviation(found[entry], array).l2 <= AFTER_STEPS, entry


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_an_optimiser_for_its_whole_length(name: str):
    plan = Plan(RECIPES[name], 50_000, 10)
    schedule = plan.optimizer.schedule
    rates = [schedule.at(step) for step in range(0, plan.steps, plan.steps // 50)]
    assert max(rates) <= RECIPES[name].learning_rate * (1 + 1e-12)
    assert min(rates) >= 0


AT_ODDS: list[tuple[dict[str, Any], str]] = [
    ({"steps": 5, "epochs": 2}, "epochs is 2"),
    ({"accumulate": 3}, "a divisor of batch"),
    ({"norm": "groups=3"}, "groups that divide 8 images"),
    ({"norm": "groups=2", "drop_path": 0.1}, "0 with norm 'groups=2'"),
    ({"decay": "milestones", "milestones": ()}, "given with decay 'milestones'"),
    ({"decay": "cosine", "milestones": (0.5,)}, "with decay 'cosine', which ignores"),
    ({"decay": "constant", "gamma": 0.5}, "with decay 'constant', which ignores it"),
    ({"end_learning_rate": 1e-3}, "with decay 'milestones', which ignores it"),
    ({"warmup_factor": 0.5}, "with warmup_epochs 0.0, which ignores it"),
    ({"augment": "trivial", "augment_magnitude": 3}, "with augment 'trivial'"),
    ({"augment_operations": 3}, "with augment 'none', which ignores it"),
    ({"ema_every": 4}, "with ema_decay 0.0, which ignores it"),
    ({"crop": "none", "crop_scale": (0.5, 1.0)}, "with crop 'none', which ignores it"),
    ({"crop_ratio": (1.0, 1.0)}, "with crop 'padded', which ignores it"),
    ({"evaluation_resize": 8}, "an integer from evaluation_crop, 12"),
    ({"batch": 1, "mixup": 0.2}, "above 1 with mixup or cutmix"),
    ({"repeats": 9}, "at most batch, 8"),
    ({"nesterov": True, "momentum": 0.0}, "False without momentum"),
    ({"betas": (0.9, 0.99)}, "with kind 'sgd', which ignores it"),
    ({"mean": (0.5,)}, "as many numbers as mean has, 1"),
    ({"mean": (0.5,), "std": (0.5,)}, "each of the network's 3 channels"),
    ({"settings": {"num_classes": 5}}, "the data decide"),
    ({"settings": {"drop_path_rate": 0.5}}, "is drop_path"),
]


@pytest.mark.parametrize(("fields", "said"), AT_ODDS, ids=lambda value: str(value)[:40])
def test_fields_at_odds_are_refused_in_a_sentence(fields: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        recipe(**fields)
    assert "\n" not in str(error.value)


def test_what_goes_with_an_old_value_goes_with_it():
    rsb = RECIPES["rsb-a1"]
    found = get_recipe("rsb-a1", optimizer="sgd", momentum=0.9)
    assert (found.eps, found.betas) == (TrainingRecipe().eps, rsb.betas)
    assert found.clip_norm == rsb.clip_norm  # every optimiser has it
    found = get_recipe("rsb-a1", decay="constant", augment="none", warmup_epochs=0)
    usual = TrainingRecipe()
    for name in ("end_learning_rate", "augment_magnitude", "warmup_factor"):
        assert getattr(rsb, name) != getattr(usual, name) == getattr(found, name)
    with pytest.raises(ValueError, match="eps is 1e-06; it must be 1e-08 with kind"):
        get_recipe("rsb-a1", optimizer="sgd", eps=1e-6)


def test_a_recipe_is_named_by_what_it_does_and_not_by_how_it_is_written():
    one = get_recipe("imagenet-v1", batch=64)
    assert one.sha256 == TrainingRecipe.from_json(one.to_json()).sha256
    spelt = get_recipe(
        "imagenet-v1", batch=np.int64(64), epochs=90, milestones=[1 / 3, 2 / 3]
    )
    assert spelt.sha256 == one.sha256
    different = {
        dataclasses.replace(one, **{name: value}).sha256
        for name, value in (("seed", 1), ("flip", 0.25), ("dtype", "float64"))
    }
    assert len(different | {one.sha256}) == 4


def _others() -> dict[str, tuple[dict[str, Any], str, Any]]:
    """Field → what must be beside it, a value as it is written, and as it is."""
    rules = {"optimizer": "lamb"}
    special: dict[str, tuple[dict[str, Any], str, Any]] = {
        "epochs": ({}, "3.5", 3.5),
        "steps": ({}, "7", 7),
        "norm": ({}, "groups=2", "groups=2"),
        "size": ({}, "64", 64),
        "evaluation_crop": ({}, "192", 192),
        "evaluation_resize": ({}, "300", 300),
        "flip": ({}, "0.25", 0.25),
        "optimizer": ({}, "sgd", "sgd"),
        "accumulate": ({}, "2", 2),
        "crop_scale": ({}, "0.5,1", (0.5, 1.0)),
        "crop_ratio": ({}, "1,2", (1.0, 2.0)),
        "augment_operations": ({"augment": "randaugment"}, "3", 3),
        "augment_magnitude": ({"augment": "randaugment"}, "5", 5),
        "mean": ({}, "0.1,0.2,0.3", (0.1, 0.2, 0.3)),
        "std": ({}, "0.1,0.2,0.3", (0.1, 0.2, 0.3)),
        "momentum": ({"optimizer": "sgd"}, "0.9", 0.9),
        "nesterov": ({"optimizer": "sgd", "momentum": 0.9}, "", True),
        "no_decay": (rules, "norm,bias", ("norm", "bias")),
        "betas": (rules, "0.8,0.9", (0.8, 0.9)),
        "eps": (rules, "0.25", 0.25),
        "alpha": ({"optimizer": "rmsprop"}, "0.5", 0.5),
        "centered": ({"optimizer": "rmsprop"}, "", True),
        "decay": ({}, "cosine", "cosine"),
        "milestones": ({"decay": "milestones"}, "0.25,0.5", (0.25, 0.5)),
        "gamma": ({"decay": "milestones", "milestones": "0.5"}, "0.5", 0.5),
        "end_learning_rate": ({"decay": "linear"}, "0.0001", 1e-4),
        "warmup_factor": ({"warmup_epochs": 1}, "0.5", 0.5),
        "ema_every": ({"ema_decay": 0.5}, "3", 3),
    }
    found = {}
    for field in dataclasses.fields(TrainingRecipe):
        if field.name in ("network", "settings", "weights"):
            continue
        if field.name in special:
            found[field.name] = special[field.name]
        elif field.name in CHOICES:
            usual = getattr(get_recipe("reference"), field.name)
            other = next(
                c for c in CHOICES[field.name] if c != usual and c != "milestones"
            )
            found[field.name] = ({}, other, other)
        elif field.type == "int":
            found[field.name] = ({}, "2", 2)
        else:
            found[field.name] = ({}, "0.5", 0.5)
    return found


@pytest.mark.parametrize("name", _others())
def test_every_field_of_a_recipe_is_an_option(
    name: str, call: Called, folder_of_images: Path, tmp_path: Path, monkeypatch: Any
):
    beside, written, value = _others()[name]
    asked: list[TrainingRecipe] = []

    def noted(folder: Path, data: Any, recipe: TrainingRecipe, *rest: Any, **more: Any):
        asked.append(recipe)
        raise ValueError("enough")

    monkeypatch.setattr("resnet_cli.training.begin", noted)
    words = [f"--{field.replace('_', '-')}" for field in (*beside, name)]
    values = [*map(str, beside.values()), written]
    given = [part for pair in zip(words, values, strict=True) for part in pair if part]
    said = call.error("train", folder_of_images, *given, "--out", tmp_path / "run")
    assert said.endswith("enough"), said
    assert getattr(asked[0], name) == value != getattr(get_recipe("reference"), name)


def test_a_checkpoint_says_what_it_is_of(tmp_path: Path):
    one = recipe(steps=2)
    begin(tmp_path / "run", DATA, one).to()
    content = opening.read(tmp_path / "run" / LAST)
    told = (content.metadata or {})["training"]
    assert told["recipe_sha256"] == one.sha256
    assert told["step"] == 2
    assert told["data"] == DATA.fingerprint
    assert told["versions"].keys() >= {"torch", "numpy", "pillow", "threads", "decoder"}
    arrays = {name: np.array(value) for name, value in content.value.items()}
    other = told | {"recipe": told["recipe"] | {"seed": 5}}
    path = tmp_path / "other.safetensors"
    save(path, arrays, config=plan_of(one, DATA).config, training=other)
    with pytest.raises(
        CheckpointError, match="its recipe is not the one that it names"
    ):
        checkpoint.read(path)


@pytest.mark.parametrize("backend", ["torch", "flax"])
def test_an_evaluation_changes_nothing(backend: Backend, tmp_path: Path):
    often, seldom = (recipe(steps=6, evaluate_every=n, ema_decay=0.5) for n in (0.3, 9))
    found = []
    for number, one in enumerate((often, seldom)):
        begin(tmp_path / str(number), DATA, one, backend).to()
        found.append(checkpoint.read(tmp_path / str(number) / LAST)[0])
    assert differing_bits(*found) == {}


def test_the_average_of_weights_is_the_sum_of_what_each_step_left():
    one = recipe(steps=4, ema_decay=0.75)
    engine = engine_of("torch", one, DATA)
    network = engine.network()
    expected = {n: a.astype(np.float64) for n, a in network.items()}
    with loader_of(engine, one, DATA) as loader:
        for batch in loader.batches(0, 4):
            engine.step(batch)
            for name, array in engine.network().items():
                if name.endswith("num_batches_tracked"):
                    continue
                expected[name] = 0.75 * expected[name] + 0.25 * array
    found = engine.averaged()
    names = [n for n in expected if not n.endswith("num_batches_tracked")]
    assert {"bn1.running_mean", "bn1.running_var", "bn1.weight"} <= set(names)
    for name in names:
        assert deviation(found[name], expected[name]).l2 <= AFTER_STEPS, name


def test_recipes_are_json_that_anyone_reads():
    for name, one in RECIPES.items():
        told = json.loads(one.to_json())
        assert told.keys() == {f.name for f in dataclasses.fields(TrainingRecipe)}, name
