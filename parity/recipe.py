"""A check of both twins as someone asked for it, so that it can be run again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from parity.check import check
from parity.download import Progress
from parity.gates import FORWARD, GATES
from parity.images import load_image
from parity.precision import PRECISIONS, Precision
from parity.report import Report
from parity.samples import random_images
from parity.state import DTYPES, cast, load_state_dict
from parity.trajectory import compare_training
from parity.twins import ABSTRACT, Chosen, weights_for
from resnet_spec import OptimizerConfig, ResNetConfig, describe, resolve

COMPUTED_IN = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a check of both twins is made of.

    Args:
        name: a network of the table.
        overrides: settings that differ from the table's.
        weights: ``"random"``, published weights, or a file.
        key: entry of a file that has several states.
        allow_nonfinite: accept NaN and infinity in a file.
        image: a photograph; ``None`` for random images.
        size: height and width of random images; ``None`` for an uneven size.
        batch: number of random images.
        seed: of random weights, images and labels.
        dtype: that both compute in; float64 is judged whatever it is.
        precision: of float32 on accelerators; see :mod:`parity.precision`.
        training: judge training mode too.
        steps: training steps to judge; 0 for none.
        optimizer: of these steps, as JSON.

    Raises:
        ValueError: a field has a value that it cannot have.
    """

    name: str
    overrides: dict[str, Any]
    weights: str = "random"
    key: str | None = None
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
        for field, allowed in (("dtype", COMPUTED_IN), ("precision", PRECISIONS)):
            value = getattr(self, field)
            if value not in allowed:
                raise ValueError(
                    f"{field} is {value!r}; it must be one of {', '.join(allowed)}"
                )
        if self.steps or self.optimizer is not None:
            optimizer_of(self.optimizer)  # so that a wrong one is refused at once
        if self.size is not None:  # JSON has lists
            height, width = self.size
            object.__setattr__(self, "size", (int(height), int(width)))

    @classmethod
    def from_certificate(cls, recipe: Any) -> Recipe:
        """Reads what a certificate says was asked for.

        Raises:
            ValueError: it says something else.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(recipe, dict) or recipe.keys() != names:
            raise ValueError("the certificate's recipe lacks or adds a field")
        return cls(**recipe)

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
        """Finds the weights; see :func:`parity.twins.weights_for`."""
        return weights_for(
            self.config,
            self.weights,
            seed=self.seed,
            key=self.key,
            allow_nonfinite=self.allow_nonfinite,
            progress=progress,
        )

    def images(self, chosen: Chosen) -> np.ndarray:
        """Makes the images, float32 (n, c, h, w), as the dtype can hold them.

        Raises:
            ValueError: the network takes no photographs, or none of this size.
        """
        config = self.config
        if self.image is not None:
            images = photograph(Path(self.image), config, chosen)
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
        return f"{self.name}: {chosen.what}; {self.image or what}"

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
            gates=GATES if self.training else tuple(FORWARD),
            seed=self.seed,
            precision=self.precision,
            progress=progress,
        )
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


def optimizer_of(text: str | None) -> OptimizerConfig:
    """Returns an optimiser by its kind, or by the JSON of its settings.

    Raises:
        ValueError: it is neither.
    """
    kind = text or "sgd"
    if kind in USUAL:
        settings = dict(USUAL[kind])
        schedule = {"learning_rate": settings.pop("learning_rate"), "warmup_steps": 5}
        return OptimizerConfig.from_json(
            json.dumps({"kind": kind, "schedule": schedule, **settings})
        )
    if not kind.lstrip().startswith("{"):
        raise ValueError(
            f"no optimiser {kind!r}; name one of {', '.join(USUAL)}, or write its "
            'settings as JSON, {"kind": "sgd", "schedule": {"learning_rate": 0.1}}'
        )
    return OptimizerConfig.from_json(kind)


def photograph(path: Path, config: ResNetConfig, chosen: Chosen) -> np.ndarray:
    """Loads a photograph as the weights' preprocessing has it.

    Raises:
        ValueError: the network takes no photographs.
    """
    if config.in_channels != 3 or config.head != "linear" or not config.include_top:
        raise ValueError(
            f"{path}: a photograph has 3 channels and is cut to a square; "
            f"{describe(config)} takes no such image or has no classes"
        )
    return load_image(path, chosen.published)
