"""The benchmarks: what may be timed, how it is timed, and what is made of the times."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import matplotlib.image
import numpy as np
import pytest
import torch
from flax import nnx
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

import parity
import resnet_torch
from benchmarks import (
    command,
    comparison,
    gate,
    growth,
    inputs,
    modes,
    plots,
    readme,
    results,
)
from benchmarks import statistics as numbers
from benchmarks.cases import TASKS, Case, Plan, case, quick
from benchmarks.modes import MODES, NAMES, Mode, why_not
from benchmarks.pool import Worker, WorkerError
from benchmarks.summary import ceilings_of, figures
from benchmarks.work import flops
from benchmarks.worker import Job, _faster_xla
from parity.twins import abstract_flax
from resnet_cli.main import main as resnet_twins
from resnet_spec import ResNetConfig, get_config
from tests.networks import TINY, TINY_BOTTLENECK

ROOT = Path(__file__).parent.parent


def tiny(task: Any = "inference", **more: Any) -> Case:
    return case("tiny", task, 2, (40, 33), config=TINY, **more)


def faulty(*options: str) -> Mode:
    return replace(
        NAMES["torch-eager"],
        name=f"faulty-{options[0]}",
        runner="tests.faulty_runner",
        options=frozenset(options),
    )


def run(*chosen: Mode, cases: tuple[Case, ...], sizes: tuple[str, ...] = ()) -> Any:
    plan = Plan(name="test", cases=cases, repeats=7, warm_up=1, sizes=sizes)
    # One thread: with more, these would wait for whatever else the machine does.
    return command.run_plan(plan, chosen, threads=1)


def rows_of(found: Any, index: int = 0) -> dict[str, Any]:
    return {row["mode"]: row for row in found["cases"][index]["rows"]}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One real run: both twins, a ceiling, a peer without the network, and faults."""
    chosen = [NAMES[n] for n in ("torch-eager", "flax-jit", "product-torch", "timm")]
    faults = map(faulty, ("eps", "killed"))
    found = run(*chosen, *faults, cases=(tiny(),), sizes=("resnet18",))
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    results.write(found, path)
    return results.read(path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Inputs of a tiny case of each task."""
    found = {}
    for task in TASKS:
        found[task] = tmp_path_factory.mktemp(task)
        inputs.prepare(tiny(task), found[task])
    return found


def verdict(mode: Mode, task: Any, folder: Path) -> gate.Verdict:
    """What the gate says of a mode, built and called twice in this process."""
    threads = torch.get_num_threads()
    try:
        job = Job(mode=mode, case=tiny(task), folder=folder, threads=1)
        path = (
            mode.runner if "." in mode.runner else f"benchmarks.runners.{mode.runner}"
        )
        runner = import_module(path).build(job)
        for _ in range(inputs.STEPS):
            runner.call()
    finally:
        torch.set_num_threads(threads)
    growth = json.loads((folder / inputs.FACTS).read_text())["growth"]
    with np.load(folder / inputs.REFERENCE) as reference:
        return gate.judge(runner.results(), reference, mode.arithmetic, growth)


TWINS = [m for m in MODES if m.kind == "twin" and "compiled" not in m.options]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("mode", TWINS, ids=lambda mode: mode.name)
def test_every_mode_of_both_twins_passes_the_gate(
    mode: Mode, task: Any, folders: dict[str, Path]
):
    if reason := why_not(mode, tiny(task)):
        pytest.skip(reason)
    found = verdict(mode, task, folders[task])
    assert found.ok, found
    # Far enough from nothing that the limit could fail it.
    assert found.error > 1e-9


@pytest.mark.parametrize(
    ("fault", "task", "quantity"),
    [
        ("eps", "inference", "logits"),
        ("relu6", "inference", "logits"),
        ("nan", "inference", "logits"),
        ("relu6", "training", "step"),
        ("decay", "training", "statistics"),
    ],
)
def test_a_mode_that_computes_another_thing_fails_the_gate(
    fault: str, task: Any, quantity: str, folders: dict[str, Path]
):
    found = verdict(faulty(fault), task, folders[task])
    assert not found.ok
    assert quantity in (found.quantity, "step")


def test_modes_that_agree_are_timed_and_their_error_is_written_down(ran: Any):
    rows = rows_of(ran)
    for name in ("torch-eager", "flax-jit", "product-torch"):
        row = rows[name]
        assert row["status"] == "timed", row["reason"]
        assert 0 < row["gate"]["error"] <= row["gate"]["limit"] < 1e-4
        assert len(row["times"]) == 7
        assert row["first"] > 0
        assert row["memory"]["peak"] >= row["memory"]["running"] > 2**26
        assert row["settings"]["torch" if "torch" in name else "jax"]
    assert ran["environment"]["versions"]["jax"] == jax.__version__


def test_a_mode_that_computes_another_thing_is_refused_and_never_timed(ran: Any):
    row = rows_of(ran)["faulty-eps"]
    assert row["status"] == "refused"
    assert row["reason"].startswith("logits ")
    assert "beyond" in row["reason"]
    assert "times" not in row


def test_a_mode_that_dies_or_cannot_run_says_so_and_the_others_are_timed(ran: Any):
    rows = rows_of(ran)
    assert rows["faulty-killed"]["status"] == "failed"
    assert "killed" in rows["faulty-killed"]["reason"]
    assert rows["timm"]["status"] == "skipped"
    assert rows["timm"]["reason"] == "it has no tiny here"


def test_an_error_in_a_worker_comes_back_in_one_line(folders: dict[str, Path]):
    folder = folders["inference"]
    worker = Worker(Job(mode=faulty("raises"), case=tiny(), folder=folder, threads=1))
    worker.ready()
    with pytest.raises(WorkerError, match=r"^RuntimeError: the fault of this mode$"):
        worker.build()
    worker.close()


def test_repetitions_of_all_modes_alternate_and_never_overlap(ran: Any):
    rows = [row for row in ran["cases"][0]["rows"] if row["status"] == "timed"]
    turns = sorted(
        (start, start + seconds, row["mode"])
        for row in rows
        for start, seconds in zip(row["starts"], row["times"], strict=True)
    )
    assert [mode for *_, mode in turns] == [row["mode"] for row in rows] * 7
    for (_, end, _), (start, *_) in pairwise(turns):
        assert end <= start + 1e-6


def test_the_tables_show_every_row_or_its_reason(ran: Any):
    console = Console(width=200, record=True, file=StringIO())
    command.show(ran, console)
    shown = console.export_text()
    for row in ran["cases"][0]["rows"]:
        if row["kind"] != "ceiling":
            assert row["mode"] in shown
        assert row["status"] == "timed" or row["reason"].split("\n")[0][:20] in shown
    assert "resnet18" in shown


def test_converting_is_told_apart_from_syncing_and_validating(ran: Any):
    (row,) = ran["conversion"]
    assert row["bytes"] > 40e6
    assert row["memory"] > 0
    for whole, sync, valid in zip(
        row["times"], row["fsync"], row["validation"], strict=True
    ):
        assert min(sync, valid) > 0
        assert sync + valid < whole


def test_a_run_goes_through_json_unharmed(ran: Any, tmp_path: Path):
    assert results.read(_written(ran, tmp_path / "again.json")) == ran


def _written(found: Any, path: Path) -> Path:
    results.write(found, path)
    return path


# What is made of the times --------------------------------------------------------


def invented(*, factor: float = 1.0, seed: int = 0, slope: float = 1.0) -> Any:
    """A run as no machine made it: resnet50 in three modes, and two sweeps."""
    rng = np.random.default_rng(seed)

    def row(mode: str, seconds: float, memory: float = 2**28, **more: Any) -> Any:
        it = NAMES[mode]
        return {
            "mode": mode,
            "what": it.what,
            "kind": it.kind,
            "framework": it.framework,
            "arithmetic": it.arithmetic,
            "environment": {},
            "status": "timed",
            "reason": "",
            "first": seconds + 3.0,
            "times": list(seconds * rng.normal(1, 0.02, 15)),
            "memory": {"start": 2**27, "peak": 2**27 + memory, "running": 0},
            "flops": None,
            **more,
        }

    def one(network: str, batch: int, side: int, sweep: str, rows: list) -> Any:
        it = case(network, "inference", batch, (side, side), sweep=sweep)
        work = flops(it.spec, "inference", batch, it.size)
        return {**it.to_dict(), "flops": work, "growth": 7.0, "rows": rows}

    product = row("product-torch", 0.04, flops=2 * 2048**3)
    refused = row("flax-eager", 1.0) | {"status": "refused", "reason": "logits 1e-1"}
    del refused["times"]
    cases = [
        one(
            "resnet50",
            batch,
            224,
            "",
            [
                row("torch-channels-last", 0.025 * batch),
                row("flax-jit", 0.04 * batch * factor),
                row("torchvision", 0.03 * batch),
                row("torch-bf16", 0.02 * batch, arithmetic="bfloat16"),
                product,
                refused,
            ],
        )
        for batch in (1, 8)
    ]
    for batch in (1, 2, 4, 8, 16, 32):
        cost, memory = 0.01 * batch**slope, 2**22 * batch
        rows = [row("torch-channels-last", cost, memory), row("flax-jit", cost * 1.3)]
        cases.append(one("resnet18", batch, 224, "batch", rows))
    for depth in (18, 34, 50, 101, 152):
        work = flops(get_config(f"resnet{depth}"), "inference", 1, (224, 224))
        rows = [row("torch-channels-last", 1e-11 * work)]
        cases.append(one(f"resnet{depth}", 1, 224, "depth", rows))
    for side in (128, 192, 256, 320):
        rows = [row("torch-channels-last", 1e-6 * side**2)]
        cases.append(one("resnet18", 4, side, "size", rows))
    plan = Plan(name="test", cases=(), repeats=15)
    found = {
        "format": results.FORMAT,
        "environment": results.environment(plan, 2),
        "cases": cases,
        "conversion": [],
    }
    return json.loads(json.dumps(found))


def test_shares_and_ratios_are_those_of_the_times():
    found = invented()
    case = found["cases"][1]
    by_mode = {row["mode"]: it for row, it in figures(case)}
    rate = 2 * 2048**3 / 0.04
    assert ceilings_of(case)["float32"] == pytest.approx(rate, rel=0.02)
    flax = by_mode["flax-jit"]
    assert flax.speed.value == pytest.approx(25 / 40, rel=0.02)
    assert flax.speed.low < flax.speed.value < flax.speed.high
    assert flax.share == pytest.approx(case["flops"] / 0.32 / rate, rel=0.05)
    assert flax.rate == pytest.approx(8 / 0.32, rel=0.02)
    assert flax.compiling == pytest.approx(3.0, rel=0.02)
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


def test_a_mode_that_is_refused_now_is_a_change():
    old, new = invented(), invented()
    new["cases"][0]["rows"][1].update(status="refused", reason="logits 1e-1")
    shown = [it for it in comparison.compare(old, new) if it.verdict != "same"]
    assert [it.verdict for it in shown] == ["timed before, refused now"]
    new["environment"]["versions"]["torch"] = "3.0"
    told = comparison.other_settings(old, new)
    assert [line for line in told if line.startswith("torch: ")]


def test_what_grows_faster_than_the_work_is_found():
    found = {(it.sweep, it.mode): it for it in growth.fit(invented())}
    assert set(found) == {
        ("batch", "flax-jit"),
        ("batch", "torch-channels-last"),
        ("depth", "torch-channels-last"),
        ("size", "torch-channels-last"),
    }
    batch = found["batch", "torch-channels-last"]
    assert batch.time_slope.value == pytest.approx(1, abs=0.05)
    assert batch.memory_slope.value == pytest.approx(1, abs=0.01)
    assert batch.work_slope == pytest.approx(1)
    assert found["size", "torch-channels-last"].work_slope == pytest.approx(2, abs=0.1)
    assert all(it.ok for it in found.values())
    worse = {(it.sweep, it.mode): it.ok for it in growth.fit(invented(slope=1.4))}
    assert not worse["batch", "torch-channels-last"]


def test_the_interval_of_a_median_holds_it_as_often_as_it_says():
    rng = np.random.default_rng(0)
    draws = [numbers.median(list(rng.lognormal(size=11))) for _ in range(400)]
    inside = np.mean([it.low <= 1 <= it.high for it in draws])
    assert 0.93 <= inside <= 1


def test_the_readmes_part_and_picture_come_from_the_json(tmp_path: Path):
    json_file = _written(invented(), tmp_path / "bench.json")
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


# What can run where ---------------------------------------------------------------


def test_what_cannot_run_here_has_its_reason(monkeypatch: pytest.MonkeyPatch):
    fifty = case("resnet50")
    peers = {"jax_resnet", "flaxmodels", "onnxruntime", "openvino"}
    monkeypatch.setattr(modes, "find_spec", lambda name: None if name in peers else sys)
    modes._missing.cache_clear()
    for name in ("jax-resnet", "flaxmodels-fast", "onnxruntime", "openvino"):
        reason = why_not(NAMES[name], fifty)
        assert reason is not None
        assert "is not installed" in reason
        assert "resnet-twins[bench-peers]" in reason
    modes._missing.cache_clear()


@pytest.mark.parametrize("task", ["inference", "training"])
def test_accelerator_modes_skip_without_a_device(task: Any):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    for batch in (64, 512):
        it = case("resnet50", task, batch, device="cuda")
        for mode in MODES:
            assert why_not(mode, it) is not None, mode.name
    compiled = case("resnet50", task, 64, device="cuda")
    names = ("torch-compiled-tf32", "torchvision-compiled-bf16", "torch-compiled")
    for name in names:
        assert why_not(NAMES[name], compiled) == "torch sees no CUDA device"
    assert why_not(NAMES["flax-tf32"], compiled) == "JAX sees no CUDA device"


def test_the_quick_profile_names_modes_that_exist():
    for names in quick().only.values():
        assert set(names) <= set(NAMES)


def test_names_of_modes_are_unique_and_fast_ones_bring_their_flags():
    assert len(NAMES) == len(MODES)
    for mode in MODES:
        assert ("fast" in mode.options) == mode.name.endswith("fast")
    assert "LIBRARY_FUSION_TYPE_DOT" in _faster_xla()


@pytest.mark.parametrize(
    "config", [TINY, TINY_BOTTLENECK, get_config("resnext50_32x4d")]
)
def test_the_work_is_what_torchs_counter_counts(config: ResNetConfig):
    size = (64, 48)
    with torch.device("meta"):
        model = resnet_torch.create_model(config)
        x = torch.ones(2, 3, *size)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(x)
    assert forward.get_total_flops() == flops(config, "inference", 2, size)
    if config.groups > 1:  # backwards it counts the weights' gradient as if it had one
        return
    with FlopCounterMode(display=False) as both:
        model(x).sum().backward()
    assert both.get_total_flops() == flops(config, "training", 2, size)


def _within(size: int, kernel: int, stride: int, padding: int) -> int:
    """Taps of a window, over all its positions along one axis, that are no padding."""
    starts = range(-padding, size + 2 * padding - kernel + 1 - padding, stride)
    return sum(0 <= start + i < size for start in starts for i in range(kernel))


def test_the_work_without_padding_is_what_xla_counts():
    config = get_config("resnet18")
    graph, state = nnx.split(abstract_flax(config))
    x = jax.ShapeDtypeStruct((2, 224, 224, 3), np.float32)
    call: Any = lambda state, x: nnx.merge(graph, state)(x)  # noqa: E731
    analysis: Any = jax.jit(call).lower(state, x).cost_analysis()
    inside = 0
    for layer in parity.layers(abstract_flax(config), (3, 224, 224)):
        if layer.kernel is None:
            continue
        taps = layer.kernel[0] * layer.kernel[1]
        for axis in (1, 2) if len(layer.kernel) == 4 else ():
            window = (layer.kernel[axis + 1], layer.stride or 1, layer.padding or 0)
            taps *= _within(layer.input[axis], *window)
        inside += taps
    # The rest is elementwise: norms, sums, rectifiers.
    assert 1 < analysis["flops"] / (2 * 2 * inside) < 1.03
    assert flops(config, "inference", 2, (224, 224)) > 2 * 2 * inside


# The command ----------------------------------------------------------------------


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
    other.write_text('{"format": 1, "cases": [{}]}')
    for arguments, part in (
        (["--profile", "slow"], "--profile is 'slow'; it must be quick, full or"),
        (["--mode", "tflow"], "no mode named 'tflow'; there are twins, peers"),
        (["--network", "resnet5"], "no network named 'resnet5'"),
        (["--batch", "2"], "--task, --batch and --size go with --network"),
        (["--network", "resnet18", "--batch", "0"], "batch is 0"),
        (["--network", "resnet18", "--task", "training"], "at least 2 images"),
        (["--network", "resnet18", "--size", "12"], "HEIGHTxWIDTH"),
        (["--device", "tpu"], "--device is 'tpu'; it must be cpu or cuda"),
        (["--dtype", "int8"], "--dtype is 'int8'"),
        (["--compare", "nowhere.json"], "nowhere.json: cannot be read"),
        (["--read", str(other)], "is no file of results"),
    ):
        assert part in _fails(capsys, *arguments)


def test_a_file_of_results_is_shown_compared_and_drawn_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    old = _written(invented(), tmp_path / "old.json")
    new = _written(invented(factor=1.1, seed=3), tmp_path / "new.json")
    picture = tmp_path / "new.png"
    arguments = ["--read", str(new), "--compare", str(old), "--plot", str(picture)]
    with pytest.raises(SystemExit) as stopped:
        resnet_twins(["bench", *arguments])  # as from a checkout
    assert not stopped.value.code
    out = capsys.readouterr().out
    assert "slower" in out
    assert "growth" in out
    assert picture.stat().st_size > 10_000


def test_outside_a_checkout_the_command_says_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    import resnet_cli.main

    elsewhere = str(tmp_path / "resnet_cli" / "main.py")
    monkeypatch.setattr(resnet_cli.main, "__file__", elsewhere)
    with pytest.raises(SystemExit) as stopped:
        resnet_twins(["bench", "--profile", "quick"])
    assert stopped.value.code == 2
    assert "needs a checkout" in capsys.readouterr().err


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
