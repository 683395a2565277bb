"""Pictures of what parity measures; matplotlib comes with the extra ``plot``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

from parity.files.atomic import replacing


class Size(NamedTuple):
    """A network's cost.

    Args:
        name: the network.
        family: what it is drawn with.
        parameters: how many it learns.
        multiply_adds: for one image of its natural size.
    """

    name: str
    family: str
    parameters: int
    multiply_adds: int


def plot_sizes(sizes: Sequence[Size], path: str | os.PathLike[str]) -> None:
    """Draws parameters against multiply-adds, both logarithmic.

    Where names crowd, those that find no place near by are left out.

    Args:
        sizes: the networks; each family gets a colour and a marker.
        path: the picture to write; its extension tells the format.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.5), layout="constrained")
    axes = figure.add_subplot()
    families = list(dict.fromkeys(size.family for size in sizes))
    for family, marker in zip(families, cycle("osD^vP*XhH<>"), strict=False):
        of = [size for size in sizes if size.family == family]
        axes.scatter(
            [size.multiply_adds for size in of],
            [size.parameters for size in of],
            marker=marker,
            s=36,
            label=family,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(x=0.18, y=0.06)
    figure.draw_without_rendering()
    for size, place in zip(sizes, _label_places(axes, sizes), strict=True):
        if place is None:
            continue
        axes.annotate(
            size.name,
            (size.multiply_adds, size.parameters),
            textcoords="offset points",
            xytext=place,
            fontsize=6.5,
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "0.6"},
        )
    axes.set_xlabel("multiply-adds for one image of the network's natural size")
    axes.set_ylabel("parameters")
    axes.grid(which="major", alpha=0.3)
    axes.legend(title="family", loc="upper left", fontsize=8)
    path = Path(path)
    with replacing(path, overwrite=True) as temporary:
        figure.savefig(temporary, dpi=160, format=path.suffix[1:] or "png")


def _label_places(axes, sizes: Sequence[Size]) -> list[tuple[float, float] | None]:
    """Chooses for each label the nearest place, in points, that no other one has."""
    scale = 72 / axes.figure.dpi
    points = [
        axes.transData.transform((size.multiply_adds, size.parameters)) * scale
        for size in sizes
    ]
    marker = 5.0
    taken = [(x - marker, y - marker, x + marker, y + marker) for x, y in points]
    places: list[tuple[float, float] | None] = []
    for size, (x, y) in zip(sizes, points, strict=True):
        width, height = 3.9 * len(size.name), 8.0
        candidates = [
            (dx, dy)
            for distance in range(0, 48, 4)
            for dx, dy in (
                (7 + distance / 4, -3 + distance),
                (7 + distance / 4, -3 - distance),
                (-7 - width - distance / 4, -3 + distance),
                (-7 - width - distance / 4, -3 - distance),
            )
        ]
        boxes = [
            (x + dx, y + dy, x + dx + width, y + dy + height) for dx, dy in candidates
        ]
        free = [not any(_overlap(box, other) for other in taken) for box in boxes]
        if True not in free:
            places.append(None)
            continue
        chosen = free.index(True)
        taken.append(boxes[chosen])
        places.append(candidates[chosen])
    return places


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
