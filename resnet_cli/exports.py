"""The command ``export``: a network as a program, judged before it is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from resnet_cli.options import (
    AllowNonfinite,
    From,
    Ignore,
    Json,
    Key,
    Prefix,
    Rename,
    Seed,
    Settings,
    Weights,
    read_overrides,
    require_use_of_weights,
)
from resnet_spec.printable import plain


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(export)


def export(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A network, from `resnet-twins list`.")],
    out: Annotated[
        Path,
        typer.Argument(
            help="The program to write: .onnx, .stablehlo or .pt2.", readable=False
        ),
    ],
    weights: Weights = "DEFAULT",
    to: Annotated[
        Optional[str],  # noqa: UP045  typer evaluates it, and shows it in the help
        typer.Option(
            help="onnx, stablehlo or torch-export; by default what OUT's name says."
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Of the weights: float32, bfloat16 or float16.")
    ] = "float32",
    preprocessing: Annotated[
        bool,
        typer.Option(
            "--preprocessing",
            help="Scale and normalise inside: the program takes pixels, resized and "
            "cut already.",
        ),
    ] = False,
    int8: Annotated[
        Optional[Path],  # noqa: UP045  see to
        typer.Option(
            metavar="FOLDER",
            help="Round to 8 bits, calibrated on its photographs; says what is lost.",
            readable=False,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace files that are there.")
    ] = False,
    seed: Seed = 0,
    settings: Settings = [],  # noqa: B006  typer copies it
    key: Key = None,
    prefix: Prefix = None,
    ignore: Ignore = [],  # noqa: B006  typer copies it
    rename: Rename = [],  # noqa: B006  typer copies it
    dialect: From = None,
    allow_nonfinite: AllowNonfinite = False,
    as_json: Json = False,
) -> None:
    """Write a network as a program that its own runtime runs; exit code 1 if it fails.

    It is judged by gates G2, G3 and G5 against the torch twin in float64, and OUT is
    there only if it passes, with a certificate beside it. What --int8 writes is not
    equal, and is not judged: what it loses is said.
    """
    from parity.exporting import SUFFIX, ProgramError, require_places
    from parity.exporting import export as write
    from parity.exports.programs import CONTAINERS, container_of, require_colors
    from parity.files.preprocessing import preprocessing_for
    from parity.quantizing import SUFFIX as LOSS
    from parity.quantizing import photographs, photographs_in
    from parity.recipe import FieldError, Recipe
    from parity.weights.twins import require
    from resnet_cli.progress import download_bar, say_notes, status
    from resnet_spec import Preprocessing

    require_use_of_weights(context, weights, seeded=int8 is None)
    to = to or container_of(out)
    if to not in CONTAINERS:
        raise ValueError(f"--to {to}: it must be one of {', '.join(CONTAINERS)}")
    require("torch", *CONTAINERS[to].NEEDS)
    try:
        recipe = Recipe(
            name=name,
            overrides=read_overrides(settings),
            weights=weights,
            key=key,
            prefix=prefix,
            ignore=tuple(ignore),
            rename=tuple(rename),
            dialect=dialect,
            allow_nonfinite=allow_nonfinite,
            seed=seed,
            dtype=dtype,
        )
    except FieldError as error:
        raise ValueError(f"--{error}") from error
    if int8 is not None and (to, dtype) != ("onnx", "float32"):
        raise ValueError("--int8 is for --to onnx, and goes without --dtype")
    beside = SUFFIX if int8 is None else LOSS
    require_places(out, recipe.config, to, beside=beside, overwrite=force)
    if preprocessing:
        require_colors(recipe.config)
    if int8 is not None:
        photographs_in(int8, recipe.config)
    how = preprocessing_for(recipe.config, weights) or Preprocessing()
    images: Any = None
    if int8 is not None:
        images = photographs(int8, recipe.config, how, pixels=preprocessing)
    with download_bar() as progress:
        chosen = recipe.choose(progress)
    say_notes(weights, chosen.notes)
    inside = how if preprocessing else None
    if images is not None:
        _round((recipe.config, chosen.state), out, images, inside, force, as_json)
        return
    try:
        with status(f"exporting {name}") as say:
            done = write(
                (recipe.config, chosen.state),
                out,
                to=to,
                dtype=dtype,
                preprocessing=inside,
                overwrite=force,
                seed=seed,
                recipe=recipe,
                progress=say,
            )
    except ProgramError as error:
        print(f"{error.report.brief()}\n\n{plain(str(out))} is not written")
        raise typer.Exit(1) from error
    if as_json:
        facts: dict[str, Any] = {
            "program": str(done.path),
            "certificate": str(done.certificate),
            "network": name,
            "to": to,
            "dtype": dtype,
            "bytes": done.bytes,
            "sha256": done.sha256,
            "gates": {gate.gate: gate.ok for gate in done.report.gates},
        }
        print(json.dumps(facts, indent=2))
        return
    shapes = done.report.setting["inputs"]["shapes"]
    sizes = " and ".join("x".join(map(str, shape)) for shape in shapes)
    print(plain(f"{name}: {chosen.what} -> {out} ({to}, {dtype})"))
    print(f"loaded again and run on images of {sizes}\n")
    print(done.report.brief())
    print(f"\ncertificate: {plain(str(done.certificate))}")


def _round(
    model: Any, out: Path, images: Any, inside: Any, force: bool, as_json: bool
) -> None:
    """Writes a program of 8-bit integers, and says what it loses."""
    from dataclasses import asdict

    from parity.quantizing import quantize
    from resnet_cli.progress import status

    with status(f"rounding {out.name}") as say:
        done = quantize(
            *(model, out, images),
            preprocessing=inside,
            overwrite=force,
            progress=say,
        )
    if as_json:
        print(json.dumps({"program": str(out), **asdict(done.loss)}, indent=2))
        return
    print(plain(f"{out}: {done.loss.bytes:,} bytes, {len(images)} photographs"))
    print(done.loss)
