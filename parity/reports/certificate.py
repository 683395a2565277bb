"""A check that someone else can run again: what was checked, how, what was found."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from parity.errors import InputError
from parity.inputs import read_text
from parity.judging.report import Report
from parity.judging.tolerances import (
    CERTIFIED_ERROR,
    CERTIFIED_LIMIT,
    CERTIFIED_ROUNDINGS,
    UNIT_ROUNDOFF,
)
from parity.reports.certified import (
    Rules,
    alike,
    is_number,
    of_one_quantity,
    sizes_of,
)

FORMAT = "resnet-twins certificate 2"

_MACHINE = (
    *("python", "platform", "processor", "processors", "versions", "torch", "jax"),
)
"""What of a setting says where it was run; all else, what was."""

_ROUNDED = ("error", "l2", "max", "p50", "p99")
"""Figures of a row that rounding decides, and so the machine."""

_MEASURED = ("limit", "growth")
"""Figures that follow from what was measured, and differ less."""

_OF_THE_WORST = ("worst", "value", "expected", "scale", "ratio", "use")
"""Figures that say where an error is largest and which way, or follow from two."""

_NOTHING = object()

_MOST_BYTES = 2**26

_WRITER = "resnet-twins check --certificate FILE writes one"


def to_certificate(report: Report, recipe: Mapping[str, Any]) -> str:
    """Returns a report as JSON, with what it takes to run it again.

    Args:
        report: what was found.
        recipe: what was asked for, for whoever runs it again.
    """
    found = {"format": FORMAT, "recipe": recipe, **json.loads(report.to_json())}
    return json.dumps(found, indent=1, allow_nan=False) + "\n"


def read_certificate(path: str | Path) -> dict[str, Any]:
    """Reads a certificate, and sees to it that every field is there and of its type.

    The recipe is read by :meth:`parity.recipe.Recipe.from_certificate`.

    Raises:
        ValueError: the file cannot be read, or is none.
    """
    try:
        found = json.loads(read_text(path, _MOST_BYTES))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is no certificate: it is no JSON. {_WRITER}"
        ) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(
            f"{path} is no certificate: it does not say {FORMAT!r}. {_WRITER}"
        )
    if problem := _misshapen(found, _SHAPE, ""):
        raise ValueError(f"{path} is a damaged certificate: {problem}. {_WRITER}")
    return found


def elsewhere(certificate: Mapping[str, Any], report: Report) -> list[str]:
    """Says in a line where the machine is another than the certificate's, if it is.

    Args:
        certificate: from :func:`read_certificate`.
        report: of the check that has been run again.
    """
    pair = (certificate["setting"], _as_json(report)["setting"])
    old, new = ({k: v for k, v in s.items() if k in _MACHINE} for s in pair)
    parted = _parted(old, new)
    if not parted:
        return []
    return [f"another machine: {'; '.join(parted)}; figures may differ tenfold"]


def differences(certificate: Mapping[str, Any], report: Report) -> list[str]:
    """Lists what a new report does not confirm of a certificate; empty if nothing.

    What was checked must be the same by its digests, and every gate's verdict. On the
    same machine, with the same versions and threads, so must be all else, every figure
    to the last bit. Elsewhere, which :func:`elsewhere` says, errors may be ten times
    larger or smaller, or lost in rounding, limits four times, and other places may be
    the worst. Every row must then agree with itself, see
    :class:`parity.reports.certified.Rules`.

    Args:
        certificate: from :func:`read_certificate`.
        report: of the check that has been run again.
    """
    new = _as_json(report)
    here = not elsewhere(certificate, report)
    pair = (certificate, new)
    found = _parted(
        *({k: v for k, v in r["setting"].items() if k not in _MACHINE} for r in pair)
    )
    known = {"format", "recipe", "setting", "gates"}
    found += _parted(*({k: v for k, v in r.items() if k not in known} for r in pair))
    names = [[gate["gate"] for gate in r["gates"]] for r in pair]
    if names[0] != names[1]:
        return [*found, f"gates: {names[0]} are certified, here {names[1]}"]
    arithmetic = new["setting"].get("arithmetic")
    arithmetic = arithmetic if arithmetic in UNIT_ROUNDOFF else "float32"
    unit = UNIT_ROUNDOFF[arithmetic]
    for old, gate in zip(*(r["gates"] for r in pair), strict=True):
        exact = UNIT_ROUNDOFF["float64"]
        rounding = exact if gate["gate"].startswith("G1") else unit
        shapes = report.quantities.get(gate["gate"], {})
        sizes = sizes_of(new, training="training" in gate["gate"])
        rules = Rules(gate["gate"], arithmetic, rounding, shapes, sizes)
        found += _differing(old, gate, None if here else rules)
    return found


def _differing(
    old: Mapping[str, Any], new: Mapping[str, Any], rules: Rules | None
) -> list[str]:
    """Lists what differs in a gate; on another machine, by the rules for its rows."""
    gate = new["gate"]
    about = [{k: v for k, v in g.items() if k != "rows"} for g in (old, new)]
    if parted := _parted(*about):
        return [f"{gate}, {line}" for line in parted]
    if len(old["rows"]) != len(new["rows"]):
        return [f"{gate}: other rows"]
    parted = []
    for before, after in zip(old["rows"], new["rows"], strict=True):
        what = f"{gate}, {after['name']} {after['kind']}".rstrip()
        if rules is None:
            lines = _parted(before, after)
        else:
            pair = (_judged(gate, *two) for two in ((before, after), (after, before)))
            lines = [*_parted(*pair, unit=rules.unit), *rules.broken(before, after)]
        parted += [f"{what}, {line}" for line in lines[:1]]
    more = [f"{gate}: {len(parted) - 3} more rows differ"] if len(parted) > 3 else []
    return parted[:3] + more


def _judged(
    gate: str, row: Mapping[str, Any], other: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what of a row another machine must confirm; the rest rounding decides.

    Which of a module's quantities, or of a kind's taps, is the worst may be another
    there: then they cannot be compared, and each only has to agree with itself.
    """
    dropped = {"error", "note"} if gate == "G4" else set()
    if not of_one_quantity(row, other):
        if "isolated" in gate:
            dropped = {"kind", "error", "limit", "figures"}
        elif gate.startswith("G3"):
            dropped = {"name", "error", "limit", "figures"}
    kept = {key: value for key, value in row.items() if key not in dropped}
    if "note" in kept:
        kept["note"] = re.sub(r"\d[\d.]*(e[-+]?\d+)?", "#", kept["note"])
    if row["note"].startswith("undecidable"):
        del kept["figures"]
    return kept


