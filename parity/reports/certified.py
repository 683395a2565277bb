"""What any row of a certificate must be like, whichever machine wrote it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from parity.judging.distance import ratio
from parity.judging.isolation import TIES
from parity.judging.tolerances import (
    CERTIFIED_DIGITS,
    CERTIFIED_ERROR,
    CERTIFIED_LIMIT,
    CERTIFIED_ROUNDINGS,
    CERTIFIED_SIZE,
    FLOAT64,
    GROWTH_MOST,
    HALVES,
    SAME_FIGURE,
    algebra_limit,
    arithmetic_factor,
    arithmetic_floor,
    ceiling,
    scale_limit,
)
from parity.running.taps import Quantity, path_of
from parity.weights.names import Shape

Row = Mapping[str, Any]

Sizes = Mapping[Quantity, float]
"""The largest value of the reference, of each quantity that a report tells it of."""

_OF_ONE = ("l2", "max", "scale", "p50", "p99", "value", "expected")
"""What is measured of one twin, beside the place of the largest error."""

_OF_STATE = ("parameter gradient", "statistic", "state")

_KINDS = sorted({*FLOAT64, "result"}, key=len, reverse=True)


@dataclass(frozen=True)
class Rules:
    """What holds for the rows of one gate.

    A row must agree with itself: an error with the norms that it is one of, a verdict
    with error and limit, a place with the shape of what it is in. Of the rows of a
    module alone and of ceilings another quantity may be the worst elsewhere: that must
    be one that there is, of the reference's size, with a limit that there can be, of
    which it uses about as much.

    Args:
        gate: its name.
        arithmetic: that is computed in.
        unit: of the gate's rounding.
        shapes: of what the reference has, in the gate's mode; empty if not known.
        sizes: of what the new report tells them of, in that mode.
    """

    gate: str
    arithmetic: str
    unit: float
    shapes: Mapping[Quantity, Shape]
    sizes: Sizes

    def broken(self, old: Row, new: Row) -> list[str]:
        """Lists where a row breaks them.

        Args:
            old: of the certificate.
            new: of the check that has been run again, which keeps them.
        """
        found = [*self._contradictions(old, new)]
        if of_one_quantity(old, new):
            return [*found, *_of_another_size(old, new)]
        worst_of_several = "isolated" in self.gate or self.gate.startswith("G3")
        if worst_of_several and new["limit"] and new["ok"]:
            found += self._of_another_quantity(old, new)
        return found

    def _contradictions(self, row: Row, new: Row) -> list[str]:
        """Lists where a row is not what any check would have written."""
        error, limit, figures = row["error"], row["limit"], row["figures"]
        if not (is_number(error) and is_number(limit)):
            return []
        if min(error, limit) < 0 or (row["ok"] and error > limit > 0):
            return ["error contradicts the limit"]
        if [*figures] == ["scale"]:
            by = figures["scale"]
            agrees = is_number(by) and _close(error, abs(by))
            return [] if agrees else ["error contradicts the rest"]
        measured, twins = _measured(figures)
        said = [m[name] for m in measured for name in _OF_ONE if name in m]
        if len(said) < len(measured) * len(_OF_ONE):
            return []  # nothing was measured
        if not all(map(is_number, said)):
            wrong = "not finite, which contradicts the verdict"
            return [wrong] if row["ok"] else []
        norms = [m[norm] for m in measured for norm in ("l2", "max")]
        shape = self._shape(row)
        ranks = None
        if shape is None and of_one_quantity(row, new):
            ranks = [len(m["worst"]) for m in _measured(new["figures"])[0]]
        places = [m.get("worst") for m in measured]
        found = {
            "error": not any(_close(error, norm) for norm in norms),
            "p50": any(not 0 <= m["p50"] <= m["p99"] <= m["max"] for m in measured),
            "worst": not all(_is_place(place, shape) for place in places)
            or (ranks is not None and [len(place) for place in places] != ranks),
            "value": any(
                m["max"] > 0 and m["value"] == m["expected"] for m in measured
            ),
            "scale": any(
                abs(m["scale"]) > m["l2"] * (1 + SAME_FIGURE) for m in measured
            ),
        }
        if twins:
            torch, flax = (m["l2"] for m in measured)
            found["ratio"] = torch > 0 and not _close(
                figures.get("ratio"), flax / torch
            )
            found["use"] = not _close(figures.get("use"), error / limit)
        if self.gate.startswith("G3"):
            growth = figures.get("growth")
            known = is_number(growth) and growth >= 1
            found["limit"] = not known or not _close(
                limit, ceiling(self.arithmetic, growth)
            )
        return [
            f"{name} contradicts the rest" for name, wrong in found.items() if wrong
        ]

    def _of_another_quantity(self, old: Row, new: Row) -> Iterator[str]:
        """Yields why a row is of none that could have been the worst elsewhere."""
        quantity, shape = _quantity(old), self._shape(old)
        if quantity is None or not self._judged(old, quantity):
            yield f"{old['kind']} of {old['name']} is nothing that is judged"
            return
        error, limit = old["error"], old["limit"]
        if not (is_number(error) and is_number(limit) and limit > 0):
            yield "limit contradicts the verdict"
            return
        if not old["figures"]:
            yield "figures are missing"
            return
        low, high = self._limits(old, quantity, shape)
        if not low * (1 - SAME_FIGURE) <= limit <= high * (1 + SAME_FIGURE):
            yield "limit contradicts every growth of rounding"
        shares = ratio(error, limit), ratio(new["error"], new["limit"])
        lost = CERTIFIED_ROUNDINGS * self.unit
        rounded = max(error, new["error"]) <= lost
        if not rounded and not alike(*shares, CERTIFIED_ERROR * CERTIFIED_LIMIT):
            yield "its share of the limit contradicts what is the worst here"
        if not old["kind"].endswith(TIES) and (size := self.sizes.get(quantity)):
            for told in filter(None, _largest(old["figures"])):
                if not alike(told, size, 1 + CERTIFIED_SIZE):
                    yield "value contradicts the reference's size"

    def _judged(self, row: Row, quantity: Quantity) -> bool:
        """Whether the quantity is there, and of the module that the row is of."""
        kind, name = quantity
        if kind in _OF_STATE and "isolated" in self.gate:
            path = path_of(row["name"])
            if path and not name.startswith(f"{path}."):
                return False
        # What a run changes that it should not, the reference does not have.
        return not self.shapes or kind == "state" or self._shape(row) is not None

    def _limits(
        self, row: Row, quantity: Quantity, shape: Shape | None
    ) -> tuple[float, float]:
        """Returns between what the limit of a row lies, however rounding grows."""
        figures = row["figures"]
        if self.gate.startswith("G3"):
            return ceiling(self.arithmetic, 1.0), ceiling(self.arithmetic, GROWTH_MOST)
        if self.gate.startswith("G1"):
            low, high = (algebra_limit(quantity.kind, g) for g in (1.0, GROWTH_MOST))
            return low, high
        if [*figures] == ["scale"] and self.arithmetic in HALVES:
            tap = self.shapes.get(Quantity("output", row["name"]), ())
            limit = scale_limit(self.arithmetic, *(tap[1:2] or (1,)))
            return limit, limit
        size = prod(shape) if shape is not None else 0
        k = arithmetic_factor(self.arithmetic, size)
        measured, _ = _measured(figures)
        norms = [m[n] for m in measured for n in ("l2", "max") if is_number(m.get(n))]
        floors = [arithmetic_floor(self.arithmetic, g) for g in (1.0, GROWTH_MOST)]
        return k * floors[0], 2 * k * max([*norms, floors[1]])

    def _shape(self, row: Row) -> Shape | None:
        quantity = _quantity(row)
        if quantity is None:
            return None
        kind, name = quantity  # a module's, and the network's own has that name
        given = Quantity("input", name) if kind == "input gradient" else quantity
        return self.shapes.get(quantity, self.shapes.get(given))


def sizes_of(report: Mapping[str, Any], *, training: bool) -> Sizes:
    """Returns how large a report's rows say that the reference's values are.

    Args:
        report: as JSON has it.
        training: in which mode.
    """
    found: dict[Quantity, float] = {}
    for gate in report["gates"]:
        name = gate["gate"]
        if "isolated" in name or ("training" in name) != training:
            continue
        for row in gate["rows"] if name.startswith(("G1", "G2")) else ():
            sizes = [*filter(None, _largest(row["figures"]))]
            if sizes:
                found[Quantity(row["kind"], row["name"])] = sizes[0]
    return found


def of_one_quantity(a: Row, b: Row) -> bool:
    """Whether two rows tell the same of the same."""
    return [a["name"], a["kind"], *a["figures"]] == [
        *(b["name"], b["kind"]),
        *b["figures"],
    ]


def alike(old: Any, new: Any, times: float, lost: float = 0.0) -> bool:
    """Whether one figure is at most so many times the other, or both are lost.

    Args:
        old: one.
        new: the other.
        times: how many.
        lost: below which neither says anything.
    """
    if not (is_number(old) and is_number(new)):  # "inf", "nan"
        return old == new
    low, high = sorted((old, new))
    return low >= 0 and high <= max(times * low, lost)


def is_number(value: object) -> bool:
    """Whether it is a number, and neither true nor false."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _quantity(row: Row) -> Quantity | None:
    """Reads of what a row is: of a module alone another's name stands in its kind."""
    kind = row["kind"].replace(TIES, "")
    for known in _KINDS:
        if f"{kind} ".startswith(f"{known} "):
            return Quantity(known, kind[len(known) + 1 :] or row["name"])
    return None


