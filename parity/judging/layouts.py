"""Layouts that shapes do not tell: height, width and channels that are equal."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import numpy as np

from parity.judging.distance import deviation
from parity.judging.evidence import Evidence
from parity.judging.tolerances import OTHER_LAYOUT, WRONG_LAYOUT
from parity.running.layouts import Layouts
from parity.running.taps import AGAIN, OUTPUT, ModuleError, Quantity, call_of


def told_by_values(evidence: Evidence) -> tuple[dict[str, str], list[str]]:
    """Tries both layouts of maps that fit either by shape, if the usual one is wrong.

    Args:
        evidence: with the layouts that are given.

    Returns:
        By tap, the other layout where its values fit, and the usual one's do not; and
        the taps where neither does.
    """
    pair = evidence.pair
    layouts: Layouts = pair.names.layouts
    found: dict[str, str] = {}
    neither: list[str] = []
    with suppress(ModuleError):  # the gates will say so
        reference = evidence.forward.reference
        others = {
            tap: other
            for tap, shape in reference.shapes.items()
            if (other := layouts.other(tap, shape)) is not None
        }
        if not others:
            return {}, []
        errors = evidence.forward.flax_run.deviations
        wrong = [
            tap
            for tap in others
            if (by := errors.get(Quantity("output", tap))) and by.l2 > WRONG_LAYOUT
        ]
        values = _values(evidence, wrong) if wrong else {}
        for tap, value in values.items():
            axes, layout = others[tap]
            expected = reference.values[Quantity("output", tap)]
            before, after = (
                deviation(x, expected).l2 for x in (value, value.transpose(axes))
            )
            if after * OTHER_LAYOUT <= before:
                found[tap] = layout
                if call_of(tap) == OUTPUT:
                    found[AGAIN + tap.removeprefix(OUTPUT)] = layout
            else:
                neither.append(tap)
    return found, neither


def _values(evidence: Evidence, taps: list[str]) -> Mapping[str, np.ndarray]:
    phase = evidence.forward
    program = evidence.pair.jax.forward(evidence.images, phase.reference.all_shapes)
    return {
        quantity.name: value
        for quantity, value in program.here()
        if quantity.kind == "output" and quantity.name in taps
    }
