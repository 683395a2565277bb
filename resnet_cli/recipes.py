"""The options of ``resnet-twins train``: one for each field of a recipe."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Optional

import typer

from resnet_spec import TrainingRecipe
from resnet_spec.training import CHOICES

_OTHERS = ("network", "settings", "weights")
"""Fields that other options stand for."""

_NAMES = {"learning_rate": ("--lr", "--learning-rate")}


def with_recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command an option for each field, in place of its ``**fields``.

    The help is the first sentence of what the recipe's own documentation says.
    """
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    fields = [f for f in dataclasses.fields(TrainingRecipe) if f.name not in _OTHERS]
    options = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=_annotation(field),
        )
        for field in fields
    ]
    parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in own] + options
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore
    command.__annotations__ |= {one.name: one.annotation for one in options}
    return command


def read_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that options were given for.

    Raises:
        ValueError: a list of numbers is none.
    """
    types = {
        field.name: str(field.type) for field in dataclasses.fields(TrainingRecipe)
    }
    found = {}
    for name, value in given.items():
        if value is None:
            continue
        none = value == "none"
        if none and "None" in types[name]:
            value = None
        elif (none or value == "") and types[name].startswith("tuple"):
            value = ()
        elif types[name].startswith("tuple[str"):
            value = tuple(part.strip() for part in value.split(",") if part.strip())
        elif types[name].startswith("tuple"):
            try:
                value = tuple(float(part) for part in value.split(","))
            except ValueError as error:
                option = _NAMES.get(name, (f"--{name.replace('_', '-')}",))[0]
                raise ValueError(
                    f"{option} {value}: write it as numbers with commas between them"
                ) from error
        elif types[name] == "int | None":
            value = _number(name, value, int)
        elif types[name] == "float | None":
            value = _number(name, value, float)
        found[name] = value
    return found


def _number(name: str, text: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(text)
    except ValueError as error:
        raise ValueError(
            f"--{name.replace('_', '-')} {text}: write a number, or none"
        ) from error


def _annotation(field: dataclasses.Field[Any]) -> Any:
    dashed = field.name.replace("_", "-")
    names = _NAMES.get(field.name, (f"--{dashed}",))
    kind: Any = {"bool": bool, "int": int, "float": float}.get(str(field.type), str)
    if kind is bool:
        names = (f"--{dashed}/--not-{dashed}",)
    option = typer.Option(*names, help=_HELP[field.name], show_default=False)
    return Annotated[Optional[kind], option]  # noqa: UP045  typer evaluates it


def _sentences() -> dict[str, str]:
    """Returns the first sentence of each field's documentation."""
    text = inspect.getdoc(TrainingRecipe) or ""
    text = text.partition("Args:")[2].partition("Raises:")[0]
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
    sentences = {}
    for name, said in found:
        said = " ".join(said.split()).replace("``", "").replace('"', "")
        said = re.sub(r" \([^()]*arXiv[^()]*\)", "", said)
        said = re.split(r"[.;](?: |$)", said)[0]
        if name in CHOICES and ":" not in said:
            said += f": {', '.join(CHOICES[name])}"
        sentences[name] = said[:1].upper() + said[1:] + "."
    return sentences


_HELP = _sentences()
