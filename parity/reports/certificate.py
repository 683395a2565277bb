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
    CERTIFIED_DIGITS,
    CERTIFIED_ERROR,
    CERTIFIED_LIMIT,
    CERTIFIED_ROUNDINGS,
    CERTIFIED_SIZE,
    SAME_FIGURE,
    UNIT_ROUNDOFF,
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
    the worst. Every row must then agree with itself: an error with the norms that it is
    one of, a verdict with error and limit.

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
    unit = UNIT_ROUNDOFF.get(new["setting"].get("arithmetic"), UNIT_ROUNDOFF["float32"])
    for old, gate in zip(*(r["gates"] for r in pair), strict=True):
        exact = UNIT_ROUNDOFF["float64"]
        rounding = exact if gate["gate"].startswith("G1") else unit
        found += _differing(old, gate, None if here else rounding)
    return found


def _differing(
    old: Mapping[str, Any], new: Mapping[str, Any], unit: float | None
) -> list[str]:
    """Lists what differs in a gate; on another machine, with its unit of rounding."""
    gate = new["gate"]
    about = [{k: v for k, v in g.items() if k != "rows"} for g in (old, new)]
    if parted := _parted(*about):
        return [f"{gate}, {line}" for line in parted]
    if len(old["rows"]) != len(new["rows"]):
        return [f"{gate}: other rows"]
    parted = []
    for before, after in zip(old["rows"], new["rows"], strict=True):
        what = f"{gate}, {after['name']} {after['kind']}".rstrip()
        if unit is None:
            lines = _parted(before, after)
        else:
            pair = (_judged(gate, *two) for two in ((before, after), (after, before)))
            lines = [
                *_parted(*pair, unit=unit),
                *_contradictions(before),
                *_of_another_size(before, after),
            ]
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
    others = [row["name"], row["kind"], *row["figures"]]
    if others != [other["name"], other["kind"], *other["figures"]]:
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
            alike = _alike(before, after, CERTIFIED_ERROR, CERTIFIED_ROUNDINGS * unit)
        elif there and unit is not None and at[-1] in _MEASURED:
            alike = _alike(before, after, CERTIFIED_LIMIT)
        elif there and unit is not None and at[-1] in _OF_THE_WORST:
            alike = True
        else:
            alike = there and json.dumps(before) == json.dumps(after)
        if not alike:
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


def _alike(old: Any, new: Any, times: float, lost: float = 0.0) -> bool:
    if not (_is_number(old) and _is_number(new)):  # "inf", "nan"
        return old == new
    low, high = sorted((old, new))
    return low >= 0 and high <= max(times * low, lost)


def _contradictions(row: Mapping[str, Any]) -> list[str]:
    """Lists where a row of a certificate is not what any check would have written."""
    error, limit, figures = row["error"], row["limit"], row["figures"]
    if not (_is_number(error) and _is_number(limit)):
        return []
    if min(error, limit) < 0 or (row["ok"] and error > limit > 0):
        return ["error contradicts the limit"]
    pair = [figures.get("torch"), figures.get("flax")]
    twins = all(isinstance(twin, Mapping) for twin in pair)
    measured: list[Any] = pair if twins else [figures]
    said = [m[name] for m in measured for name in _OF_ONE if name in m]
    if len(said) < len(measured) * len(_OF_ONE):
        return []  # nothing was measured
    if not all(map(_is_number, said)):
        return ["not finite, which contradicts the verdict"] if row["ok"] else []
    norms = [m[norm] for m in measured for norm in ("l2", "max")]
    found = {
        "error": not any(_close(error, norm) for norm in norms),
        "p50": any(not 0 <= m["p50"] <= m["p99"] <= m["max"] for m in measured),
        "worst": not all(_is_place(m.get("worst")) for m in measured),
        "value": any(m["max"] > 0 and m["value"] == m["expected"] for m in measured),
        "scale": any(abs(m["scale"]) > m["l2"] * (1 + SAME_FIGURE) for m in measured),
    }
    if twins:
        torch, flax = (m["l2"] for m in measured)
        found["ratio"] = torch > 0 and not _close(figures.get("ratio"), flax / torch)
        found["use"] = not _close(figures.get("use"), error / limit)
    return [f"{name} contradicts the rest" for name, wrong in found.items() if wrong]


_OF_ONE = ("l2", "max", "scale", "p50", "p99", "value", "expected")
"""What is measured of one twin, beside the place of the largest error."""


def _is_place(value: object) -> bool:
    return isinstance(value, list) and all(
        _is_number(index) and index >= 0 for index in value
    )


def _of_another_size(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Says so where two rows of one quantity do not speak of one reference.

    The largest difference over its norm is the reference's largest value, and that is
    no matter of rounding.
    """
    if (old["name"], old["kind"]) != (new["name"], new["kind"]):
        return []
    pair = [list(_largest(row["figures"])) for row in (old, new)]
    for before, after in zip(*pair, strict=False):
        if before and after and not _alike(before, after, 1 + CERTIFIED_SIZE):
            return ["value contradicts the reference's size"]
    return []


def _largest(figures: Mapping[str, Any]) -> Iterator[float]:
    """Yields the largest value of the reference, from what is said of each twin."""
    twins = [figures.get("torch"), figures.get("flax")]
    measured: list[Any] = twins
    if not all(isinstance(twin, Mapping) for twin in twins):
        measured = [figures]
    for found in measured:
        told = [found.get(name) for name in ("value", "expected", "max")]
        value, expected, most = told if all(map(_is_number, told)) else (0.0, 0.0, 0.0)
        apart = abs(value - expected)
        # Less has no digits left.
        yield (
            apart / most
            if most > 0 and apart > CERTIFIED_DIGITS * abs(expected)
            else 0.0
        )


def _close(a: Any, b: float) -> bool:
    return _is_number(a) and abs(a - b) <= SAME_FIGURE * max(abs(a), abs(b))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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
_FIGURE = (lambda v: _is_number(v) or v in ("inf", "-inf", "nan"), "a number")
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