def _measured(figures: Mapping[str, Any]) -> tuple[list[Any], bool]:
    """Returns what was measured of each twin, and whether both are there."""
    pair = [figures.get("torch"), figures.get("flax")]
    twins = all(isinstance(twin, Mapping) for twin in pair)
    return (pair if twins else [figures]), twins


def _is_place(value: object, shape: Shape | None) -> bool:
    if not isinstance(value, list) or not all(type(i) is int and i >= 0 for i in value):
        return False
    if shape is None:
        return True
    return len(value) == len(shape) and all(map(int.__lt__, value, shape))


def _of_another_size(old: Row, new: Row) -> list[str]:
    """Says so where two rows of one quantity do not speak of one reference.

    The largest difference over its norm is the reference's largest value, and that is
    no matter of rounding.
    """
    pair = [list(_largest(row["figures"])) for row in (old, new)]
    for before, after in zip(*pair, strict=False):
        if before and after and not alike(before, after, 1 + CERTIFIED_SIZE):
            return ["value contradicts the reference's size"]
    return []


def _largest(figures: Mapping[str, Any]) -> Iterator[float]:
    """Yields the largest value of the reference, from what is said of each twin."""
    for found in _measured(figures)[0]:
        told = [found.get(name) for name in ("value", "expected", "max")]
        value, expected, most = told if all(map(is_number, told)) else (0.0, 0.0, 0.0)
        apart = abs(value - expected)
        # Less has no digits left.
        yield (
            apart / most
            if most > 0 and apart > CERTIFIED_DIGITS * abs(expected)
            else 0.0
        )


def _close(a: Any, b: float) -> bool:
    return is_number(a) and abs(a - b) <= SAME_FIGURE * max(abs(a), abs(b))
