"""Whatever is given for a setting is a setting, or refused in one readable line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import resnet_spec
from resnet_spec.optim import OptimizerConfig, Schedule
from resnet_spec.preprocessing import Preprocessing
from resnet_spec.settings import Settings


class Unlike:
    """What cannot be compared."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("compared")

    __hash__ = None  # type: ignore[assignment]


ODD: dict[str, Any] = {
    "two in torch": torch.zeros(2),
    "two in numpy": np.zeros(2),
    "two in JAX": jnp.zeros(2),
    "nowhere": torch.zeros((), device="meta"),
    "many lines": torch.zeros(8, 8),
    "in a list": [torch.zeros(2)],
    "in a mapping": {1: Unlike()},
    "a mapping": {"x": [1, 2]},
    "numbers as names": {1: 2},
    "a set": {1, 2},
    "of no order": Unlike(),
    "a class": int,
    "a function": len,
    "long": "x" * 10**5,
    "escapes": "\x1b[31m\n",
    "no text": "\ud800",
    "bytes": b"x",
    "too large": 10**400,
    "of many digits": 10**5000,
    "negative": -1,
    "nan": float("nan"),
    "infinite": float("inf"),
    "complex": 1j,
    "true": True,
    "text": "3",
    "none": None,
    "ranges": range(3),
}

DESCRIPTIONS: list[Settings] = [
    resnet_spec.get_config("resnet50"),
    resnet_spec.get_recipe("reference"),
    Schedule(learning_rate=0.1),
    OptimizerConfig(kind="sgd", schedule=Schedule(learning_rate=0.1)),
    Preprocessing(),
]


def _one_line(call: Callable[[], object]) -> object:
    """Returns what it returns, or the error; refuses any but one readable line."""
    try:
        return call()
    except ValueError as error:
        text = str(error)
        assert text.isprintable()
        assert len(text) < 2000  # all names there are, and what was meant
        return error


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("like", DESCRIPTIONS, ids=lambda each: type(each).__name__)
def test_a_setting_is_taken_or_refused_in_one_line(like: Settings, odd: str):
    for field in dataclasses.fields(like):
        found = _one_line(partial(dataclasses.replace, like, **{field.name: ODD[odd]}))
        if isinstance(found, Settings):
            assert type(found).from_json(found.to_json()) == found
            json.loads(found.to_json())
        else:
            assert isinstance(found, ValueError)


@pytest.mark.parametrize("odd", ODD)
def test_a_field_of_a_named_recipe_is_taken_or_refused_in_one_line(odd: str):
    for field in dataclasses.fields(resnet_spec.TrainingRecipe):
        given = {field.name: ODD[odd]}
        _one_line(partial(resnet_spec.get_recipe, "imagenet-v1", **given))


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize(
    "call",
    [
        resnet_spec.get_config,
        resnet_spec.get_recipe,
        resnet_spec.list_models,
        lambda value: resnet_spec.list_models("*", exclude=value),
        lambda value: resnet_spec.get_config("resnet50").replace(output_stride=value),
        lambda value: resnet_spec.get_config("resnet50").replace(features_only=value),
    ],
    ids=["network", "recipe", "pattern", "exclude", "output_stride", "features_only"],
)
def test_a_name_is_taken_or_refused_in_one_line(
    call: Callable[[Any], object], odd: str
):
    _one_line(lambda: call(ODD[odd]))


def test_numbers_of_other_libraries_are_pythons():
    config = resnet_spec.get_config("resnet50").replace(
        norm_eps=np.float32(0.5),
        norm_momentum=torch.tensor(0.25),
        num_classes=jnp.int32(5),
        layers=[np.int64(1), 2, torch.tensor(3), 4],
    )
    assert config.norm_eps == 0.5
    assert config.norm_momentum == 0.25
    assert config.layers == (1, 2, 3, 4)
    for value in (config.norm_eps, config.norm_momentum):
        assert type(value) is float
    assert {type(n) for n in (config.num_classes, *config.layers)} == {int}
