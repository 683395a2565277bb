"""Recipes of training by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from resnet_spec.optim import NO_DECAY, OF_RULE
from resnet_spec.settings import invalid, plain_value, shown
from resnet_spec.spelling import did_you_mean
from resnet_spec.training import TrainingRecipe, unused

_IMAGENET_V1 = TrainingRecipe(
    batch=256,
    epochs=90,
    momentum=0.9,
    weight_decay=1e-4,
    decay="milestones",
    milestones=(1 / 3, 2 / 3),
)
_RSB = TrainingRecipe(
    batch=2048,
    optimizer="lamb",
    eps=1e-6,
    no_decay=NO_DECAY,
    clip_norm=1.0,
    decay="cosine",
    end_learning_rate=1e-6,
    warmup_epochs=5,
    warmup_factor=0.02,
    learning_rate=5e-3,
    weight_decay=0.02,
    loss="bce",
    augment="randaugment",
    augment_magnitude=21,
    mixup=0.1,
    cutmix=1.0,
    interpolation="bicubic",
    evaluation_resize=236,
)
_replace = dataclasses.replace

RECIPES: Mapping[str, TrainingRecipe] = {
    "reference": TrainingRecipe(
        network="resnet34",
        optimizer="adam",
        learning_rate=1e-3,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        evaluation_resize=None,
    ),
    "imagenet-v1": _IMAGENET_V1,
    "imagenet-v2": _replace(
        _IMAGENET_V1,
        batch=1024,
        epochs=600,
        learning_rate=0.5,
        weight_decay=2e-5,
        no_decay=("norm",),
        decay="cosine",
        milestones=(),
        warmup_epochs=5,
        label_smoothing=0.1,
        augment="trivial",
        erasing=0.1,
        mixup=0.2,
        cutmix=1.0,
        repeats=4,
        size=176,
        evaluation_resize=232,
        evaluation_crop=224,
        # torchvision's 0.99998 for batches of 128 on 8 devices and 600 epochs, by its
        # own rule: 1 - (1 - 0.99998) * 8 * 128 * 32 / 600.
        ema_decay=1 - 2e-5 * 1024 * 32 / 600,
        ema_every=32,
    ),
    "rsb-a1": _replace(
        _RSB,
        epochs=600,
        weight_decay=0.01,
        label_smoothing=0.1,
        drop_path=0.05,
        mixup=0.2,
        repeats=3,
    ),
    "rsb-a2": _replace(_RSB, epochs=300, drop_path=0.05, repeats=3),
    "rsb-a3": _replace(
        _RSB,
        epochs=100,
        learning_rate=8e-3,
        augment_magnitude=18,
        size=160,
        evaluation_crop=224,
    ),
    "cifar-paper": TrainingRecipe(
        network="cifar_resnet20",
        batch=128,
        epochs=None,
        steps=64_000,
        momentum=0.9,
        weight_decay=1e-4,
        decay="milestones",
        milestones=(0.5, 0.75),
        size=32,
        crop="padded",
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        evaluation_resize=32,
    ),
    "finetune": TrainingRecipe(
        batch=64,
        epochs=10,
        learning_rate=0.01,
        momentum=0.9,
        weight_decay=1e-4,
        decay="cosine",
        warmup_epochs=0.5,
    ),
}
"""Recipes by name, for the network that each is known for.

``reference``: as the references' training script has it, its mistakes aside.
``imagenet-v1`` and ``-v2``: torchvision's for ResNet-50 (its references and the
metadata of its weights). ``rsb-a1``, ``-a2`` and ``-a3``: Wightman et al. 2021, arXiv
2110.00476, table 2, with torchvision's RandAugment for timm's: 7 and 6 of 10 are 21
and 18 of 30, without the noise on it. ``cifar-paper``: He et al. 2015, section 4.2,
with one mean for each channel, not for each pixel. ``finetune``: for weights that are
trained already.
"""


def get_recipe(name: str, **fields: Any) -> TrainingRecipe:
    """Returns a recipe by its name, with other values in some fields.

    Raises:
        ValueError: there is no such recipe or field, or a field cannot have the value.
    """
    if not isinstance(name, str):
        raise invalid("the name of a recipe", name, "a text")
    if name not in RECIPES:
        likely = did_you_mean(name, RECIPES, {})
        raise ValueError(
            f"no recipe {shown(name)};{likely} there are {', '.join(RECIPES)}"
        )
    return with_fields(RECIPES[name], **fields)


def with_fields(recipe: TrainingRecipe, **fields: Any) -> TrainingRecipe:
    """Returns a recipe with other values in some fields.

    What goes with the old value of another field alone goes with it: steps with epochs,
    an optimiser's settings, milestones.

    Raises:
        ValueError: there is no such field, or it cannot have the value.
    """
    defaults = {one.name: one.default for one in dataclasses.fields(TrainingRecipe)}
    for name in fields:
        if name not in defaults:
            likely = did_you_mean(name, defaults, {"lr": "learning_rate"})
            raise ValueError(f"a recipe has no field {shown(name)};{likely}")
        fields[name] = plain_value(name, fields[name])
    for one, other in (("steps", "epochs"), ("epochs", "steps")):
        if fields.get(one) is not None:
            fields.setdefault(other, None)
    left = []
    rule = fields.get("optimizer", recipe.optimizer)
    if rule != recipe.optimizer:
        own = OF_RULE.get(rule, ()) if isinstance(rule, str) else ()
        left += set(OF_RULE[recipe.optimizer]).difference(own)
    before = {name: getattr(recipe, name) for name in defaults}
    left += set(unused(before | fields)).difference(unused(before))
    for name in left:
        fields.setdefault(name, defaults[name])
    return dataclasses.replace(recipe, **fields)
