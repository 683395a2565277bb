"""Reports made by hand, so that each has what it must show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from parity import GATES, Report
from parity.judging.report import GateResult, Row
from parity.reports.page import to_html
from tests.support.networks import TINY

TITLE = "tiny: random weights, seed 3"
TAPS = ("conv1", "layer1.0.bn1", "layer1.0", "layer2.0.bn1", "layer2.0", "fc", "output")


def _figures(error: float, value: float = 1.5) -> dict[str, Any]:
    place = {"worst": [1, 2, 3, 4], "value": value, "expected": 1.25}
    return {"l2": error, "max": error} | place


def row_of(tap: str, error: float, limit: float, kind: str, note: str = "") -> Row:
    figures: dict[str, Any] = _figures(error)
    if limit != 1e-12:
        figures = {"torch": _figures(2e-7), "flax": figures}
        figures |= {"ratio": error / 2e-7, "use": error / limit}
    return Row(tap, error <= limit, kind, error, limit, note, figures)


def _gate(gate: str, taps: tuple[str, ...], bad: str, error: float) -> GateResult:
    what = f"judges {gate} & more"
    if gate in ("G0", "G5"):
        return GateResult(gate, what, tuple(Row(tap, True) for tap in taps))
    good, limit = (4e-16, 1e-12) if "G1" in gate else (3e-7, 1e-6)
    kinds = ("output", "gradient") if "training" in gate else ("output",)
    note = "kink, 2 units in Flax" if gate == "G4" else ""
    from_bad = taps[taps.index(bad) :] if bad else ()
    if "isolated" in gate:
        from_bad = from_bad[:1]
    rows = tuple(
        row_of(tap, error if tap in from_bad else good, limit, kind, note)
        for kind in kinds
        for tap in taps
    )
    return GateResult(gate, what, rows, isolated="isolated" in gate)


def report_of(
    *,
    bad: str = "",
    error: float = 1e-3,
    taps: tuple[str, ...] = TAPS,
    gates: Sequence[str] = GATES,
) -> Report:
    setting = {
        "config": TINY.to_json(),
        "dtype": "float32",
        "arithmetic": "float32",
        "seed": 7,
        "inputs": {"shape": [2, 3, 64, 48], "sha256": "0123abcd"},
        "versions": {"torch": "2.99", "absent": None},
    }
    results = tuple(_gate(gate, taps, bad, error) for gate in gates)
    return Report(results, dict.fromkeys(taps, (2, 8, 16, 12)), setting)


def page_of(report: Report, title: str = TITLE) -> str:
    return to_html(report, title=title)
