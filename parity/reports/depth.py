"""Errors against depth: how far each tap is from the float64 run, and its limit."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import inf, isfinite, nan

from parity.judging.report import Report, Row

_ZERO = 1e-17
"""Where an error of 0 is drawn: a logarithmic axis has no place for it."""


@dataclass(frozen=True)
class Curve:
    """A line over all taps.

    Args:
        label: what it shows.
        colour: its colour's name, of those of :func:`draw`.
        width: in points.
        values: by tap; NaN where there is none, or none that is finite.
    """

    label: str
    colour: str
    width: float
    values: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """What one plot shows.

    Args:
        heading: over the plot.
        about: what is measured, in words.
        kind: of the quantities.
        taps: in the order of computation.
        curves: the lower one first.
        failed: taps out of G1 or G2, with their errors.
        alone: taps that the isolated gates found.
    """

    heading: str
    about: str
    kind: str
    taps: Sequence[str]
    curves: Sequence[Curve]
    failed: Mapping[str, float]
    alone: Sequence[str]


def panels(report: Report) -> Iterator[Panel]:
    """Yields a plot for each mode in which the report has errors of every tap."""
    yield from _panel(
        report,
        "Error against depth",
        "Each module's output in evaluation mode, measured against the float64 run of "
        "torch.",
        mode="",
        kind="output",
    )
    yield from _panel(
        report,
        "Error against depth, backwards",
        "The loss's gradient by each module's output in training mode. It travels from "
        "right to left.",
        mode=" training",
        kind="gradient",
    )


def _panel(
    report: Report, heading: str, about: str, *, mode: str, kind: str
) -> Iterator[Panel]:
    gates = {gate.gate: gate for gate in report.gates}
    g1, g2 = f"G1{mode}", f"G2{mode}"
    judged = [gates[name] for name in (g1, g2) if name in gates]
    exact, same = (
        {row.name: row for row in gates[name].rows if row.kind == kind and row.limit}
        if name in gates
        else {}
        for name in (g1, g2)
    )
    if not exact and not same:
        return
    failures = [row for gate in judged for row in gate.failures]
    failed = {
        row.name: max(row.error, _torch(row)) if row.limit else inf
        for row in failures
        if row.kind in (kind, "")  # a network that raised has no kind
    }
    alone = [
        row.name
        for name in (f"{g1} isolated", f"{g2} isolated")
        for row in (gates[name].failures if name in gates else ())
    ]
    taps = list(report.shapes) or list(dict.fromkeys([*exact, *same]))
    dtype = report.setting.get("arithmetic", "the working dtype")
    curves = (
        Curve(f"limit of {g2}", "limit", 0.8, _line(taps, same, _limit)),
        Curve(f"torch in {dtype}", "torch", 2.6, _line(taps, same, _torch)),
        Curve(f"Flax in {dtype}", "flax", 1.1, _line(taps, same, _error)),
        Curve(f"limit of {g1}", "limit", 0.8, _line(taps, exact, _limit)),
        Curve("Flax in float64", "float64", 1.1, _line(taps, exact, _error)),
    )
    drawn = [curve for curve in curves if _heights(curve)]
    if drawn:
        alone = list(dict.fromkeys(alone))
        yield Panel(heading, about, kind, taps, drawn, failed, alone)


def _heights(curve: Curve) -> list[float]:
    return [value for value in curve.values if isfinite(value)]


def _error(row: Row) -> float:
    return row.error


def _limit(row: Row) -> float:
    return row.limit


def _torch(row: Row) -> float:
    return row.figures["torch"]["l2"] if "torch" in row.figures else nan


def _line(
    taps: Sequence[str], rows: Mapping[str, Row], value: Callable[[Row], float]
) -> list[float]:
    values = [value(rows[tap]) if tap in rows else nan for tap in taps]
    return [max(value, _ZERO) if isfinite(value) else nan for value in values]


_COLOURS = {
    name: f"#0a0b{index:02x}"  # stands for the page's colour of that name
    for index, name in enumerate(
        ("ink", "soft", "line", "torch", "flax", "float64", "limit", "bad")
    )
}


def draw(panel: Panel, size: tuple[float, float], *, class_: str) -> str:
    """Returns a panel as an SVG element, in colours that the page around it defines.

    Args:
        panel: what it shows.
        size: width and height in inches.
        class_: of the element; with the panel's kind it makes ids unique in a page.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    looks = {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "resnet-twins",  # ids, otherwise, are random
        "text.parse_math": False,
        "font.size": 8,
        "text.color": _COLOURS["ink"],
        "axes.edgecolor": _COLOURS["line"],
        "axes.labelcolor": _COLOURS["soft"],
        "xtick.color": _COLOURS["soft"],
        "ytick.color": _COLOURS["soft"],
    }
    with style.context(["default", looks]):
        figure = Figure(size, layout="constrained")
        axes = figure.add_subplot()
        _draw_axes(axes, panel, labels=round(1.4 * size[0]))
        for curve in panel.curves:
            axes.plot(curve.values, lw=curve.width, c=_COLOURS[curve.colour])
        _draw_failures(axes, panel)
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    for name, colour in _COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    for reference in ('id="', 'href="#', "url(#"):
        svg = svg.replace(reference, f"{reference}{panel.kind}-{class_}-")
    about = f"errors of {len(panel.taps)} taps, {len(panel.failed)} failed"
    head = f'<svg role="img" aria-label="{about}" class="{class_}"'
    return svg.replace("<svg", head, 1)


