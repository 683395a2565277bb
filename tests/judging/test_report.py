"""What a report says as a whole."""

from __future__ import annotations

import parity
from parity.judging.report import GateResult, Row
from parity.judging.wishes import Wish, together


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


def _isolated(*kinds: str, ok: bool = True) -> GateResult:
    rows = tuple(Row("conv1", ok, kind, 1.0, 2.0) for kind in kinds)
    return GateResult("G2 isolated", "float32", rows, isolated=True)


def test_several_batches_have_one_row_for_each_module_alone():
    both = [_isolated("output"), _isolated("input gradient", ok=False)]
    (row,) = together(both).rows
    assert (row.ok, row.kind, row.note) == (False, "input gradient", "in batch 2")


def test_a_pattern_that_no_name_has_is_said():
    wish = Wish({"conv*": 1e-3, "convv1": 1e-3}, ["fc", "conv1"])
    first, second = wish.vain([_isolated("output")])
    assert first.startswith("'convv1', as asked for by rtol")
    assert second.startswith("'fc', as asked for by skip")
