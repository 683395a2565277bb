"""The report of a check as one HTML page, which asks for no other file.

The plots come from matplotlib, which is in the extra ``plot``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from math import inf, nan
from pathlib import Path
from string import Template
from typing import Any

from parity.files.atomic import replacing
from parity.judging.report import GateResult, Report, Row
from parity.reports.depth import draw, panels
from resnet_spec import ResNetConfig, describe

_SHOWN = 8
"""Rows of a gate that are shown as its worst."""

_NAMED = 12
"""Modules that the verdict names as wrong by themselves."""

_WIDE, _NARROW = (9.6, 3.3), (4.4, 3.2)
"""Sizes of the plots in inches, for screens of either kind."""


def write_html(report: Report, path: str | os.PathLike[str], *, title: str) -> None:
    """Writes the page, atomically; a file that is there is replaced.

    Args:
        report: what a check found.
        path: the file.
        title: what was checked, in words.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        OutputError: the file cannot be written; what stood there stands there still.
    """
    page = to_html(report, title=title).encode("utf-8", "backslashreplace")
    with replacing(Path(path), True) as temporary:
        temporary.write_bytes(page)


def to_html(report: Report, *, title: str) -> str:
    """Returns the whole report as a page; the same report gives the same page.

    Args:
        report: what a check found; of failed checks and of some gates only, too.
        title: what was checked, in words.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    verdict = "pass" if report.ok else "fail"
    sections = (
        _verdict(report, title),
        _tag("h2", "Gates"),
        _gates(report),
        *_plots(report),
        *_worst(report),
        *_kinks(report),
        _tag("h2", "Everything"),
        _details("Every layer", _layers(report)),
        _details("Versions, threads, precision, digests", _setting(report)),
    )
    return _PAGE.substitute(
        title=escape(f"{verdict.upper()}: {title}"),
        style=_STYLE,
        body=_tag("main", *sections, class_=verdict),
    )


# --- elements -----------------------------------------------------------------------


class _Html(str):
    """Text that is HTML already; any other is escaped on its way in."""


def _tag(name: str, *children: object, **attributes: object) -> _Html:
    inside = "".join(c if isinstance(c, _Html) else escape(str(c)) for c in children)
    given = "".join(
        f' {key.rstrip("_")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value
    )
    return _Html(f"<{name}{given}>{inside}</{name}>")


def _table(
    heads: Sequence[str], rows: Iterable[tuple[bool, Sequence[object]]], **kind: object
) -> _Html:
    """A table, of rows with whether they are in order."""
    head = _tag("tr", *(_tag("th", cell) for cell in heads))
    body = (
        _tag("tr", *(_tag("td", cell) for cell in cells), class_=not ok and "bad")
        for ok, cells in rows
    )
    table = _tag("table", _tag("thead", head), _tag("tbody", *body), **kind)
    return _tag("div", table, class_="scroll")


def _facts(facts: Mapping[str, object]) -> _Html:
    pairs = ((_tag("dt", name), _tag("dd", fact)) for name, fact in facts.items())
    return _tag("dl", *(part for pair in pairs for part in pair))


def _details(summary: object, *inside: object, open_: bool = False) -> _Html:
    opened = {"open": "open"} if open_ else {}
    return _tag("details", _tag("summary", summary), *inside, **opened)


# --- sections -----------------------------------------------------------------------


def _verdict(report: Report, title: str) -> _Html:
    word, _, said = report.verdict().partition(": ")
    words: list[object] = [_tag("h1", word), _tag("p", said)]
    if not report.ok:
        words[1:] = [_tag("p", part) for part in said.split("; ")]
    if len(report.culprits) > 3:  # the verdict's line names no more
        named, more = report.culprits[:_NAMED], len(report.culprits) - _NAMED
        rest = f" and {more} more" if more > 0 else ""
        words[2] = _tag("p", f"wrong by itself: {', '.join(named)}{rest}")
    words += [_tag("p", f"Not seen: {line}", class_="note") for line in report.hidden]
    setting = report.setting
    inputs = setting.get("inputs", {})
    arithmetic, dtype = setting.get("arithmetic"), setting.get("dtype")
    facts = {
        "checked": title,
        "network": _network(setting.get("config")),
        "images": _times(inputs.get("shape", ())),
        "computed in": dtype if arithmetic == dtype else f"{dtype} as {arithmetic}",
        "seed of labels": setting.get("seed"),
        "taps": len(report.shapes),
    }
    known = {name: fact for name, fact in facts.items() if fact not in (None, "")}
    return _Html(_tag("header", *words) + _facts(known))


