"""What is measured of dialects is what it says: every way gives the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest

import parity
from benchmarks import dialects
from parity.weights.digest import differing_bits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dialects")
    dialects._write("resnet18", path)
    return path


@pytest.mark.parametrize("what", dialects.WAYS)
def test_every_way_that_is_timed_gives_the_same_weights(folder: Path, what: str):
    way = dialects.WAYS[what]
    checks = dialects._convert(folder, way)
    assert checks > 0
    found = parity.load(folder / way.target)
    assert found.dialect == way.to
    expected = parity.load(folder / dialects.OURS)
    if "jaxnn" in what:  # it has no batch counts
        expected = {n: a if a.shape else a * 0 for n, a in expected.items()}
    assert differing_bits(found, expected) == {}


def test_times_are_ratios_to_copying_the_weights(folder: Path):
    copied, *ratios = dialects._ratios(folder, dialects.WAYS["ours to Hugging Face"], 2)
    assert float(copied) >= 0
    whole, without, cpu = map(float, ratios)
    assert 0 < without < whole
    assert cpu > 0
    assert (folder / "copy").read_bytes() == (folder / dialects.OURS).read_bytes()
