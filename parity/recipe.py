"""A check of both twins as someone asked for it, so that it can be run again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

import numpy as np

from parity.files.download import Progress
from parity.files.preprocessing import preprocess
from parity.files.selecting import Selection
from parity.files.sources import Chosen, weights_for
from parity.images import random_images
from parity.judging.check import check
from parity.judging.gates import FORWARD, GATES
from parity.judging.report import Report
from parity.judging.steps import compare_training
from parity.machine import PRECISIONS, Precision
from parity.weights.changes import cast
from parity.weights.state import DTYPES, load_state_dict
from parity.weights.twins import ABSTRACT
from resnet_spec import OptimizerConfig, ResNetConfig, resolve
from resnet_spec.printable import plain
from resnet_spec.settings import Settings, invalid, is_plain

# A recipe may be a stranger's: more than these would take hours, or all memory.
_MOST_WEIGHTS, _MOST_BLOCKS, _MOST_VALUES, _MOST_STEPS = 2**28, 1024, 2**27, 10_000

COMPUTED_IN = ("float32", "bfloat16", "float16")


class FieldError(ValueError):
    """A field of a recipe that it cannot have; the message begins with its name."""


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_count(value: object, least: int = 0, most: int = 2**63 - 1) -> bool:
    return isinstance(value, int) and not _is_flag(value) and least <= value <= most


def _is_size(value: object) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    return all(_is_count(side, 1) for side in value)


_TEXT = (_is_text, "a text")
_MAYBE_TEXT = (lambda value: value is None or _is_text(value), "a text or nothing")
_TEXTS = (
    lambda value: isinstance(value, list | tuple) and all(map(_is_text, value)),
    "a list of texts",
)
_FLAG = (_is_flag, "true or false")
_COUNT = (_is_count, "an integer, 0 or more")
_FIELDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "name": _TEXT,
    "overrides": (lambda value: isinstance(value, dict), "settings by name"),
    "weights": _TEXT,
    "key": _MAYBE_TEXT,
    "prefix": _MAYBE_TEXT,
    "ignore": _TEXTS,
    "rename": _TEXTS,
    "dialect": _MAYBE_TEXT,
    "allow_nonfinite": _FLAG,
    "image": _MAYBE_TEXT,
    "size": (lambda v: v is None or _is_size(v), "two positive integers, or nothing"),
    "batch": (lambda value: _is_count(value, 1), "a positive integer"),
    "seed": _COUNT,
    "dtype": (COMPUTED_IN.__contains__, f"one of {', '.join(COMPUTED_IN)}"),
    "precision": (PRECISIONS.__contains__, f"one of {', '.join(PRECISIONS)}"),
    "training": _FLAG,
    "steps": (
        lambda value: _is_count(value, most=_MOST_STEPS),
        f"an integer from 0 to {_MOST_STEPS}",
    ),
    "optimizer": _MAYBE_TEXT,
}
"""What every field of a recipe may be, and that in words."""


_NEWER = ("prefix", "ignore", "rename", "dialect")
"""Fields that a certificate of an earlier version lacks."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Settings):
    """What a check of both twins is made of.

    Args:
        name: a network of the table.
        overrides: settings that differ from the table's.
        weights: ``"random"``, published weights, or a file.
        key: entry of a file that has several states; this and the next four as in
            :func:`parity.load`.
        prefix: of the names that are meant.
        ignore: patterns of names that are left out.
        rename: rules for names that no dialect knows.
        dialect: whose names the file has.
        allow_nonfinite: accept NaN and infinity in a file.
        image: a photograph; ``None`` for random images.
        size: height and width of random images; ``None`` for an uneven size.
        batch: number of random images.
        seed: of random weights, images and labels.
        dtype: that both compute in; float64 is judged whatever it is.
        precision: of float32 on accelerators; see :mod:`parity.machine`.
        training: judge training mode too.
        steps: training steps to judge; 0 for none.
        optimizer: of these steps, as JSON.

    Raises:
        FieldError: a field has a value that it cannot have.
        ValueError: there is no such network.
    """

    name: str
    overrides: dict[str, Any]
    weights: str = "random"
    key: str | None = None
    prefix: str | None = None
    ignore: tuple[str, ...] = ()
    rename: tuple[str, ...] = ()
    dialect: str | None = None
    allow_nonfinite: bool = False
    image: str | None = None
    size: tuple[int, int] | None = None
    batch: int = 2
    seed: int = 0
    dtype: str = "float32"
    precision: Precision = "strict"
    training: bool = True
    steps: int = 0
    optimizer: str | None = None

    def __post_init__(self) -> None:
        for field, (allows, allowed) in _FIELDS.items():
            value = getattr(self, field)
            self._check(field, is_plain(value) and allows(value), allowed)
        super().__post_init__()
        if self.optimizer is not None and not self.steps:
            raise FieldError(
                f"optimizer is {self.optimizer!r}, but steps is 0: nothing is trained; "
                "give a number of steps too, as --steps 20"
            )
        # So that what is wrong is refused at once.
        self._selection()
        optimizer_of(self.optimizer)
        config = self.config
        if config.weight_count > _MOST_WEIGHTS or sum(config.layers) > _MOST_BLOCKS:
            raise FieldError(
                f"overrides make a network of {sum(config.layers)} blocks and "
                f"{config.weight_count:,} weights; a check takes {_MOST_BLOCKS} and "
                f"{_MOST_WEIGHTS:,} at most"
            )
        values = self.batch * config.in_channels * prod(self.size or config.uneven_size)
        if values > _MOST_VALUES:
            raise FieldError(
                f"batch and size make images of {values:,} values; a check takes "
                f"{_MOST_VALUES:,} at most"
            )

    def _check(self, field: str, ok: bool, allowed: str) -> None:
        if not ok:
            raise FieldError(invalid(field, getattr(self, field), allowed))

    @classmethod
    def from_certificate(cls, recipe: Any) -> Recipe:
        """Reads what a certificate says was asked for.

        Raises:
            ValueError: it says something else.
        """
        if not isinstance(recipe, dict):
            raise ValueError("recipe is no object")
        for name in _FIELDS:
            if name not in recipe and name not in _NEWER:
                raise ValueError(f"recipe.{name} is missing")
        for name in recipe:
            if name not in _FIELDS:
                raise ValueError(f"recipe.{name} is no field of a recipe")
        try:
            return cls(**recipe)
        except FieldError as error:
            raise ValueError(f"recipe.{error}") from error
        except ValueError as error:
            raise ValueError(f"recipe: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Returns it for JSON."""
        return asdict(self)

    def with_weights(self, weights: str) -> Recipe:
        """Returns the same with weights that are elsewhere."""
        return replace(self, weights=weights)

    @property
    def config(self) -> ResNetConfig:
        """The network."""
        return resolve(self.name, **self.overrides)

    def choose(self, progress: Progress = lambda done, total: None) -> Chosen:
        """Finds the weights; see :func:`parity.files.sources.weights_for`."""
        return weights_for(
            self.config,
            self.weights,
            seed=self.seed,
            chosen=self._selection(),
            allow_nonfinite=self.allow_nonfinite,
            progress=progress,
        )

    def _selection(self) -> Selection:
        return Selection(self.key, self.prefix, self.ignore, self.rename, self.dialect)

    def images(self) -> np.ndarray:
        """Makes the images, float32 (n, c, h, w), as the dtype can hold them.

        Raises:
            ValueError: the network takes no photographs, or none of this size.
        """
        config = self.config
        if self.image is not None:
            images = preprocess(self.image, config, self.weights)
        else:
            height, width = self.size or config.uneven_size
            config.check_size(height, width)
            shape = (self.batch, config.in_channels, height, width)
            images = random_images(shape, seed=self.seed)
        return images.astype(DTYPES[self.dtype]).astype(np.float32)

    def describe(self, chosen: Chosen, images: np.ndarray) -> str:
        """Says in a line what is checked."""
        n, _, height, width = images.shape
        what = f"{n} random images, {height}x{width}, seed {self.seed}"
        return plain(f"{self.name}: {chosen.what}; {self.image or what}")

    def run(
        self, chosen: Chosen, images: np.ndarray, progress: Callable[[str], None]
    ) -> Report:
        """Builds both twins and checks them."""
        torch_model, flax_model = (
            abstract(self.config, param_dtype=self.dtype)
            for abstract in (ABSTRACT["torch"], ABSTRACT["flax"])
        )
        for model in (torch_model, flax_model):
            load_state_dict(model, cast(chosen.state, self.dtype))
        report = check(
            *(torch_model, flax_model, images),
            gates=GATES if self.training else FORWARD,
            seed=self.seed,
            precision=self.precision,
            progress=progress,
        )
        # As found: a half type loses what tells one file's weights from another's.
        weights = {"source": chosen.sha256, **report.setting["weights"]}
        report = replace(report, setting={**report.setting, "weights": weights})
        if not self.steps:
            return report
        learnt = compare_training(
            *(torch_model, flax_model, images, optimizer_of(self.optimizer)),
            steps=self.steps,
            seed=self.seed,
            progress=progress,
        )
        keys = ("optimizer", "steps", "label_smoothing", "loss_scale")
        training = {key: learnt.setting[key] for key in keys}
        setting = {**report.setting, "steps": training}
        return replace(report, gates=report.gates + learnt.gates, setting=setting)


USUAL = {
    "sgd": {"learning_rate": 0.05, "momentum": 0.9, "weight_decay": 1e-4},
    "adam": {"learning_rate": 1e-3},
    "adamw": {"learning_rate": 1e-3},
    "rmsprop": {"learning_rate": 1e-3, "momentum": 0.9},
}
"""Settings of an optimiser that is only named."""

_EXAMPLE = '{"kind": "sgd", "schedule": {"learning_rate": 0.1}}'


def optimizer_of(text: str | None) -> OptimizerConfig:
    """Returns an optimiser by its kind, or by the JSON of its settings.

    Raises:
        FieldError: it is neither.
    """
    kind = text or "sgd"
    if kind in USUAL:
        settings = dict(USUAL[kind])
        schedule = {"learning_rate": settings.pop("learning_rate"), "warmup_steps": 5}
        return OptimizerConfig.from_json(
            json.dumps({"kind": kind, "schedule": schedule, **settings})
        )
    if not kind.lstrip().startswith("{"):
        raise FieldError(
            f"optimizer: no optimiser {kind!r}; name one of {', '.join(USUAL)}, or "
            f"write its settings as JSON, {_EXAMPLE}"
        )
    try:
        return OptimizerConfig.from_json(kind)
    except (json.JSONDecodeError, RecursionError, OverflowError) as error:
        raise FieldError(
            f"optimizer is no JSON: {error}; write it as {_EXAMPLE}"
        ) from error
    except ValueError as error:
        raise FieldError(f"optimizer: {error}") from error