def _network(config: str | None) -> str:
    if config is None:
        return ""
    about = json.loads(config)
    body = f"{about['block']} blocks {'-'.join(map(str, about['layers']))}"
    nearest = describe(ResNetConfig.from_json(config))
    classes = f"{about['num_classes']} classes" if about["include_top"] else "no head"
    return ", ".join(
        ([] if nearest.startswith("a network of") else [nearest])
        + [body, f"widths {'-'.join(map(str, about['widths']))}", classes]
    )


def _gates(report: Report) -> _Html:
    rows = []
    for gate in report.gates:
        row = gate.failures[0] if gate.failures else gate.worst
        figured = row is not None and (row.limit or row.error)
        used = _used(row) if row is not None and row.limit else nan
        about = (_tag("b", gate.gate), " ", _tag("span", gate.what))
        verdict = "skipped" if gate.skipped else "pass" if gate.ok else "FAIL"
        cells = (
            _Html(_tag("div", *about) + _tag("small", _remark(gate))),
            _tag("span", verdict, class_=f"is {verdict.lower()}"),
            _figure(row.error) if row is not None and figured else "",
            _figure(row.limit) if row is not None and row.limit else "",
            _bar(used),
        )
        rows.append((gate.ok, cells))
    return _table(("gate", "verdict", "error", "limit", "used"), rows, class_="gates")


def _remark(gate: GateResult) -> str:
    if gate.skipped or not gate.rows:
        return gate.skipped or "had nothing to judge"
    if gate.failures:
        row = gate.failures[0]
        first = f"{row.name or 'loss'} {row.note}".rstrip()
        if len(gate.rows) == 1:
            return first
        return f"{len(gate.failures)} of {len(gate.rows)} fail, first {first}"
    judged = [row for row in gate.rows if row.limit]
    if not judged or gate.worst is None:
        notes = [f"; {row.name} {row.note}" for row in gate.rows if row.note]
        return f"{len(gate.rows)} equal" + "".join(notes[:3])
    left = len(gate.rows) - len(judged)
    more = f"; {left} not compared" if left else ""
    return f"{len(judged)} within, closest {gate.worst.name or 'loss'}{more}"


def _bar(used: float) -> _Html:
    """How much of its limit a figure uses, as a bar that ends at the limit."""
    if used != used:
        return _Html("")
    width = min(100.0, max(2.0, 100 * used))
    fill = _tag("i", "", style=f"width:{width:.0f}%", class_=used > 1 and "over")
    return _Html(_tag("span", fill, class_="bar") + _tag("small", _percent(used)))


def _worst(report: Report) -> Iterator[_Html]:
    heads = (
        *("tap", "quantity", "n,c,h,w", "value", "reference", "off by"),
        *("error, torch", "error, Flax", "limit", "used"),
    )
    found = []
    for gate in report.gates:
        rows = [
            row
            for row in gate.rows
            if not _is_kink(row) and (not row.ok or (row.limit and row.error))
        ]
        rows.sort(key=lambda row: (row.ok, -_used(row)))  # stable: else as computed
        if rows:
            of = _Html(_tag("b", gate.gate) + " " + escape(gate.what))
            lines = [(row.ok, _element(row)) for row in rows[:_SHOWN]]
            found.append(_details(of, _table(heads, lines), open_=not gate.ok))
    if found:
        yield _tag("h2", "Worst elements")
        yield _tag(
            "p",
            "The rows of each gate closest to their limits, or beyond: where a value "
            "is farthest from the reference, and how far the whole tensor is "
            "(2-norm). Used is the larger of what the 2-norm and the maximum norm "
            "use of their limits.",
        )
        yield from found


