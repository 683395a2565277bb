"""What a report says as a whole."""

from __future__ import annotations

import parity
from parity.judging.report import GateResult, Row


def test_a_report_is_true_exactly_if_every_gate_passed():
    def report(*oks: bool) -> parity.Report:
        rows = tuple(Row(f"row {ok}", ok) for ok in oks)
        return parity.Report((GateResult("G0", "rows", rows),), {}, {})

    assert report(True, True)
    assert not report(True, False)
    assert not report()


def test_gates_are_named_in_three_tuples_that_add_up():
    both = (*parity.FORWARD, *parity.TRAINING)
    assert both == parity.GATES
    assert len(set(both)) == len(both)
