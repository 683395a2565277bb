"""Pictures of a run's JSON: a panel for whatever was timed, all in one file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import cycle
from statistics import median
from typing import Any

from benchmarks.results.figures import Record, Results, figures, single, sweeps

_COLOURS = {
    "torch": ("#d1495b", "#8c2f39", "#f0a6af"),
    "flax": ("#2e6f95", "#6fb1d6", "#0b3954"),
}
_OTHERS = ("0.6", "0.4", "0.75")


def draw(results: Results, path: str | os.PathLike[str]) -> None:
    """Draws throughput by mode, and cost along whatever was swept.

    Args:
        results: of a run.
        path: the picture to write; its extension tells the format.

    Raises:
        ValueError: nothing was timed.
    """
    from matplotlib.figure import Figure

    panels = _panels(results)
    if not panels:
        raise ValueError("nothing was timed: there is nothing to draw")
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    heights = [
        max(height for height, _ in panels[row * columns : (row + 1) * columns])
        for row in range(rows)
    ]
    figure = Figure(figsize=(6.5 * columns, sum(heights)), layout="constrained")
    grid = figure.add_gridspec(rows, columns, height_ratios=heights)
    for index, (_, panel) in enumerate(panels):
        panel(figure.add_subplot(grid[index // columns, index % columns]))
    figure.savefig(path, dpi=130)


Panel = Callable[[Any], None]


def _panels(results: Results) -> list[tuple[float, Panel]]:
    panels: list[tuple[float, Panel]] = []
    for case in single(results):
        count = sum(1 for _ in figures(case))
        if count:
            height = 1.2 + 0.26 * count
            panels.append((height, lambda axes, case=case: _throughput(axes, case)))
    by = sweeps(results)
    by_batch = by.get("batch") or _batches(results)
    if by_batch:
        panels.append((3.8, lambda axes: _rate_by_batch(axes, by_batch)))
        panels.append((3.8, lambda axes: _latency_by_batch(axes, by_batch)))
    if "depth" in by:
        panels.append((3.8, lambda axes: _along_depth(axes, by["depth"])))
    if "size" in by:
        panels.append((3.8, lambda axes: _along_size(axes, by["size"])))
    return panels


def _batches(results: Results) -> list[Record]:
    """Cases of the first network and task that differ in their batch alone."""
    found: dict[tuple[Any, ...], list[Record]] = {}
    for case in single(results):
        key = (case["network"], case["task"], tuple(case["size"]))
        found.setdefault(key, []).append(case)
    return next((cases for cases in found.values() if len(cases) > 1), [])


def _throughput(axes: Any, case: Record) -> None:
    pairs = sorted(figures(case), key=lambda pair: pair[1].rate)
    batch = case["batch"]
    for place, (row, it) in enumerate(pairs):
        own = row["kind"] == "twin"
        axes.barh(
            place,
            it.rate,
            color=(_COLOURS[row["framework"]] if own else _OTHERS)[0],
            xerr=[[it.rate - batch / it.time.high], [batch / it.time.low - it.rate]],
            error_kw={"lw": 1, "capsize": 2},
            hatch="///" if row["arithmetic"] == "bfloat16" else None,
            edgecolor="white",
        )
    axes.set_yticks(range(len(pairs)), [row["mode"] for row, _ in pairs], fontsize=8)
    axes.set_xlabel("images a second (bar: 95 % of the median; hatched: bfloat16)")
    axes.set_title(case["key"], fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def _lines(
    axes: Any,
    cases: Sequence[Record],
    x: Callable[[Record], float],
    y: Callable[[Record, float], float],
) -> None:
    """Draws a line for each mode, of a figure that comes from its median time."""
    cases = sorted(cases, key=x)
    modes = {row["mode"]: row for case in cases for row in case["rows"]}
    colours = {name: cycle(tones) for name, tones in _COLOURS.items()}
    others = cycle(_OTHERS)
    for (mode, first), marker in zip(modes.items(), cycle("osD^vP*X"), strict=False):
        points = [
            (x(case), y(case, median(row["times"])))
            for case in cases
            for row in case["rows"]
            if row["mode"] == mode
            and row["status"] == "timed"
            and row["kind"] != "ceiling"
        ]
        if points:
            own = first["kind"] == "twin"
            colour = next(colours[first["framework"]] if own else others)
            axes.plot(
                *zip(*points, strict=True),
                marker=marker,
                ms=4,
                lw=1,
                label=mode,
                color=colour,
            )
    axes.set_xscale("log")
    ticks = sorted({x(case) for case in cases})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8)
    axes.xaxis.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def _rate_by_batch(axes: Any, cases: Sequence[Record]) -> None:
    _lines(axes, cases, lambda case: case["batch"], lambda case, t: case["batch"] / t)
    axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
    axes.set_xlabel("images in a batch")
    axes.set_ylabel("images a second")
    axes.set_title(f"throughput by batch, {_name(cases[0])}", fontsize=10)


def _latency_by_batch(axes: Any, cases: Sequence[Record]) -> None:
    _lines(axes, cases, lambda case: case["batch"], lambda case, t: t * 1000)
    _log(axes)
    axes.set_xlabel("images in a batch")
    axes.set_ylabel("ms a batch")
    axes.set_title(f"latency by batch, {_name(cases[0])}", fontsize=10)


def _along_depth(axes: Any, cases: Sequence[Record]) -> None:
    def depth(case: Record) -> float:
        return int(case["network"].removeprefix("resnet"))

    _lines(axes, cases, depth, lambda case, t: t * 1000)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("depth (names: resnet18 … resnet152)")
    axes.set_ylabel(f"ms a batch of {cases[0]['batch']}")
    axes.set_title(f"cost by depth, {cases[0]['task']}", fontsize=10)


def _along_size(axes: Any, cases: Sequence[Record]) -> None:
    _lines(axes, cases, lambda case: case["size"][0], lambda case, t: t * 1000)
    _log(axes)
    axes.set_xlabel("side of the image, in pixels")
    axes.set_ylabel(f"ms a batch of {cases[0]['batch']}")
    axes.set_title(f"cost by resolution, {cases[0]['network']}", fontsize=10)


def _log(axes: Any) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _name(case: Record) -> str:
    return f"{case['network']} {case['task']}"