def _element(row: Row) -> tuple[object, ...]:
    if "flax" in row.figures and isinstance(row.figures["flax"], Mapping):
        torch, flax = row.figures["torch"], row.figures["flax"]
        farther = torch if torch["l2"] > flax["l2"] else flax
        errors = (_figure(torch["l2"]), _figure(flax["l2"]))
    else:
        farther, error = row.figures, _figure(row.error) if row.error else ""
        errors = (error, "") if row.note.startswith("in torch") else ("", error)
    place: tuple[str, ...] = ("", "", "", "")
    note = row.note.removeprefix(row.kind).lstrip()  # isolated gates say it twice
    if "value" in farther:
        value, expected = farther["value"], farther["expected"]
        place = (
            ",".join(map(str, farther["worst"])),
            *(f"{value:.6g}", f"{expected:.6g}", _figure(value - expected)),
        )
    elif row.figures:
        chosen = ", ".join(f"{who} {what}" for who, what in row.figures.items())
        note = f"{note} {chosen}".lstrip()
    return (
        _Html(escape(row.name or "loss") + (_tag("small", note) if note else "")),
        *(row.kind, *place, *errors),
        _figure(row.limit) if row.limit else "",
        _percent(_used(row)) if row.limit else "",
    )


def _kinks(report: Report) -> Iterator[_Html]:
    rows = [
        (row.ok, (row.name, row.note, _figure(row.error), _figure(row.limit)))
        for gate in report.gates
        for row in gate.rows
        if _is_kink(row)
    ]
    if rows:
        yield _tag("h2", "Kinks")
        yield _tag(
            "p",
            "Units that rounding carried to the other side of a jump of the "
            "derivative. Their gradients are measured against a reference that "
            "took the same side.",
        )
        yield _table(("tap", "units", "distance", "limit"), rows)


def _is_kink(row: Row) -> bool:
    return row.note.startswith("kink") and row.limit > 0


def _layers(report: Report) -> _Html:
    lines = report.layer_table().splitlines()
    marked = (
        _tag("span", f"{line}\n", class_="bad") if "< FAIL" in line else f"{line}\n"
        for line in lines
    )
    return _tag("pre", *marked, class_="scroll")


def _setting(report: Report) -> _Html:
    return _facts(dict(_flat(report.setting)))


def _flat(setting: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, object]]:
    for key, value in setting.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key} ")
        elif value not in (None, ""):
            yield f"{above}{key}", value


def _used(row: Row) -> float:
    """How much of its limit a row uses; more than 1 is too much, as is NaN."""
    used = row.figures.get("use", row.error / row.limit if row.limit else 0.0)
    return used if used == used else inf


def _percent(used: float) -> str:
    if used == inf:
        return "∞"
    if used < 10:
        return "under 1 %" if 0 < used < 0.01 else f"{100 * used:.0f} %"
    return f"{used:,.0f} ×" if used < 1e4 else f"{used:.0e} ×"


def _figure(number: float) -> str:
    return f"{number:.1e}"


