"""The command ``check``: which check was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from resnet_cli.options import (
    AllowNonfinite,
    From,
    Ignore,
    Json,
    Key,
    Name,
    Prefix,
    Rename,
    Seed,
    Settings,
    Weights,
    given,
    read_overrides,
    read_size,
    refuse_idle,
    require_use_of_weights,
)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(check)


def check(
    context: typer.Context,
    name: Name = None,
    weights: Weights = "random",
    image: Annotated[
        Optional[Path],  # noqa: UP045  see Name
        typer.Option(
            help="A photograph; by default random images.",
            readable=False,
        ),
    ] = None,
    size: Annotated[
        Optional[str],  # noqa: UP045  see Name
        typer.Option(help="Height and width of random images."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Number of random images.", min=1)] = 2,
    seed: Seed = 0,
    settings: Settings = [],  # noqa: B006  typer copies it
    key: Key = None,
    prefix: Prefix = None,
    ignore: Ignore = [],  # noqa: B006  typer copies it
    rename: Rename = [],  # noqa: B006  typer copies it
    dialect: From = None,
    allow_nonfinite: AllowNonfinite = False,
    dtype: Annotated[
        str, typer.Option(help="That both compute in: float32, bfloat16 or float16.")
    ] = "float32",
    precision: Annotated[
        str, typer.Option(help="Of float32 on accelerators: strict or tf32.")
    ] = "strict",
    forward: Annotated[
        bool, typer.Option("--forward", help="Judge evaluation mode only; quicker.")
    ] = False,
    steps: Annotated[
        int, typer.Option(help="Train both in float64 so many steps, too.", min=0)
    ] = 0,
    optimizer: Annotated[
        Optional[str],  # noqa: UP045  see Name
        typer.Option(help="Of these steps: sgd, adam, adamw, rmsprop, or JSON."),
    ] = None,
    recipe: Annotated[
        Optional[str],  # noqa: UP045  see Name
        typer.Option(
            "--train",
            metavar="RECIPE",
            help="Run so many steps of a recipe in both engines of `train` instead.",
        ),
    ] = None,
    brief: Annotated[
        bool, typer.Option("--brief", help="Print the gates without the layers.")
    ] = False,
    html: Annotated[
        Optional[Path],  # noqa: UP045  see Name
        typer.Option(
            help="Write the report there too, as one page with plots.", readable=False
        ),
    ] = None,
    certificate: Annotated[
        Optional[Path],  # noqa: UP045  see Name
        typer.Option(
            help="Write there what it takes to run this again.", readable=False
        ),
    ] = None,
    verify: Annotated[
        Optional[Path],  # noqa: UP045  see Name
        typer.Option(
            help="Run a certificate's check again, and compare.", readable=False
        ),
    ] = None,
    self_test: Annotated[
        bool,
        typer.Option(
            "--self-test", help="Check the check: it must catch twins made wrong."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Check that both twins compute the same, at every layer; exit code 1 if not."""
    from resnet_cli import checks

    if [name is not None, self_test, verify is not None].count(True) != 1:
        raise ValueError("check takes a network's name, --self-test or --verify FILE")
    if name is None and (html, certificate) != (None, None):
        raise ValueError("--html and --certificate go with a network's name")
    if self_test:
        refuse_idle(context, "--self-test", but=("self_test", "as_json"))
        ok = checks.self_test(as_json=as_json)
    elif verify is not None:
        refuse_idle(context, "--verify", but=("verify", "weights"))
        elsewhere = weights if "weights" in given(context) else None
        ok = checks.verify(verify, weights=elsewhere)
    elif recipe is not None:
        used = ("recipe", "settings", "batch", "steps", "seed", "as_json", "html")
        refuse_idle(context, "--train", but=used)
        if "steps" in given(context) and not steps:
            raise ValueError("--steps 0: give --train one step at least")
        ok = checks.check_run(
            name or "",
            recipe,
            read_overrides(settings),
            batch=batch,
            steps=steps or 20,
            seed=seed,
            as_json=as_json,
            html=html,
        )
    else:
        require_use_of_weights(context, weights)
        if image is not None:
            refuse_idle(context, "--image", idle=("size", "batch"))
        if as_json:
            refuse_idle(context, "--json", idle=("brief",))
        ok = checks.check(
            {
                "name": name,
                "overrides": read_overrides(settings),
                "weights": weights,
                "key": key,
                "prefix": prefix,
                "ignore": tuple(ignore),
                "rename": tuple(rename),
                "dialect": dialect,
                "allow_nonfinite": allow_nonfinite,
                "image": None if image is None else str(image),
                "size": None if size is None else read_size(size),
                "batch": batch,
                "seed": seed,
                "dtype": dtype,
                "precision": precision,
                "training": not forward,
                "steps": steps,
                "optimizer": optimizer,
            },
            brief=brief,
            as_json=as_json,
            html=html,
            certificate=certificate,
        )
    if not ok:
        raise typer.Exit(1)
