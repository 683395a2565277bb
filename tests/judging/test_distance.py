"""How far arrays are apart."""

from __future__ import annotations

import numpy as np
import pytest

from parity.judging.distance import SAMPLE, deviation


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


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 101, 5000, 3 * SAMPLE + 5])
def test_quantiles_are_numpys_to_the_bit(size: int):
    rng = np.random.default_rng(size)
    for _ in range(20):
        value = rng.standard_normal(size)
        found = deviation(value, np.zeros(size), terms=np.ones(size))
        sample = np.abs(value)[:: size // SAMPLE + 1]
        assert [found.p50, found.p99] == np.quantile(sample, (0.5, 0.99)).tolist()


def test_what_is_no_number_has_no_quantiles():
    value = np.array([1.0, np.nan, 2.0])
    assert np.isnan(deviation(value, np.ones(3)).p99)
