"""Networks written as programs, and judged before anybody gets them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from parity.errors import InputError
from parity.exports.facts import Program, free_sizes
from parity.exports.programs import (
    CONTAINERS,
    container_of,
    load_exported,
    serialized,
)
from parity.files.atomic import replacing, require_place
from parity.images import normalised, random_images
from parity.judging.programs import check_program
from parity.judging.report import Report
from parity.recipe import Recipe
from parity.reports.certificate import to_certificate
from parity.weights.changes import cast
from parity.weights.state import DTYPES, load_state_dict, state_dict
from parity.weights.twins import abstract_torch, require
from resnet_spec import Preprocessing, ResNetConfig, get_config, list_models

Say = Callable[[str], None]

SUFFIX = ".certificate.json"
"""Behind a program's name: its certificate's."""


class ProgramError(RuntimeError):
    """A program that does not compute what the network does; none was written.

    Args:
        report: what was found.
    """

    def __init__(self, report: Report) -> None:
        super().__init__(report.verdict())
        self.report = report


@dataclass(frozen=True)
class Export:
    """A program that was written.

    Args:
        path: of the program.
        certificate: of what it was judged by.
        to: its container.
        bytes: of the file.
        sha256: of the file.
        report: the gates.
    """

    path: Path
    certificate: Path
    to: str
    bytes: int
    sha256: str
    report: Report


def export(
    model: Any,
    path: str | os.PathLike[str],
    *,
    to: str | None = None,
    dtype: str = "float32",
    preprocessing: Preprocessing | None = None,
    overwrite: bool = False,
    seed: int = 0,
    recipe: Recipe | None = None,
    progress: Say = lambda what: None,
) -> Export:
    """Writes a network as a program that its own runtime runs, and proves it first.

    The program is loaded by that runtime and judged by gates G2, G3 and G5 against the
    float64 run of the torch twin, on batches of several sizes. Only one that passes
    gets its name; a certificate is written beside it, ``PATH.certificate.json``, which
    ``resnet-twins check --verify`` runs again.

    Args:
        model: either twin, of this package and not fused, or a pair of configuration
            and state.
        path: the file: ``.onnx``, ``.stablehlo`` or ``.pt2``.
        to: ``"onnx"``, ``"stablehlo"`` or ``"torch-export"``; by default what the name
            says.
        dtype: of its weights: float32, bfloat16 or float16. It takes and gives float32.
        preprocessing: whose mean and std go in; it then takes pixels, uint8 of shape
            (n, h, w, 3). Resizing and cutting stay outside.
        overwrite: replace files that are there.
        seed: of the images that it is judged on.
        recipe: where its weights come from, for whoever verifies the certificate.
        progress: told in words what is about to be done.

    Raises:
        ProgramError: it computes something else; nothing was written.
        CheckpointError: the state is not the network's.
        ModuleNotFoundError: what the container needs, or torch, is not installed.
        OutputError: the file is there, or cannot be written.
        ValueError: there is no such container or dtype, or the network cannot be
            written as one.
    """
    require("torch")
    config, state = configured(model)
    path = Path(path)
    to = require_places(path, config, to, overwrite=overwrite)
    certificate = path.with_name(f"{path.name}{SUFFIX}")
    recipe = recipe or _recipe_of(config)
    with ExitStack() as stack:
        files = [
            stack.enter_context(replacing(target, overwrite))
            for target in (path, certificate)
        ]
        progress(f"writing {path.name}")
        data = serialized(config, state, to, dtype=dtype, preprocessing=preprocessing)
        files[0].write_bytes(data)
        asked = ProgramRecipe(replace(recipe, dtype=dtype, seed=seed), path.name)
        report = asked.judge(config, state, files[0], to, progress)
        if not report.ok:
            raise ProgramError(report)
        files[1].write_text(to_certificate(report, asked.to_dict()), encoding="utf-8")
    sha256 = hashlib.sha256(data).hexdigest()
    return Export(path, certificate, to, len(data), sha256, report)


def require_places(
    path: Path,
    config: ResNetConfig,
    to: str | None = None,
    *,
    beside: str = SUFFIX,
    overwrite: bool = False,
) -> str:
    """Checks, before anything is fetched or computed for it, that a program can be.

    Args:
        path: the file.
        config: the network.
        to: as :func:`export` takes it.
        beside: what the name of the file beside it ends in.
        overwrite: replace files that are there.

    Returns:
        The container.

    Raises:
        InputError: the name is no such program's.
        OutputError: a file is there, or cannot be written.
        ValueError: the network returns several maps.
    """
    to = to or container_of(path)
    if to in CONTAINERS and path.suffix != CONTAINERS[to].EXTENSION:
        raise InputError(
            f"is no name of a program of {to}",
            path=path,
            advice=f"Let it end in {CONTAINERS[to].EXTENSION}",
        )
    if config.out_indices is not None:
        raise ValueError(
            f"out_indices is {config.out_indices}; a program has one result: write the "
            "network without them"
        )
    for target in (path, path.with_name(f"{path.name}{beside}")):
        require_place(target, overwrite)
    return to


@dataclass(frozen=True)
class ProgramRecipe:
    """What the check of a program is made of.

    Args:
        recipe: the network and its weights.
        program: the program's file, beside the certificate.
    """

    recipe: Recipe
    program: str

    @classmethod
    def from_certificate(cls, recipe: Mapping[str, Any]) -> ProgramRecipe:
        """Reads what a certificate says was asked for.

        Raises:
            ValueError: it says something else.
        """
        rest = dict(recipe)
        program = rest.pop("program")
        if not isinstance(program, str) or Path(program).name != program:
            raise ValueError(f"recipe.program is {program!r}; it must be a file's name")
        return cls(Recipe.from_certificate(rest), program)

    def to_dict(self) -> dict[str, Any]:
        """Returns it for JSON."""
        return {**self.recipe.to_dict(), "program": self.program}

    def with_weights(self, weights: str) -> ProgramRecipe:
        """Returns the same with weights that are elsewhere."""
        return replace(self, recipe=self.recipe.with_weights(weights))

    def run(
        self,
        config: ResNetConfig,
        state: Mapping[str, np.ndarray],
        folder: Path,
        progress: Say = lambda what: None,
    ) -> Report:
        """Judges the program that lies in a folder; see :meth:`judge`."""
        file = folder / self.program
        return self.judge(config, state, file, container_of(file), progress)

    def judge(
        self,
        config: ResNetConfig,
        state: Mapping[str, np.ndarray],
        file: Path,
        to: str,
        progress: Say = lambda what: None,
    ) -> Report:
        """Loads a program and judges it.

        Args:
            config: the network.
            state: its weights, before any cast.
            file: the program's, whatever it is called now.
            to: its container.
            progress: told in words what is about to be computed.

        Raises:
            InputError: it is no program.
        """
        progress(f"loading {self.program}")
        program = load_exported(file, container=to)
        facts, dtype = program.facts, self.recipe.dtype
        if facts.dtype != dtype:
            raise InputError(
                f"is a program of {facts.dtype} weights, and of {dtype} is asked",
                path=file,
                advice="Judge it by the certificate that was written with it",
            )
        model = abstract_torch(config, param_dtype=dtype)
        load_state_dict(model, cast(state, dtype))
        given = batches_for(program, seed=self.recipe.seed)
        images = [_as_images(batch, program) for batch in given]
        report = check_program(
            *(model, program, images),
            given=given,
            dtype=dtype,
            seed=self.recipe.seed,
            progress=progress,
        )
        runtime = CONTAINERS[to].NEEDS[-1 if to == "onnx" else 0]
        setting = {
            **report.setting,
            "program": {
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
                "facts": json.loads(facts.to_json()),
            },
            "versions": {**report.setting["versions"], runtime: version(runtime)},
        }
        return replace(report, setting=setting)


def batches_for(program: Program, *, seed: int) -> list[np.ndarray]:
    """Draws what a program is judged on: two images, and one of another size.

    Args:
        program: that shall take them.
        seed: of the draw.
    """
    config = program.facts.config
    free = free_sizes(config)
    sizes = [config.uneven_size, config.natural_size]
    if free is not None:
        more = [(free.least + 2, free.least + 3), (free.least + 1, free.least)]
        small = [tuple(free.step * count for count in one) for one in more]
        (height, width), _ = sizes
        fits = all(s % free.step == 0 and s >= free.step * free.least for s in sizes[0])
        sizes = [(height, width) if fits else small[0], small[1]]
        if config.dimensions == 1:
            sizes = [(1, width) for _, width in sizes]
    dtype = DTYPES[program.facts.dtype]
    batches = []
    for count, (height, width) in zip((2, 1), sizes, strict=True):
        if program.takes_pixels:
            rng = np.random.default_rng(seed)
            batches.append(rng.integers(0, 256, (count, height, width, 3), np.uint8))
        else:
            shape = (count, config.in_channels, height, width)
            images = random_images(shape, seed=seed)
            batches.append(images.astype(dtype).astype(np.float32))
    return batches


def _as_images(batch: np.ndarray, program: Program) -> np.ndarray:
    how = program.facts.preprocessing
    if how is None:
        return batch
    images = normalised(batch, how.mean, how.std)
    return images.astype(DTYPES[program.facts.dtype]).astype(np.float32)


def configured(model: Any) -> tuple[ResNetConfig, Mapping[str, np.ndarray]]:
    """Returns a network's configuration and state.

    Args:
        model: either twin, or a pair of both.

    Raises:
        ValueError: it is none of this package, or returns several maps.
    """
    if isinstance(model, tuple):
        config, state = model
    else:
        config, state = getattr(model, "config", None), state_dict(model)
    if not isinstance(config, ResNetConfig):
        raise ValueError(
            f"got {type(model).__name__}; export takes a network of this package, or "
            "its configuration and state"
        )
    if config.out_indices is not None:
        raise ValueError(
            f"out_indices is {config.out_indices}; a program has one result: write the "
            "network without them"
        )
    return config, state


def _recipe_of(config: ResNetConfig) -> Recipe:
    """Describes a network whose weights came from nowhere that has a name."""
    mine = json.loads(config.to_json())
    names = list_models()
    told = [json.loads(get_config(name).to_json()) for name in names]
    others = [
        {key: value for key, value in mine.items() if it[key] != value} for it in told
    ]
    nearest = min(range(len(names)), key=lambda i: len(others[i]))
    return Recipe(name=names[nearest], overrides=others[nearest], weights="a model")
