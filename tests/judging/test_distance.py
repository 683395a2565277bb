"""How far arrays are apart."""

from __future__ import annotations

import numpy as np
import pytest

from parity.judging.distance import deviation


def test_deviation_measures_norms_and_finds_the_worst_place():
    reference = np.zeros((2, 3))
    reference[1, 2] = 4.0
    value = reference.copy()
    value[0, 1] = 3.0
    found = deviation(value, reference)
    assert (found.l2, found.max, found.worst) == (0.75, 0.75, (0, 1))
    assert (found.value, found.expected, found.finite) == (3.0, 0.0, True)


def test_deviation_never_broadcasts():
    with pytest.raises(ValueError, match="shapes differ"):
        deviation(np.zeros((2, 1)), np.zeros(2))


def test_deviation_from_zero_is_infinite_unless_there_is_none():
    assert deviation(np.zeros(3), np.zeros(3)).l2 == 0
    assert deviation(np.ones(3), np.zeros(3)).l2 == float("inf")


def test_what_is_no_number_has_no_quantiles():
    value = np.array([1.0, np.nan, 2.0])
    assert np.isnan(deviation(value, np.ones(3)).p99)
