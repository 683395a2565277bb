"""A run's files of weights: complete and verified, or as they were.

One safetensors file holds all that the next step depends on. The network's state has
its plain names, so that :func:`parity.load` reads it; what else there is has a prefix.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from parity.errors import CheckpointError
from parity.files import opening
from parity.files.safetensors_format import own_facts
from parity.files.writing import save
from parity.weights.digest import digest
from parity.weights.state import as_array
from resnet_spec import ResNetConfig, TrainingRecipe
from resnet_training.engine import State

LAST, BEST = "last.safetensors", "best.safetensors"
_KEPT = "last-*.safetensors"


_DIGEST = "recipe_sha256"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands.

    Args:
        step: steps that are done.
        recipe: what is done.
        data: fingerprint of the images.
        images: in an epoch.
        val_split: part of each class that is validated on, if nothing else said which.
        classes: their names, in order.
        best: accuracy of the best evaluation, -1 before the first.
        best_step: after how many steps that was.
        evaluated: whether the weights are those that are evaluated, without what else
            a run needs to go on.
        versions: of what computed and read.
    """

    step: int
    recipe: TrainingRecipe
    data: str
    images: int
    val_split: float | None
    classes: tuple[str, ...]
    best: float = -1.0
    best_step: int = 0
    evaluated: bool = False
    versions: Mapping[str, str]

    @classmethod
    def of(cls, told: Any) -> Progress:
        """Reads what a file's metadata say.

        Raises:
            CheckpointError: they say something else.
        """
        try:
            recipe = TrainingRecipe.of(told["recipe"])
            if told.get(_DIGEST, recipe.sha256) != recipe.sha256:
                raise ValueError("its recipe is not the one that it names")
            classes = tuple(map(str, told["classes"]))
            rest = {name: value for name, value in told.items() if name != _DIGEST}
            return cls(**rest | {"recipe": recipe, "classes": classes})
        except (KeyError, TypeError, ValueError) as error:
            what = f"what it says of its training cannot be read ({error})"
            raise CheckpointError(
                what, advice="Use the version that wrote it"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Returns it for JSON."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        digest = {_DIGEST: self.recipe.sha256}
        return found | {"recipe": asdict(self.recipe)} | digest


def write(
    path: Path, arrays: Mapping[str, np.ndarray], config: ResNetConfig, at: Progress
) -> None:
    """Writes a checkpoint, in the place of the one that is there.

    Raises:
        OutputError: it cannot be written; what stood there stands there still.
        CheckpointError: there are values that are not finite.
    """
    save(path, arrays, config=config, overwrite=True, training=at.to_dict())


def read(path: str | os.PathLike[str]) -> tuple[State, Progress]:
    """Reads a checkpoint to go on from.

    Raises:
        CheckpointError: there is none, it is damaged, or no run can go on from it.
    """
    path = Path(path)
    try:
        content = opening.read(path)
        told = content.metadata or {}
        if "training" not in told:
            raise CheckpointError(
                "is no checkpoint of a run",
                advice=f"Name a run's folder, or its {LAST}",
            )
        at = Progress.of(told["training"])
        if at.evaluated:
            raise CheckpointError(
                "holds weights only: no run can go on from it",
                advice=f"Use {LAST} beside it; --weights starts a new run from it",
            )
        arrays = {name: as_array(value) for name, value in content.value.items()}
        if digest(arrays) != told.get("sha256"):
            raise CheckpointError("its values are not those that were written")
    except CheckpointError as error:
        raise error.at(path) from error.__cause__
    return arrays, at


def progress_in(path: str | os.PathLike[str]) -> Progress | None:
    """Returns what a file of weights says of its training; ``None`` if nothing.

    Raises:
        CheckpointError: it says what no run does.
    """
    told = own_facts(path).get("training")
    try:
        return None if told is None else Progress.of(told)
    except CheckpointError as error:
        raise error.at(path) from error.__cause__


def keep(folder: Path, step: int, count: int) -> None:
    """Keeps the last ``count`` checkpoints by their step, beside ``last``.

    Args:
        folder: of the run.
        step: of the checkpoint that has just been written.
        count: how many; with 1 none is added, and none taken away.
    """
    if count == 1:
        return
    own = folder / f"last-{step:08d}.safetensors"
    own.unlink(missing_ok=True)
    try:
        os.link(folder / LAST, own)
    except OSError:  # not every file system has links
        own.write_bytes((folder / LAST).read_bytes())
    for old in sorted(folder.glob(_KEPT))[:-count]:
        old.unlink(missing_ok=True)


def forget_later(folder: Path, step: int) -> None:
    """Removes the checkpoints that were kept of steps which are done anew."""
    for path in folder.glob(_KEPT):
        if path.stem > f"last-{step:08d}":
            path.unlink(missing_ok=True)