def _parted(old: Any, new: Any, *, unit: float | None = None) -> list[str]:
    """Lists where two values differ; with a unit, not what rounding may change."""
    olds, news = dict(_leaves(old)), dict(_leaves(new))
    parted = []
    for at in {**news, **olds}:
        before, after = (leaves.get(at, _NOTHING) for leaves in (olds, news))
        there = at in olds and at in news
        if there and unit is not None and at[-1] in _ROUNDED:
            same = alike(before, after, CERTIFIED_ERROR, CERTIFIED_ROUNDINGS * unit)
        elif there and unit is not None and at[-1] in _MEASURED:
            same = alike(before, after, CERTIFIED_LIMIT)
        elif there and unit is not None and at[-1] in _OF_THE_WORST:
            same = True
        else:
            same = there and json.dumps(before) == json.dumps(after)
        if not same:
            name = ".".join(at)
            pair = f"{_short(before)} is certified, here it is {_short(after)}"
            parted.append(f"{name}: {pair}")
    return parted


def _leaves(value: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Mapping) and (value or not at):
        for key, item in value.items():
            yield from _leaves(item, (*at, key))
    else:
        yield at, value


def _misshapen(value: object, shape: Any, at: str) -> str:
    """Says what is wrong with a value's shape, and where; empty if nothing is."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{at} is {_short(value)}, no object"
        for name, inner in shape.items():
            place = f"{at}.{name}".lstrip(".")
            if name not in value:
                return f"{place} is missing"
            if problem := _misshapen(value[name], inner, place):
                return problem
    elif isinstance(shape, list):
        if not isinstance(value, list):
            return f"{at} is {_short(value)}, no list"
        for index, item in enumerate(value):
            if problem := _misshapen(item, shape[0], f"{at}[{index}]"):
                return problem
    else:
        allows, allowed = shape
        if not allows(value):
            return f"{at} is {_short(value)}, not {allowed}"
    return ""


_TEXT = (lambda value: isinstance(value, str), "a text")
_FLAG = (lambda value: isinstance(value, bool), "true or false")
_FIGURE = (lambda v: is_number(v) or v in ("inf", "-inf", "nan"), "a number")
_ROW = {
    "name": _TEXT,
    "ok": _FLAG,
    "kind": _TEXT,
    "error": _FIGURE,
    "limit": _FIGURE,
    "note": _TEXT,
    "figures": {},
}
_GATE = {"gate": _TEXT, "what": _TEXT, "ok": _FLAG, "skipped": _TEXT, "rows": [_ROW]}
_SHAPE = {
    "recipe": {},
    "ok": _FLAG,
    "first_divergence": (lambda v: v is None or isinstance(v, str), "a text or null"),
    "culprits": [_TEXT],
    "setting": {},
    "gates": [_GATE],
}
"""Of a certificate: a type in words, or an object's fields, or what a list has."""


def _as_json(report: Report) -> dict[str, Any]:
    return json.loads(report.to_json())


def _short(value: Any) -> str:
    if value is _NOTHING:
        return "nothing"
    text = json.dumps(value)
    return text if len(text) < 100 else f"{text[:97]}..."