def _draw_axes(axes, panel: Panel, *, labels: int) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    count = len(panel.taps)
    heights = [height for curve in panel.curves for height in _heights(curve)]
    low = min(heights) / 4
    axes.set_yscale("log")
    axes.set_ylim(low, max(max(heights) * 12, low * 1e4))
    axes.set_xlim(-0.5, count - 0.5)
    axes.yaxis.set_major_locator(LogLocator(numticks=8))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.0e}"))
    axes.grid(axis="y", lw=0.4, c=_COLOURS["line"])
    axes.set_axisbelow(True)
    spans = _stages(panel.taps)
    for edge in {x for start, end, _ in spans if end - start > 1 for x in (start, end)}:
        axes.axvline(edge - 0.5, lw=0.6, c=_COLOURS["line"], zorder=0)
    shown = _apart(spans, count / labels)
    axes.set_xticks([(start + end - 1) / 2 for start, end, _ in shown])
    axes.set_xticklabels([_plain(name) for *_, name in shown])
    axes.tick_params(length=0, pad=6)
    axes.set_ylabel("error of the tensor, relative")
    axes.set_xlabel("taps in the order of computation")


def _draw_failures(axes, panel: Panel) -> None:
    place = {tap: x for x, tap in enumerate(panel.taps)}
    failed = {tap: e for tap, e in panel.failed.items() if tap in place}
    alone = [place[tap] for tap in panel.alone if tap in place]
    red = _COLOURS["bad"]
    if alone:
        axes.plot(
            *(alone, [0] * len(alone), "^"),
            ms=5,
            c=red,
            gid="alone",
            clip_on=False,
            transform=axes.get_xaxis_transform(),
        )
    if not failed:
        return
    top = axes.get_ylim()[1] / 2  # what is not finite stands above all that is
    heights = [max(e, _ZERO) if isfinite(e) else top for e in failed.values()]
    axes.plot([place[tap] for tap in failed], heights, "o", ms=2.6, c=red, gid="failed")
    towards = -1 if panel.kind == "gradient" else 1
    first = min(failed, key=lambda tap: towards * place[tap])
    axes.axvline(place[first], lw=0.8, ls=(0, (3, 2)), c=red)
    axes.annotate(
        _plain(first),
        (place[first], 1.01),
        xycoords=("data", "axes fraction"),
        ha="right" if place[first] > len(place) / 2 else "left",
        va="bottom",
        color=red,
        weight="bold",
    )


def _stages(taps: Sequence[str]) -> list[tuple[int, int, str]]:
    """Cuts taps where the first parts of their names change: start, end, name."""
    spans: list[tuple[int, int, str]] = []
    for depth in (1, 2, 3):
        spans = []
        heads = [".".join(tap.split(".")[:depth]) for tap in taps]
        for name, group in groupby(heads):
            start = spans[-1][1] if spans else 0
            spans.append((start, start + len(list(group)), name))
        if max((end - start for start, end, _ in spans), default=0) < 0.8 * len(taps):
            break
    return spans


def _apart(
    spans: Sequence[tuple[int, int, str]], distance: float
) -> list[tuple[int, int, str]]:
    """Chooses spans to label, long ones first, so that no two labels touch."""
    chosen: list[tuple[int, int, str]] = []
    for span in sorted(spans, key=lambda s: s[0] - s[1]):
        if all(abs(sum(span[:2]) - sum(other[:2])) / 2 > distance for other in chosen):
            chosen.append(span)
    return sorted(chosen)


def _plain(name: str) -> str:
    # The font in which text is measured has no others, and matplotlib would warn.
    return name.encode("ascii", "replace").decode()
