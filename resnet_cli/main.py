"""The command ``resnet-twins``: parse, call a library, print.

No framework is imported before a command that needs it runs: ``--help`` is instant.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Optional

import typer

import resnet_spec
from resnet_cli import check, exports, train
from resnet_cli.failures import run
from resnet_cli.options import (
    AllowNonfinite,
    Backend,
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
    read_overrides,
    read_size,
    require_use_of_weights,
)
from resnet_spec.printable import plain

app = typer.Typer(
    name="resnet-twins",
    help="The ResNet family in PyTorch and in Flax NNX, proven equal.",
    add_completion=False,
    rich_markup_mode=None,  # the coloured help would cost more time than all the rest
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.")
    ] = False,
    debug: Annotated[  # read in main(), which must know it before typer does
        bool, typer.Option("--debug", help="Show tracebacks, with any command.")
    ] = False,
) -> None:
    """The ResNet family in PyTorch and in Flax NNX, proven equal."""
    if version:
        from importlib.metadata import version as installed

        print(f"resnet-twins {installed('resnet-twins')}")
        raise typer.Exit


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the networks and their published weights."""
    rows = [
        {
            "name": name,
            "weights": resnet_spec.list_weights(name),
            "timm": resnet_spec.list_timm_weights(name),
        }
        | json.loads(resnet_spec.get_config(name).to_json())
        for name in resnet_spec.list_models()
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    from parity.text import table

    keys = (
        *("name", "block", "layers", "stem", "shortcut", "head", "groups"),
        *("width_per_group", "stride_on"),
    )
    heads = (*keys[:-2], "width/group", "stride on", "weights", "timm:NAME.")
    cells = [
        [",".join(map(str, v)) if isinstance(v := row[k], list) else v for k in keys]
        + [" ".join(row["weights"])]
        + [" ".join(one.partition(".")[2] for one in row["timm"])]
        for row in rows
    ]
    print(table(heads, cells))


@app.command()
def summary(
    name: Name = None,
    every: Annotated[
        bool, typer.Option("--all", help="One line for every network.")
    ] = False,
    paper: Annotated[
        bool, typer.Option("--paper", help="Our counts beside those the paper prints.")
    ] = False,
    plot: Annotated[
        Optional[Path],  # noqa: UP045  see Name
        typer.Option(
            help="With --all: draw parameters against multiply-adds.", readable=False
        ),
    ] = None,
    backend: Annotated[
        Backend, typer.Option(help="Whose table; with both, their equality is checked.")
    ] = Backend.both,
    size: Annotated[
        Optional[str],  # noqa: UP045  see Name
        typer.Option(help="Of the image; by default what the network was made for."),
    ] = None,
    settings: Settings = [],  # noqa: B006  typer copies it
    as_json: Json = False,
) -> None:
    """Print a network's layers: shapes, kernels, parameters, multiply-adds."""
    from resnet_cli import tables
    from resnet_cli.progress import status

    frameworks = backend.frameworks()
    chosen = [name is not None, every, paper]
    if chosen.count(True) != 1:
        raise ValueError("summary takes a network's name, --all or --paper")
    if plot is not None and not every:
        raise ValueError("--plot goes with --all")
    if name is None and (size is not None or settings):
        raise ValueError("--size and --set go with a network's name")
    if plot is not None:
        tables.require_plot(plot, picture=True)
    if paper:
        with status("counting"):
            table, rows = tables.of_paper(frameworks)
    elif every:
        with status("counting") as say:
            table, rows = tables.of_all(frameworks, say)
        if plot is not None:
            tables.plot(rows, plot)
    else:
        config = _config(name or "", settings)
        pixels = read_size(size) if size is not None else config.natural_size
        config.check_size(*pixels)
        table, rows = tables.of_network(name or "", config, pixels, frameworks)
    print(json.dumps(rows) if as_json else table)


@app.command("convert")
def convert_(
    source: Annotated[
        str,
        typer.Argument(
            help="A file of weights, a folder of Orbax's or the Hub's, "
            "hf://owner/name, or timm:resnet50.a1_in1k.",
        ),
    ],
    target: Annotated[
        Path,
        typer.Argument(
            help="The file to write, in the format that its extension says, or a "
            "folder.",
            readable=False,
        ),
    ],
    model: Annotated[
        Optional[str],  # noqa: UP045  see Name
        typer.Option(help="The network that it must be; read off the file by default."),
    ] = None,
    settings: Settings = [],  # noqa: B006  typer copies it
    to: Annotated[
        Optional[str],  # noqa: UP045  see Name
        typer.Option(
            metavar="DIALECT",
            help="Whose names the target gets, from `resnet-twins dialects`, or timm "
            "for a folder as it has on the Hub.",
        ),
    ] = None,
    dtype: Annotated[
        Optional[str],  # noqa: UP045  see Name
        typer.Option(help="Cast all to float16, bfloat16, float32 or float64."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a target that is there.")
    ] = False,
    key: Key = None,
    prefix: Prefix = None,
    ignore: Ignore = [],  # noqa: B006  typer copies it
    rename: Rename = [],  # noqa: B006  typer copies it
    dialect: From = None,
    allow_nonfinite: AllowNonfinite = False,
    as_json: Json = False,
) -> None:
    """Convert a file of weights, bit for bit, and read the result back."""
    if settings and model is None:
        raise ValueError("--set goes with --model: what it changes must be known")
    from parity import convert
    from parity.files.hub_address import is_remote
    from resnet_cli.progress import say_notes, status

    with status(f"converting {source}"):
        done = convert(
            source,
            target,
            config=_config(model, settings) if model is not None else None,
            key=key,
            prefix=prefix,
            ignore=ignore,
            rename=rename,
            dialect=dialect,
            to=to,
            dtype=dtype,
            allow_nonfinite=allow_nonfinite,
            overwrite=force,
        )
    say_notes(source, done.notes)
    named = source if is_remote(source) else str(done.source)
    if as_json:
        facts = {
            "source": named,
            "target": str(done.target),
            "network": done.network,
            "config": json.loads(done.config.to_json()),
            "entries": done.entries,
            "bytes": done.bytes,
            "sha256": done.sha256,
            "notes": done.notes,
        }
        print(json.dumps(facts, indent=2))
        return
    print(plain(f"{named} ({done.kind}) -> {done.target}"))
    print(f"{done.network}: {done.entries} entries, {done.bytes:,} bytes")
    print("read back: equal, bit for bit")
    print(f"sha256 of the values: {done.sha256}")


@app.command()
def dialects(as_json: Json = False) -> None:
    """List whose names of weights are read and written, with an example of each."""
    from resnet_cli import tables

    table, rows = tables.of_dialects()
    print(json.dumps(rows, indent=2) if as_json else table)


check.register(app)


@app.command()
def predict(
    context: typer.Context,
    image: Annotated[
        Path,
        typer.Argument(
            help="A photograph.",
            readable=False,
        ),
    ],
    model: Annotated[
        Optional[str],  # noqa: UP045  see Name
        typer.Option(help="A network; resnet50 if the weights do not tell."),
    ] = None,
    weights: Weights = "DEFAULT",
    backend: Annotated[Backend, typer.Option(help="Which twin to run.")] = Backend.both,
    top: Annotated[int, typer.Option(help="How many classes.", min=1)] = 5,
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
    """Classify a photograph into ImageNet's classes, or the network's own."""
    require_use_of_weights(context, weights, seeded=False)
    from parity.files.safetensors_format import own_config
    from parity.files.selecting import Selection
    from resnet_cli import predictions

    config, named = _config(model or "resnet50", settings), bool(model or settings)
    if model is None and not settings and (told := own_config(weights)):
        config, model = told, resnet_spec.describe(told)
    predictions.predict(
        image,
        model or "resnet50",
        config,
        backend.frameworks(),
        weights=weights,
        named=named,
        chosen=Selection(key, prefix, ignore, rename, dialect),
        allow_nonfinite=allow_nonfinite,
        seed=seed,
        top=top,
        as_json=as_json,
    )


exports.register(app)
train.register(app)


def _config(name: str, settings: Sequence[str]) -> resnet_spec.ResNetConfig:
    return resnet_spec.resolve(name, **read_overrides(settings))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Exits with 0, or 1: a check failed; 2: bad input; 3: the output cannot be written;
    70: a bug; 130, 143, 129: ended by Ctrl-C, SIGTERM, SIGHUP; 141: nobody reads
    standard error any more. Who closes standard output does not change the code.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    run(app, "resnet-twins", arguments or ["--help"])
