"""The check, checked: networks with a fault each, which it must catch and name."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from parity.text import table

if TYPE_CHECKING:
    from parity.judging.report import Report
    from parity.mutants.catalogue import Mutant

FAST = (
    "stem padded SAME",
    "kernels H/W swapped",
    "RGB/BGR",
    "eps a hundredth off in one layer",
    "one residual missing",
    "fc bias dropped",
    "zero-padded max-pool after ReLU",
    "one tensor ×(1+1e-6)",
    "one key skipped",
    "num_batches_tracked lost",
    "biased running variance in one layer",
    "gradient ½ at 0 for ReLU",
)
"""A few of every kind, by name, that take seconds each."""


@dataclass(frozen=True)
class Kill:
    """What became of one mutant.

    Args:
        number: in the project's list of mutants; 0 for the twins as they are.
        name: the fault, in words.
        expected: the gate that must fail first; empty if none may.
        culprit: what it must name first.
        killed_by: the gate that failed first; empty if none did.
        named: what it named first.
        raised: what a network raised instead of computing; empty if it computed.
    """

    number: int
    name: str
    expected: str
    culprit: str
    killed_by: str
    named: str
    raised: str = ""

    @property
    def ok(self) -> bool:
        """Whether the right gate, and no earlier one, failed for the right reason."""
        found = self.killed_by, self.named
        return not self.raised and found == (self.expected, self.culprit)


def self_test(
    numbers: Collection[int] | None = None,
    progress: Callable[[str], None] = lambda what: None,
) -> list[Kill]:
    """Checks twins with known faults, and twins without.

    Args:
        numbers: of the mutants, as in :data:`parity.mutants.catalogue.MUTANTS`; by
            default a few of every kind, in less than a minute.
        progress: told the name of each.

    Returns:
        A row for each pair without a fault, which must pass, and for each mutant.

    Raises:
        ValueError: no mutant has such a number.
    """
    from parity.mutants.catalogue import CONTROLS, EQUIVALENTS, MUTANTS

    everything = (*MUTANTS, *EQUIVALENTS)
    unknown = set(numbers or ()).difference(m.number for m in everything)
    if unknown:
        raise ValueError(f"no mutant has the number {min(unknown)}")
    chosen = [
        mutant
        for mutant in everything
        if (mutant.name in FAST if numbers is None else mutant.number in numbers)
    ]
    chosen.sort(key=lambda mutant: mutant.number)
    rows = []
    for mutant in (*CONTROLS, *chosen):
        progress(f"mutant: {mutant.name}")
        gates = mutant.gates[:1] or mutant.passes
        rows.append(fate(mutant, mutant.check(tuple(dict.fromkeys(("G0", *gates))))))
    return rows


def fate(mutant: Mutant, report: Report) -> Kill:
    """Says what became of a mutant in a check."""
    failed = next((gate for gate in report.gates if not gate.ok), None)
    first = failed.failures[0] if failed is not None and failed.failures else None
    raised = [
        row.note
        for gate in report.gates
        for row in gate.failures
        if row.note.startswith("raised ")
    ]
    return Kill(
        number=mutant.number,
        name=mutant.name,
        expected=mutant.gates[0] if mutant.gates else "",
        culprit=mutant.culprit,
        killed_by=failed.gate if failed is not None else "",
        named=first.name if first is not None else "",
        raised=raised[0] if raised else "",
    )


def kill_table(kills: Sequence[Kill]) -> str:
    """Returns one line per mutant, and the verdict."""
    lines = [
        (
            *(kill.number, kill.name, kill.expected or "none", kill.culprit),
            *(kill.killed_by or "none", kill.named),
            "" if kill.ok else f"< FAIL {kill.raised}".rstrip(),
        )
        for kill in kills
    ]
    heads = ("", "mutant", "gate", "at", "killed by", "named", "")
    return f"{table(heads, lines)}\n\n{_verdict(kills)}"


def to_json(kills: Sequence[Kill]) -> str:
    """Returns the same as a JSON object."""
    rows = [asdict(kill) | {"ok": kill.ok} for kill in kills]
    return json.dumps({"ok": all(kill.ok for kill in kills), "mutants": rows})


def _verdict(kills: Sequence[Kill]) -> str:
    wrong = [kill.name for kill in kills if not kill.ok]
    if wrong:
        return f"FAIL: the check is wrong about {', '.join(wrong)}"
    passed = [kill for kill in kills if not kill.expected]
    killed = len(kills) - len(passed)
    return (
        f"PASS: {killed} mutants killed and named, {len(passed)} equal networks passed"
    )
