"""What the benchmarks make of times, and what their command does with it."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from benchmarks import command
from benchmarks.measuring.flops import flops
from benchmarks.plans import cases
from benchmarks.results import comparison, growth, plots, readme
from benchmarks.results import estimates as numbers
from benchmarks.results.figures import bests, ceilings_of, figures, ours_of
from parity.judging.tolerances import UNIT_ROUNDOFF
from resnet_spec import get_config
from tests.support.invented import invented, written

ROOT = Path(__file__).parents[2]

computed = partial(pytest.approx, rel=64 * UNIT_ROUNDOFF["float64"], abs=0)
"""The same arithmetic in float64, perhaps in another order: no network, no machine."""


def test_shares_and_ratios_are_those_of_the_times():
    found = invented()
    case = found["cases"][1]
    by_mode = {row["mode"]: it for row, it in figures(case)}
    times = {row["mode"]: row["times"] for row in case["rows"] if "times" in row}
    rate = 2 * 2048**3 / np.median(times["product-torch"])
    assert ceilings_of(case)["float32"] == computed(rate)
    flax, seconds = by_mode["flax-jit"], np.median(times["flax-jit"])
    ratios = np.divide(times["torch-channels-last"], times["flax-jit"])
    assert flax.speed.value == computed(np.median(ratios))
    assert flax.speed.low < flax.speed.value < flax.speed.high
    assert flax.share == computed(case["flops"] / seconds / rate)
    assert flax.rate == computed(8 / seconds)
    assert flax.compiling == computed(0.32 + 3.0 - seconds)
    assert by_mode["torch-bf16"].share is None  # no such ceiling was measured


def test_a_tenth_slower_is_shown_and_noise_is_not():
    old = invented()
    for seed in range(1, 6):
        changes = comparison.compare(old, invented(seed=seed))
        assert {change.verdict for change in changes} == {"same"}
    slower = comparison.compare(old, invented(seed=9, factor=1.1))
    shown = [(it.case, it.mode) for it in slower if it.verdict != "same"]
    keys = [case["key"] for case in old["cases"][:2]]
    assert shown == [(key, "flax-jit") for key in keys]
    assert all(it.verdict == "slower" for it in slower if it.verdict != "same")
    faster = comparison.compare(invented(factor=1.1), old)
    assert [it.verdict for it in faster if it.verdict != "same"] == ["faster"] * 2


def test_a_machine_that_is_slower_in_all_is_said_to_be_and_no_row_is():
    old = invented()
    old["cases"] = old["cases"][:2]  # those with a matrix product beside them
    for seed in (0, 1):
        new = invented(seed=seed)
        new["cases"] = new["cases"][:2]
        for case in new["cases"]:
            for row in case["rows"]:
                row["times"] = [1.3 * t for t in row.get("times", [])]
        assert {change.verdict for change in comparison.compare(old, new)} == {"same"}
        if seed == 0:  # the same times, and nothing else
            assert comparison.drift(old, new) == computed(1.3)


def test_a_point_of_a_sweep_is_compared_with_that_point():
    found = invented()
    twice = {**found["cases"][0], "sweeps": ["depth"]}
    twice["rows"] = [
        {**row, "times": [2 * t for t in row.get("times", [])]} for row in twice["rows"]
    ]
    found["cases"].append(twice)
    assert {it.verdict for it in comparison.compare(found, found)} == {"same"}


def test_our_fastest_modes_stand_against_each_librarys_fastest():
    case = invented()["cases"][0]
    rows = {row["mode"]: row for row in case["rows"]}
    slower = {**rows["torchvision"], "mode": "torchvision-compiled"}
    slower["times"] = [2 * t for t in slower["times"]]
    case["rows"] += [slower]
    assert ours_of(case) == {"torch": "torch-channels-last", "flax": "flax-jit"}
    found = bests(case)
    assert list(found) == ["torchvision"]  # bfloat16 is not compared with float32
    ratios = np.divide(rows["torchvision"]["times"], rows["flax-jit"]["times"])
    assert found["torchvision"]["flax"].value == computed(np.median(ratios))


def test_a_mode_that_is_refused_now_is_a_change():
    old, new = invented(), invented()
    new["cases"][0]["rows"][1].update(status="refused", reason="logits 1e-1")
    shown = [it for it in comparison.compare(old, new) if it.verdict != "same"]
    assert [it.verdict for it in shown] == ["timed before, refused now"]
    new["environment"]["versions"]["torch"] = "3.0"
    told = comparison.other_settings(old, new)
    assert [line for line in told if line.startswith("torch: ")]


def _exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """b of y ~ x^b by least squares on logarithms."""
    return np.polyfit(np.log(x), np.log(y), 1)[0]


def test_what_grows_faster_than_the_work_is_found():
    found = {(it.sweep, it.mode): it for it in growth.fit(invented())}
    assert set(found) == {
        ("batch", "flax-jit"),
        ("batch", "torch-channels-last"),
        ("depth", "export, ONNX"),
        ("depth", "torch-channels-last"),
        ("size", "torch-channels-last"),
    }
    batch = found["batch", "torch-channels-last"]
    # Work and memory are multiples of the batch, the times are noise about one.
    assert batch.time_slope.value == computed(_exponent(batch.points, batch.times))
    assert batch.time_slope.low < 1 < batch.time_slope.high
    assert batch.memory_slope.value == computed(1)
    assert batch.work_slope == computed(1)
    assert batch.points == (1, 2, 4, 8, 16, 32)
    assert found["depth", "torch-channels-last"].points == (18, 34, 50, 101, 152)
    size = found["size", "torch-channels-last"]
    work = [
        flops(get_config("resnet18"), "inference", 4, (side, side))
        for side in (128, 192, 256, 320)
    ]
    assert size.points == (128, 192, 256, 320)
    assert size.work_slope == computed(_exponent(size.points, work))
    assert all(it.ok for it in found.values())
    worse = {(it.sweep, it.mode): it.ok for it in growth.fit(invented(slope=1.4))}
    assert not worse["batch", "torch-channels-last"]
    assert not worse["depth", "export, ONNX"]


def test_each_sweep_grows_in_one_thing_and_where_two_cross_is_one_case():
    points = cases.growth()
    assert len({case.key for case in points}) == len(points)
    found: dict[str, set[tuple[str, int, int]]] = {}
    for case in points:
        for sweep in case.sweeps:
            place = case.network, case.batch, case.size[0]
            found.setdefault(sweep, set()).add(place)
    assert found == {
        "batch": {("resnet18", batch, 224) for batch in (1, 2, 4, 8, 16, 32)},
        "depth": {(network, 1, 224) for network in cases.DEPTHS},
        "size": {("resnet18", 4, side) for side in (128, 160, 192, 224, 256, 320)},
    }


def test_the_interval_of_a_median_holds_it_as_often_as_it_says():
    rng = np.random.default_rng(0)
    draws = [numbers.median(list(rng.lognormal(size=11))) for _ in range(400)]
    inside = np.mean([it.low <= 1 <= it.high for it in draws])
    assert 0.93 <= inside <= 1


def test_the_readmes_part_and_picture_come_from_the_json(tmp_path: Path):
    json_file = written(invented(), tmp_path / "bench.json")
    page, picture = tmp_path / "README.md", tmp_path / "bench.png"
    page.write_text(f"before\n{readme.START}\nold\n{readme.END}\nafter\n")
    for _ in range(2):  # once more changes nothing
        readme.update(json_file, page, picture)
        text = page.read_text()
        assert text.startswith("before\n")
        assert text.endswith("\nafter\n")
        assert "old" not in text
        assert "| torch twin, eager, channels_last | 25" in text
        assert "refused: logits 1e-1" in text
        assert (
            "| our fastest float32 mode timed here, over | torch twin | Flax twin |"
            in text
        )
        assert "![Throughput by mode](bench.png)" in text
    drawn = matplotlib.image.imread(picture)
    assert drawn.shape[0] > 500
    assert drawn.std() > 0.1
    with pytest.raises(ValueError, match="once each"):
        readme.update(json_file, json_file, picture)


def test_a_run_without_times_cannot_be_drawn(tmp_path: Path):
    found = copy.deepcopy(invented())
    found["cases"] = []
    with pytest.raises(ValueError, match="nothing was timed"):
        plots.draw(found, tmp_path / "none.png")


def _fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


def test_bad_input_gets_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    other = tmp_path / "other.json"
    other.write_text('{"format": 2, "cases": [{}]}')
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    for arguments, part in (
        (
            ["--profile", "slow"],
            "--profile is 'slow'; it must be quick, full, growth or",
        ),
        (["--mode", "tflow"], "no mode named 'tflow'; there are twins, peers"),
        (["--network", "resnet5"], "no network named 'resnet5'"),
        (["--batch", "2"], "--task, --batch and --size go with --network"),
        (["--network", "resnet18", "--batch", "0"], "batch is 0"),
        (
            ["--network", "resnet18", "--task", "training", "--batch", "1"],
            "at least 2 images",
        ),
        (["--network", "resnet18", "--size", "12"], "HEIGHTxWIDTH"),
        (["--device", "tpu"], "--device is 'tpu'; it must be cpu or cuda"),
        (["--dtype", "int8"], "--dtype is 'int8'"),
        (["--compare", "nowhere.json"], "nowhere.json: no such file"),
        (["--read", str(pipe)], "pipe.json: is no regular file"),
        (["--read", str(other)], "is no file of results"),
    ):
        assert part in _fails(capsys, *arguments)


def test_a_file_of_results_is_shown_compared_and_drawn_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    old = written(invented(), tmp_path / "old.json")
    new = written(invented(factor=1.1, seed=3), tmp_path / "new.json")
    picture = tmp_path / "new.png"
    arguments = ["--read", str(new), "--compare", str(old), "--plot", str(picture)]
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert not stopped.value.code
    out = capsys.readouterr().out
    assert "slower" in out
    assert "growth" in out
    assert picture.stat().st_size > 10_000


def test_growth_of_modes_that_are_not_for_it_is_refused_at_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    out = tmp_path / "bench.json"
    with pytest.raises(SystemExit):
        command.main(
            ["--profile", "growth", "--mode", "torch-fused", "--out", str(out)]
        )
    error = capsys.readouterr().err
    assert error.startswith("error: --profile growth is for torch-channels-last, flax-")
    assert not out.exists()


def test_other_flags_of_xla_are_named():
    old, new = invented(), invented()
    for found, flags in ((old, "--a=1"), (new, "")):
        (row,) = (r for r in found["cases"][0]["rows"] if r["mode"] == "flax-jit")
        row["settings"] = {"jax": {"xla_flags": flags}}
    expected = "XLA_FLAGS of flax-jit, inference: --a=1 before, none now"
    assert expected in comparison.other_settings(old, new)
    assert expected not in comparison.other_settings(old, old)


def test_listing_the_modes_imports_no_framework():
    code = (
        "import sys; sys.argv = ['b', '--list']; from benchmarks import command\n"
        "try: command.main()\nfinally: print([m for m in ('torch', 'jax') "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert "onnxruntime" in done.stdout


def test_when_the_budget_is_spent_what_was_found_is_kept(
    monkeypatch: pytest.MonkeyPatch,
):
    now = [0.0]
    monkeypatch.setattr(command, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def ten_seconds(case: cases.Case, *_: Any, **__: Any) -> dict[str, Any]:
        now[0] += 10
        return {"key": case.key}

    monkeypatch.setattr(command.experiment, "run_case", ten_seconds)
    four = tuple(cases.case("resnet18", batch=n) for n in (1, 2, 3, 4))
    plan, kept = cases.Plan(name="test", cases=four, repeats=7), []
    found = command.run_plan(
        plan, [], 1, keep=lambda so_far: kept.append(len(so_far["cases"])), budget=25
    )
    assert [one["key"] for one in found["cases"]] == [one.key for one in four[:2]]
    assert kept == [1, 2, 2]
    whole = command.run_plan(plan, [], 1)
    assert len(whole["cases"]) == 4
