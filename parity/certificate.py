"""A check that someone else can run again: what was checked, how, what was found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parity.report import Report
from parity.tolerances import UNIT_ROUNDOFF

FORMAT = "resnet-twins certificate 1"

_MACHINE = ("python", "platform", "processors", "versions", "torch", "jax")
_SETTING = ("config", "dtype", "arithmetic", "precision", "seed", "inputs", "weights")

ELSEWHERE = 10.0
"""How many times larger an error may be on another machine, or smaller."""


def to_certificate(report: Report, recipe: Mapping[str, Any]) -> str:
    """Returns a report as JSON, with what it takes to run it again.

    Args:
        report: what was found.
        recipe: what was asked for, for whoever runs it again.
    """
    found = {"format": FORMAT, "recipe": recipe, **json.loads(report.to_json())}
    return json.dumps(found, indent=1, allow_nan=False) + "\n"


def read_certificate(path: str | Path) -> dict[str, Any]:
    """Reads a certificate.

    Raises:
        ValueError: the file cannot be read, or is none.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is no certificate: it is no JSON") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(
            f"{path} is no certificate: it does not say {FORMAT!r}; "
            "resnet-twins check --certificate FILE writes one"
        )
    return found


def differences(certificate: Mapping[str, Any], report: Report) -> list[str]:
    """Lists what a new report does not confirm of a certificate; empty if nothing.

    What was checked must be the same by its digests, and every gate's verdict. On the
    same machine, with the same versions and threads, so must every figure, to the last
    bit; elsewhere an error may be ten times larger or smaller, or lost in rounding.

    Args:
        certificate: from :func:`read_certificate`.
        report: of the check that has been run again.
    """
    new = json.loads(report.to_json())
    old_setting, setting = certificate.get("setting", {}), new["setting"]
    found = [
        f"{name}: {_short(old_setting.get(name))} is certified, here it is "
        f"{_short(setting[name])}"
        for name in _SETTING
        if old_setting.get(name) != setting[name]
    ]
    for key in ("ok", "first_divergence", "culprits"):
        if certificate.get(key) != new[key]:
            found.append(f"{key}: {certificate.get(key)} is certified, not {new[key]}")
    here = all(old_setting.get(name) == setting[name] for name in _MACHINE)
    old_gates = {gate["gate"]: gate for gate in certificate.get("gates", [])}
    gates = {gate["gate"]: gate for gate in new["gates"]}
    if list(old_gates) != list(gates):
        found.append(f"gates: {list(old_gates)} are certified, not {list(gates)}")
    for name in old_gates.keys() & gates.keys():
        found += _differing(name, old_gates[name], gates[name], here=here)
    return found


def _differing(
    gate: str, old: Mapping[str, Any], new: Mapping[str, Any], *, here: bool
) -> list[str]:
    if [old["ok"], old["skipped"]] != [new["ok"], new["skipped"]]:
        return [f"{gate}: another verdict"]
    rows = [[(row["name"], row["kind"]) for row in g["rows"]] for g in (old, new)]
    if rows[0] != rows[1]:
        return [f"{gate}: other rows"]
    unit = UNIT_ROUNDOFF["float64" if gate.startswith("G1") else "float32"]
    parted = []
    for before, after in zip(old["rows"], new["rows"], strict=True):
        what = f"{gate}, {before['name']} {before['kind']}".rstrip()
        figures = [before["error"], after["error"]]
        if before["ok"] != after["ok"] or before["note"] != after["note"]:
            parted.append(f"{what}: another verdict")
        elif figures[0] != figures[1] and (here or not _alike(*figures, unit=unit)):
            parted.append(f"{what}: error {figures[0]} is certified, not {figures[1]}")
    more = [f"{gate}: {len(parted) - 3} more rows differ"] if len(parted) > 3 else []
    return parted[:3] + more


def _alike(old: Any, new: Any, *, unit: float) -> bool:
    if isinstance(old, str) or isinstance(new, str):  # "inf", "nan"
        return old == new
    low, high = sorted((old, new))
    return high <= ELSEWHERE * max(low, unit)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 100 else f"{text[:97]}..."
