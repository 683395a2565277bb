"""The tables that ``resnet-twins summary`` prints, each with its rows for JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import resnet_spec
from parity.errors import OutputError
from parity.files.atomic import require_place
from parity.reports.sizes import Size, plot_sizes
from parity.running.layers import Layer, layers
from parity.text import table
from parity.weights.dialects import DIALECTS
from parity.weights.dialects.places import Outline
from parity.weights.twins import ABSTRACT
from resnet_spec import ResNetConfig

Frameworks = Sequence[str]


def of_network(
    name: str, config: ResNetConfig, size: tuple[int, int], frameworks: Frameworks
) -> tuple[str, dict[str, Any]]:
    """Returns one line per layer, and the totals."""
    found = _layers(config, size, frameworks)
    totals = _totals(found)
    lines = [
        (
            *(layer.name, layer.kind, _times(layer.input), _times(layer.output)),
            *("" if v is None else str(v) for v in (layer.stride, layer.padding)),
            "yes" if layer.projection else "",
            _times(layer.kernel),
            layer.parameters,
            layer.multiply_adds,
        )
        for layer in found
    ]
    heads = (
        *("layer", "kind", "in", "out", "stride", "pad", "projection", "kernel"),
        *("parameters", "multiply-adds"),
    )
    shape = _times((config.in_channels, *size))
    last = (
        f"{name}, {shape}: {totals['parameters']:,} parameters, "
        f"{totals['multiply_adds']:,} multiply-adds"
    )
    rows = totals | {"layers": [asdict(layer) for layer in found]}
    return f"{table(heads, lines)}\n\n{last}", rows


def of_all(
    frameworks: Frameworks, say: Callable[[str], None]
) -> tuple[str, list[dict[str, Any]]]:
    """Returns one line per network, each for one image of its natural size."""
    rows = []
    for name in resnet_spec.list_models():
        say(name)
        config = resnet_spec.get_config(name)
        totals = _totals(_layers(config, config.natural_size, frameworks))
        shape = (config.in_channels, *config.natural_size)
        rows.append({"name": name, "input": list(shape)} | totals)
    lines = [
        (
            row["name"],
            _times(row["input"]),
            f"{row['parameters']:,}".rjust(11),
            f"{row['multiply_adds']:,}".rjust(14),
        )
        for row in rows
    ]
    return table(("name", "input", "parameters", "multiply-adds"), lines), rows


def of_paper(frameworks: Frameworks) -> tuple[str, list[dict[str, Any]]]:
    """Returns the paper's figures beside ours."""
    rows = []
    for printed in resnet_spec.printed():
        config = printed.config
        totals = _totals(_layers(config, config.natural_size, frameworks))
        rows.append(
            {
                "where": printed.where,
                "paper's name": printed.what,
                "network": resnet_spec.describe(config),
                "quantity": printed.quantity,
                "counted": totals[printed.quantity],
                "in its unit": round(totals[printed.quantity] / printed.unit, 3),
                "printed": printed.figure,
            }
        )
    cells = [[f"{v:,}" if isinstance(v, int) else v for v in r.values()] for r in rows]
    return table(tuple(rows[0]), cells), rows


def require_plot(path: Path, *, picture: bool = False) -> None:
    """Checks that something can be drawn there, before anything is counted for it.

    Args:
        path: of what is drawn.
        picture: whether it is one, and no page.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        OutputError: it cannot be written.
        ValueError: no picture has this ending.
    """
    import matplotlib  # noqa: F401  is it there?
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if picture and path.suffix[1:].lower() not in kinds:
        raise ValueError(
            f"{path}: no picture is called so; end it in .png, .svg or .pdf"
        )
    if not path.absolute().parent.is_dir():
        raise OutputError(path, f"there is no folder {path.parent}", "Make it first")
    if picture:  # of a page the check itself makes sure
        require_place(path, overwrite=True)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws the rows of :func:`of_all`."""
    plot_sizes(
        [
            Size(
                row["name"],
                _family(row["name"]),
                row["parameters"],
                row["multiply_adds"],
            )
            for row in rows
        ],
        path,
    )


def _family(name: str) -> str:
    begins = {
        "se": "squeezed",
        "eca": "ECA",
        "resnetrs": "resnet-rs",
        "resnest": "resnest",
    }
    begins |= dict.fromkeys(("resnetaa", "resnetblur"), "anti-aliased")
    alike = ("cifar_resnet", "cifar_plain", "plain", "resnext", "wide_resnet")
    for beginning, family in (begins | {name: name for name in alike}).items():
        if name.startswith(beginning):
            return family
    endings = {"_v1": "resnet v1", "_1d": "resnet 1d", "_conv_head": "resnet conv head"}
    for ending, family in endings.items():
        if name.endswith(ending):
            return family
    return f"resnet-{name[-1]}" if name[-1] in "cdst" else "resnet"


def _layers(
    config: ResNetConfig, size: tuple[int, int], frameworks: Frameworks
) -> list[Layer]:
    shape = (config.in_channels, *size)
    found = [layers(ABSTRACT[name](config), shape) for name in frameworks]
    if any(other != found[0] for other in found):
        raise AssertionError("the twins' tables differ")
    return found[0]


def _totals(found: Sequence[Layer]) -> dict[str, int]:
    return {
        "parameters": sum(layer.parameters for layer in found),
        "multiply_adds": sum(layer.multiply_adds for layer in found),
    }


def _times(shape: Sequence[int] | None) -> str:
    return "" if shape is None else "x".join(map(str, shape))


def of_dialects() -> tuple[str, list[dict[str, Any]]]:
    """Returns one line per dialect: what a 3x3 of a bottleneck is called there."""
    outline = Outline((3, 4, 6, 3))
    place = dict(outline.places())["layer2.1.conv2"]
    rows = [
        {
            "name": dialect.name,
            "what": dialect.what,
            "files": list(dialect.formats),
            "example": dialect.name_of(place, "weight"),
        }
        for dialect in DIALECTS.values()
    ]
    cells = [
        (row["name"], row["what"], ", ".join(row["files"]), row["example"])
        for row in rows
    ]
    heads = (
        "dialect",
        "whose",
        "files",
        "what torchvision calls layer2.1.conv2.weight",
    )
    return table(heads, cells), rows