def _times(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def _plots(report: Report) -> Iterator[_Html]:
    for panel in panels(report):
        drawings = (  # each legible on its screens
            _Html(draw(panel, _WIDE, class_="wide")),
            _Html(draw(panel, _NARROW, class_="narrow")),
        )
        key = {curve.label: curve.colour for curve in panel.curves}
        key |= {"failed": "bad"} if panel.failed else {}
        key |= {"wrong by itself": "alone"} if panel.alone else {}
        names = (_tag("span", name, class_=f"key {key[name]}") for name in key)
        yield _tag("h2", panel.heading)
        yield _tag("p", panel.about)
        yield _tag("figure", *drawings, _tag("figcaption", *names))


# --- looks --------------------------------------------------------------------------

# The policy lets the page ask for nothing; the icon keeps browsers from trying.
_PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>$title</title>
<style>$style</style>
</head>
<body>
$body
</body>
</html>
""")

_STYLE = """
:root { --paper: #fff; --ink: #1c2126; --soft: #5c6670; --line: #dfe3e7;
  --tint: #f6f7f9; --pass: #1a7f37; --bad: #c9252d; --torch: #f3a35c;
  --flax: #1463c4; --float64: #7a4fc9; --limit: #8d969f; }
@media screen and (prefers-color-scheme: dark) {
  :root { --paper: #12161b; --ink: #e3e7eb; --soft: #9ca6b0; --line: #30373f;
    --tint: #1a1f25; --pass: #3fb950; --bad: #ff6a62; --torch: #c9772b;
    --flax: #79b8ff; --float64: #bd9bf5; --limit: #7a848e; } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: .94rem/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif }
main { max-width: 68rem; margin: 0 auto; padding: clamp(.8rem, 3vw, 2rem) }
header { padding: 1.2rem 1.5rem; border-radius: .6rem; color: #fff;
  background: #1a7f37; overflow-wrap: anywhere; print-color-adjust: exact }
.fail header { background: #c9252d }
h1 { margin: 0; font-size: clamp(2.6rem, 9vw, 4rem); line-height: 1;
  letter-spacing: .02em; font-weight: 800 }
header p { margin: .5rem 0 0; font-size: 1.15rem }
h2 { margin: 2.2rem 0 .6rem; font-size: 1.15rem; break-after: avoid }
p { margin: 0 0 .8rem; max-width: 46rem }
dl { display: grid; grid-template-columns: fit-content(40%) minmax(0, 1fr);
  gap: .15rem 1.2rem; margin: 1.2rem 0 0; overflow-wrap: anywhere }
dt, small, .gates span { color: var(--soft) }
dd { margin: 0 }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: .86rem;
  font-variant-numeric: tabular-nums }
th { text-align: left; color: var(--soft); font-weight: 500 }
th, td { padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; white-space: nowrap }
tr { break-inside: avoid }
.gates td:first-child { white-space: normal; overflow-wrap: anywhere; width: 99% }
.gates td { line-height: 1.35 }
small { display: block; font-size: .93em; white-space: normal }
tr.bad td:first-child, pre .bad { color: var(--bad) }
tr.bad td:first-child small { color: inherit }
.gates .is { font-weight: 700; color: var(--soft) }
.gates .is.pass { color: var(--pass) } .gates .is.fail { color: var(--bad) }
.bar { display: block; width: 5rem; height: .5rem; margin-top: .3rem;
  background: var(--line); border-radius: .25rem; overflow: hidden;
  print-color-adjust: exact }
.bar i { display: block; height: 100%; background: var(--pass) }
.bar .over { background: var(--bad) }
figure { margin: 0; break-inside: avoid }
svg { display: block; width: 100%; height: auto }
svg text { font-family: inherit !important }
.narrow { display: none }
figcaption { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; font-size: .86rem }
.key::before { content: ""; display: inline-block; width: 1.4rem; height: 3px;
  margin-right: .5rem; vertical-align: middle; background: var(--bad);
  print-color-adjust: exact }
.key.torch::before { background: var(--torch); height: 5px }
.key.flax::before { background: var(--flax) }
.key.float64::before { background: var(--float64) }
.key.limit::before { background: var(--limit); height: 1px }
.key.bad::before { width: .5rem; height: .5rem; border-radius: 50% }
.key.alone::before { width: .7rem; height: .6rem;
  clip-path: polygon(50% 0, 100% 100%, 0 100%) }
details { border-top: 1px solid var(--line) }
details:last-of-type { border-bottom: 1px solid var(--line) }
summary { padding: .5rem 0; cursor: pointer }
details > * + * { margin: 0 0 1rem }
pre { padding: .8rem; background: var(--tint); border-radius: .4rem;
  font: .78rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace }
@media (max-width: 600px) {
  .wide { display: none } .narrow { display: block }
  .gates thead { display: none }
  .gates tr { display: grid; grid-template-columns: 4rem 1fr 1fr 5rem;
    padding: .4rem 0; border-bottom: 1px solid var(--line) }
  .gates td { border: 0; padding: .1rem 0 }
  .gates td:first-child { grid-column: 1 / -1; width: auto }
  .gates td:nth-child(4):not(:empty)::before { content: "of " }
}
@media print { :root { font-size: 11px } main { padding: 0; max-width: none }
  table { font-size: .75rem } th, td { padding-right: .4rem }
  .scroll { overflow: visible } pre { white-space: pre-wrap; font-size: .65rem } }
"""
