"""The commands ``train`` and ``evaluate``: their options, and whom they call."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from resnet_cli.options import Backend, Json, Settings, read_overrides
from resnet_cli.recipes import read_fields, with_recipe_options
from resnet_spec import RECIPES

Images = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="A folder of train/CLASS/* and val/CLASS/*, or of CLASS/*; CIFAR; a .npz.",
        readable=False,
    ),
]
Workers = Annotated[int, typer.Option(help="Processes that read images.", min=0)]
SkipBroken = Annotated[
    bool, typer.Option("--skip-broken", help="Go on without images that are broken.")
]


def register(app: typer.Typer) -> None:
    """Adds both commands."""
    app.command()(with_recipe_options(train))
    app.command()(evaluate)


def train(
    data: Images,
    recipe: Annotated[
        Optional[str],  # noqa: UP045  typer evaluates it, and shows it in the help
        typer.Option(help=f"One of {', '.join(RECIPES)}, or a file of JSON."),
    ] = None,
    model: Annotated[
        Optional[str],  # noqa: UP045  see recipe
        typer.Option(help="The network, from `resnet-twins list`."),
    ] = None,
    backend: Annotated[Backend, typer.Option(help="torch or flax.")] = Backend.torch,
    out: Annotated[
        Optional[Path],  # noqa: UP045  see recipe
        typer.Option(help="Folder of the run.", readable=False),
    ] = None,
    resume: Annotated[
        Optional[Path],  # noqa: UP045  see recipe
        typer.Option(
            metavar="RUN",
            help="Go on with a run, in either framework.",
            readable=False,
        ),
    ] = None,
    weights: Annotated[
        Optional[str],  # noqa: UP045  see recipe
        typer.Option(help="A file, or published weights, to start from."),
    ] = None,
    val_split: Annotated[
        Optional[float],  # noqa: UP045  see recipe
        typer.Option(help="Part of each class to validate on, as 0.1."),
    ] = None,
    stop_at: Annotated[
        Optional[int],  # noqa: UP045  see recipe
        typer.Option(metavar="STEP", help="Save after this step, and end.", min=1),
    ] = None,
    save_every: Annotated[
        Optional[int],  # noqa: UP045  see recipe
        typer.Option(help="Steps between checkpoints; an epoch if not given.", min=1),
    ] = None,
    keep: Annotated[int, typer.Option(help="Last checkpoints to keep.", min=1)] = 1,
    workers: Workers = 0,
    device: Annotated[
        Optional[str],  # noqa: UP045  see recipe
        typer.Option(help="Of torch, as cuda; JAX takes what it finds."),
    ] = None,
    devices: Annotated[
        Optional[int],  # noqa: UP045  see recipe
        typer.Option(help="Of JAX, in each process; all by default.", min=1, max=4096),
    ] = None,
    coordinator: Annotated[
        Optional[str],  # noqa: UP045  see recipe
        typer.Option(
            metavar="HOST:PORT",
            help="Of JAX's first process, if there are several; auto on a cluster.",
        ),
    ] = None,
    processes: Annotated[
        Optional[int],  # noqa: UP045  see recipe
        typer.Option(help="How many of JAX's there are.", min=1),
    ] = None,
    process: Annotated[
        Optional[int],  # noqa: UP045  see recipe
        typer.Option(help="Which of them this is, from 0.", min=0),
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="torch.compile the network.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard's events too.")
    ] = False,
    skip_broken: SkipBroken = False,
    settings: Settings = [],  # noqa: B006  typer copies it
    **fields: Any,
) -> None:
    """Train a network in either framework; stop, and go on in the other."""
    from resnet_cli import training

    if backend == Backend.both:
        raise ValueError("--backend is torch or flax for training; `check` runs both")
    if (out is None) == (resume is None):
        raise ValueError("train takes --out RUN to begin, or --resume RUN to go on")
    if resume is not None and weights is not None:
        raise ValueError("--weights begins a run; --resume goes on with its own")
    changes = read_fields(fields)
    if model is not None:
        changes["network"] = model
    if overrides := read_overrides(settings):
        changes["settings"] = overrides
    engine: dict[str, Any] = {
        "devices": devices,
        "coordinator": coordinator,
        "processes": processes,
        "process": process,
    }
    if backend == Backend.torch:
        if any(value is not None for value in engine.values()):
            raise ValueError(
                "--devices, --coordinator, --processes and --process are JAX's; torch "
                "has a device for each process, and torchrun --nproc-per-node starts "
                "these"
            )
        engine = {"compiled": compiled, "device": device}
    elif compiled or device is not None:
        raise ValueError("--compile and --device are torch's; JAX compiles always")
    training.train(
        data,
        out or resume or Path(),
        backend="torch" if backend == Backend.torch else "flax",
        recipe=lambda done: training.recipe_of(recipe, changes, done),
        again=resume is not None,
        weights=weights,
        val_split=val_split,
        stop_at=stop_at,
        options=training.Options(
            save_every=save_every,
            keep=keep,
            workers=workers,
            skip_broken=skip_broken,
            tensorboard=tensorboard,
            engine=engine,
        ),
    )


def evaluate(
    data: Images,
    weights: Annotated[
        str, typer.Option(help="A run's checkpoint, a file, or published weights.")
    ],
    model: Annotated[
        Optional[str],  # noqa: UP045  see recipe
        typer.Option(help="The network, if the weights do not tell."),
    ] = None,
    backend: Annotated[Backend, typer.Option(help="Which twin to run.")] = Backend.both,
    batch: Annotated[
        Optional[int],  # noqa: UP045  see recipe
        typer.Option(help="Images at once.", min=1),
    ] = None,
    workers: Workers = 0,
    skip_broken: SkipBroken = False,
    settings: Settings = [],  # noqa: B006  typer copies it
    as_json: Json = False,
) -> None:
    """Count how many images of a folder a network knows."""
    from resnet_cli import training

    if settings and model is None:
        raise ValueError("--set goes with --model; the weights tell of their own")
    training.evaluate_(
        data,
        weights,
        model,
        read_overrides(settings),
        backend.frameworks(),  # type: ignore[arg-type]  Literals
        batch=batch,
        workers=workers,
        skip_broken=skip_broken,
        as_json=as_json,
    )
