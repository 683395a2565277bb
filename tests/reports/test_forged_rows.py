"""On another machine figures may differ: every row must still be one of a check."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

import parity
from parity.reports.certificate import differences, to_certificate
from tests.reports.test_certificate import RECIPE, Change, _divided, _report
from tests.support.networks import TINY

# Of every kind of gate: forged so that each figure agrees with the others.
MANY = (
    *("G1", "G1 isolated", "G2", "G2 isolated", "G3"),
    *("G4", "G2 training", "G2 training isolated", "G3 training"),
)


@pytest.fixture(scope="module")
def many() -> parity.Report:
    return _report(gates=MANY, config=TINY.replace(layers=(1,), widths=(8,)))


def _measured(row: dict[str, Any]) -> list[dict[str, Any]]:
    figures = row["figures"]
    return [figures["torch"], figures["flax"]] if "torch" in figures else [figures]


def _misplaced(row: dict[str, Any], place: Callable[[list[int]], list[Any]]) -> None:
    for by in _measured(row):
        by["worst"] = place(by["worst"])


def _enlarged(row: dict[str, Any], by: float) -> None:
    """Makes the error larger throughout, as a check would have found it."""
    row["error"] *= by
    for found in _measured(row):
        for figure in ("l2", "max", "p50", "p99"):
            found[figure] *= by
        apart = found["value"] - found["expected"]
        found["value"] = found["expected"] + by * apart
    if "use" in row["figures"]:
        row["figures"]["use"] *= by


def _granted(row: dict[str, Any], by: float) -> None:
    row["limit"] *= by
    if "use" in row["figures"]:
        row["figures"]["use"] /= by


def _called(row: dict[str, Any], kind: str, name: str | None = None) -> None:
    row.update(kind=kind, name=name or row["name"])


PLACES: dict[str, Change] = {
    "far away": lambda row: _misplaced(row, lambda at: [10**9, *at[1:]]),
    "of another rank": lambda row: _misplaced(row, lambda at: at[1:]),
    "no whole number": lambda row: _misplaced(row, lambda at: [0.5, *at[1:]]),
    "true": lambda row: _misplaced(row, lambda at: [True, *at[1:]]),
    "none": lambda row: row.update(figures={}),
}
SMALL: dict[str, Change] = {
    "an error without its norm": lambda row: _divided(row, "error", 1000),
    "a thousand times the error": lambda row: _enlarged(row, 1000),
    "a larger limit": lambda row: _granted(row, 9),
    "no error": lambda row: row.update(error=-1.0),
}
ANOTHER: dict[str, tuple[str, Change]] = {
    "a kind that is none": ("G1 isolated", lambda row: _called(row, "colour")),
    "a gradient in evaluation": (
        "G2 isolated",
        lambda row: _called(row, "gradient layer1.0"),
    ),
    "a module's that is none": (
        "G1 isolated",
        lambda row: _called(row, "input layer9"),
    ),
    "a kind, and a larger error": (
        "G2 isolated",
        lambda row: (_called(row, "output at ties"), _enlarged(row, 1000)),
    ),
    "a kind, and a smaller limit": (
        "G1 isolated",
        lambda row: (_called(row, "output at ties"), _granted(row, 1e-2)),
    ),
    "a kind, and a larger limit": (
        "G1 isolated",
        lambda row: (_called(row, "output at ties"), _granted(row, 1e6)),
    ),
    "a kind, and no figures": (
        "G2 training isolated",
        lambda row: (_called(row, "output at ties"), row.update(figures={})),
    ),
    "a kind, and a place outside": (
        "G2 training isolated",
        lambda row: (
            _called(row, "output at ties"),
            _misplaced(row, lambda at: [10**9, *at[1:]]),
        ),
    ),
    "a kernel's gradient, of another module": (
        "G2 training isolated",
        lambda row: (
            _called(row, "parameter gradient layer1.0.conv1.weight"),
            _misplaced(row, lambda at: [0, 0, 0, 0]),
        ),
    ),
    "a tap that is none": ("G3", lambda row: _called(row, "output", "layer9")),
    "a tap, of another size": (
        "G3",
        lambda row: (
            _called(row, "output", "layer1.0.bn2"),
            _misplaced(row, lambda at: [0, 0, 0, 0]),
        ),
    ),
    "a tap, and a larger error": (
        "G3",
        lambda row: (
            _called(row, "output", "layer1.0.bn2"),
            _misplaced(row, lambda at: [0, 0, 0, 0]),
            _enlarged(row, 1000),
        ),
    ),
    "a growth that the limit does not follow": (
        "G3 training",
        lambda row: row["figures"].update(growth=2 * row["figures"]["growth"]),
    ),
    "a limit without its growth": ("G3", lambda row: _granted(row, 2)),
    "a limit that nothing grants": (
        "G3",
        lambda row: (_granted(row, 0.1), row["figures"].update(growth=0.1)),
    ),
    "another limit of a kink": ("G4", lambda row: _granted(row, 9)),
    "a kink beyond its limit": ("G4", lambda row: row.update(error=2 * row["limit"])),
    "no kink": ("G4", lambda row: row.update(error=-row["limit"])),
}
ANOTHER |= {
    f"{gate}: {what}": (gate, change)
    for gate in MANY
    if gate != "G4"
    for what, change in (PLACES | SMALL).items()
}


@pytest.mark.parametrize("name", ANOTHER)
def test_on_another_machine_a_row_of_any_gate_that_is_forged_is_seen(
    name: str, many: parity.Report
):
    certificate = json.loads(to_certificate(many, RECIPE))
    certificate["setting"]["versions"]["jax"] = "0.0.1"
    assert differences(certificate, many) == []
    gate, forge = ANOTHER[name]
    rows = next(g["rows"] for g in certificate["gates"] if g["gate"] == gate)
    forge(next(row for row in rows if row["name"] in ("conv1", "relu", "maxpool")))
    assert len(differences(certificate, many)) == 1


def test_another_quantity_may_be_the_worst_elsewhere(many: parity.Report):
    certificate = json.loads(to_certificate(many, RECIPE))
    certificate["setting"]["versions"]["jax"] = "0.0.1"
    rows = {g["gate"]: g["rows"] for g in certificate["gates"]}
    honest = rows["G2 isolated"][0]
    worst = next(row for row in rows["G2 training isolated"] if row["name"] == "conv1")
    # The output, as evaluation mode has it: of a first convolution it is the same.
    worst.update(kind="output at ties", **{k: honest[k] for k in ("error", "limit")})
    worst.update(figures=honest["figures"])
    of_another = next(row for row in many.gate("G2").rows if row.name == "bn1")
    for row, twin in zip(rows["G3"], ("torch", "flax"), strict=True):
        found = dict(of_another.figures[twin], growth=row["figures"]["growth"])
        found["worst"] = list(found["worst"])
        row.update(name="bn1", error=found["l2"], figures=found)
    assert differences(certificate, many) == []
