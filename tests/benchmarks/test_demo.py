"""The demo, whole, and the way its times are taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import demo
from benchmarks.measuring.timing import Timing, interleaved


@pytest.mark.slow
def test_the_demo_goes_the_whole_road(photo: Path, capsys: pytest.CaptureFixture[str]):
    assert demo.main(photo) == 0
    out = capsys.readouterr().out
    for part in (
        "saved by torchvision's resnet50",
        "random weights, seed 0",
        "resnet50.safetensors: 0 of 320 tensors differ in a bit",
        "resnet50-back.pth: 0 of 320 tensors differ in a bit",
        "layer4.2.conv3",
        "G1    float64, every tap    pass",
        "G2    float32, every tap    pass",
        "PASS: both compute the same network",
        "Flax, without jit",
    ):
        assert part in out


def test_functions_are_timed_in_turn_and_the_first_calls_apart():
    calls: list[str] = []
    found = interleaved(
        {name: lambda name=name: calls.append(name) for name in "ab"},
        repeats=3,
        warm_up=2,
    )
    assert "".join(calls) == "ab" * 6
    assert all(len(timing.times) == 3 for timing in found.values())


def test_median_and_spread_are_those_of_the_measured_calls():
    timing = Timing(first=99.0, times=(1.0, 2.0, 3.0, 4.0, 100.0))
    assert timing.median == 3.0
    assert timing.spread == (52.0 - 1.5) / 2 / 3
