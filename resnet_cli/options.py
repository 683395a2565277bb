"""The options that several commands take, and how their values are read."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from enum import StrEnum
from typing import Annotated, Any, Optional

import typer


class Backend(StrEnum):
    """Which twin to run."""

    torch = "torch"
    flax = "flax"
    both = "both"

    def frameworks(self) -> tuple[str, ...]:
        """Names of the twins."""
        return ("torch", "flax") if self == Backend.both else (self.value,)


Name = Annotated[
    Optional[str],  # noqa: UP045  typer evaluates it, and shows it in the help
    typer.Argument(help="A network, from `resnet-twins list`."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Weights = Annotated[
    str,
    typer.Option(
        help="A file, published weights such as IMAGENET1K_V1 or "
        "timm:resnet50.a1_in1k, hf://owner/name[@revision][/file], or `random`."
    ),
]
Seed = Annotated[int, typer.Option(help="Of random weights and images.", min=0)]
AllowNonfinite = Annotated[
    bool, typer.Option("--allow-nonfinite", help="Accept NaN and infinity in a file.")
]
Key = Annotated[
    Optional[str],  # noqa: UP045  see Name
    typer.Option(help="Entry of a file that has several states."),
]
Prefix = Annotated[
    Optional[str],  # noqa: UP045  see Name
    typer.Option(help="Take what begins with it, as teacher.backbone."),
]
Ignore = Annotated[
    list[str],
    typer.Option(metavar="PATTERN", help="Leave out names like it, as 'head.*'."),
]
Rename = Annotated[
    list[str],
    typer.Option(metavar="OLD=NEW", help="Call names so, as 'trunk.*=*'."),
]
From = Annotated[
    Optional[str],  # noqa: UP045  see Name
    typer.Option(
        "--from",
        metavar="DIALECT",
        help="Whose names the file has, from `resnet-twins dialects`.",
    ),
]
Settings = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="FIELD=VALUE", help="Override a setting, as num_classes=10."
    ),
]


OF_FILES = ("key", "prefix", "ignore", "rename", "dialect", "allow_nonfinite")
"""Parameters that say what of a file is meant."""


def given(context: typer.Context) -> dict[str, str]:
    """Returns the options that the user wrote, by the names of their parameters."""
    return {
        str(one.name): max(one.opts, key=len)
        for one in context.command.params
        if one.param_type_name == "option"
        and (source := context.get_parameter_source(str(one.name))) is not None
        and source.name == "COMMANDLINE"
    }


def refuse_idle(
    context: typer.Context,
    beside: str,
    *,
    but: Collection[str] | None = None,
    idle: Collection[str] = (),
) -> None:
    """Refuses options that were given and would do nothing.

    Args:
        context: the call.
        beside: what makes them idle, in words.
        but: parameters that do something; all others are idle.
        idle: those that are, if these are fewer.

    Raises:
        ValueError: there is one.
    """
    found = [
        option
        for name, option in given(context).items()
        if (name in idle if but is None else name not in but)
    ]
    if found:
        do, them = ("does", "it") if len(found) == 1 else ("do", "them")
        raise ValueError(
            f"{' and '.join(found)} {do} nothing with {beside}; leave {them} out"
        )


def require_use_of_weights(
    context: typer.Context, weights: str, *, seeded: bool = True
) -> None:
    """Refuses what says something of a file, or of a draw, where there is none.

    Args:
        context: the call.
        weights: that were asked for.
        seeded: whether the seed is for more than weights.

    Raises:
        ValueError: it was given.
    """
    if weights == "random":
        refuse_idle(context, "--weights random", idle=OF_FILES)
    elif not seeded:
        refuse_idle(context, "weights that are not random", idle=("seed",))


def read_overrides(settings: Sequence[str]) -> dict[str, Any]:
    """Reads ``--set``: values as in JSON, or as they stand."""
    overrides: dict[str, Any] = {}
    for setting in settings:
        field, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting}: write it as FIELD=VALUE")
        try:
            overrides[field] = json.loads(value.lower())
        except (ValueError, RecursionError):
            overrides[field] = value
    return overrides


def read_size(text: str) -> tuple[int, int]:
    """Reads ``--size``: height and width."""
    height, by, width = text.partition("x")
    sides = [
        side
        for side in (height, width)
        if side.isascii() and side.isdigit() and len(side) < 7
    ]
    if not by or len(sides) < 2 or not all(map(int, sides)):
        raise ValueError(f"--size {text}: write it as HEIGHTxWIDTH, in pixels")
    return int(height), int(width)
