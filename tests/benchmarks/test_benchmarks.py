"""The benchmarks: what may be timed, and how it is timed."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib import import_module
from io import StringIO
from itertools import pairwise
from pathlib import Path
from shutil import which
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

import parity
import resnet_torch
from benchmarks import command
from benchmarks.measuring import gate, inputs, programs
from benchmarks.measuring.flops import flops
from benchmarks.measuring.pool import Worker, WorkerError
from benchmarks.measuring.worker import Job
from benchmarks.plans import modes
from benchmarks.plans.cases import JUDGED, PROFILES, TASKS, Case, Plan, case
from benchmarks.plans.modes import MODES, NAMES, Mode, why_not
from benchmarks.results import file
from parity.weights.twins import abstract_flax
from resnet_flax import xla
from resnet_spec import ResNetConfig, get_config
from tests.support.invented import written
from tests.support.networks import TINY, TINY_BOTTLENECK


def tiny(task: Any = "inference", **more: Any) -> Case:
    return case("tiny", task, 2, (40, 33), config=TINY, **more)


def faulty(*options: str) -> Mode:
    return replace(
        NAMES["torch-eager"],
        name=f"faulty-{options[0]}",
        runner="tests.support.faulty_runner",
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
    chosen = [NAMES[n] for n in ("torch-eager", "flax-fast", "product-torch", "timm")]
    faults = map(faulty, ("eps", "killed", "dies"))
    found = run(*chosen, *faults, cases=(tiny(),), sizes=("cifar_resnet20",))
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    file.write(found, path)
    return file.read(path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Inputs of a tiny case of each task."""
    found = {}
    for task in TASKS:
        found[task] = tmp_path_factory.mktemp(task)
        inputs.prepare(tiny(task), found[task])
    return found


def verdict(mode: Mode, task: Any, folder: Path) -> gate.Verdict:
    """What the gate says of a mode, built and called in this process."""
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
        return gate.judge(
            runner.results(), reference, mode.arithmetic, growth, inputs.depth(TINY)
        )


# The fast ones differ in their process's environment, not in their program; the one
# that is by Winograd has a test of its own.
TWINS = [m for m in MODES if m.kind == "twin" and not {"compiled", "fast"} & m.options]


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
        ("clips", "training", "statistics"),
        ("doubles", "training", "step"),
        ("decay", "training", "statistics"),
    ],
)
def test_a_mode_that_computes_another_thing_fails_the_gate(
    fault: str, task: Any, quantity: str, folders: dict[str, Path]
):
    found = verdict(faulty(fault), task, folders[task])
    assert not found.ok
    assert quantity == found.quantity


def test_modes_that_agree_are_timed_and_their_error_is_written_down(ran: Any):
    rows = rows_of(ran)
    for name in ("torch-eager", "flax-fast", "product-torch"):
        row = rows[name]
        assert row["status"] == "timed", row["reason"]
        assert 0 < row["gate"]["error"] <= row["gate"]["limit"] < 1e-4
        assert len(row["times"]) == 7
        assert row["first"] > 0
        assert row["memory"]["peak"] >= row["memory"]["running"] > 2**26
        assert row["settings"]["torch" if "torch" in name else "jax"]
    flags = rows["flax-fast"]["settings"]["jax"]["xla_flags"]
    assert flags == f"--{xla.OPTION}={xla.VALUES['inference']}"
    if sys.platform == "linux":  # XLA asks for no number of threads
        assert rows["flax-fast"]["settings"]["affinity"] == 1
    assert ran["took"] > 0
    assert ran["environment"]["versions"]["jax"] == jax.__version__


def test_a_mode_that_computes_another_thing_is_refused_and_never_timed(ran: Any):
    row = rows_of(ran)["faulty-eps"]
    assert row["status"] == "refused"
    assert row["reason"].startswith("logits ")
    assert "beyond" in row["reason"]
    assert "times" not in row


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_of_many_images_the_gate_looks_at_the_first_and_all_are_timed(task: Any):
    many = replace(tiny(task), batch=JUDGED["cpu"] + 8)
    chosen = (*map(faulty, ("tells", "eps", "overflows")), NAMES["flax-jit"])
    found = run(*chosen, cases=(many,))
    rows = rows_of(found)
    statuses = [row["status"] for row in rows.values()]
    assert statuses == ["timed", "refused", "refused", "timed"]
    assert rows["faulty-overflows"]["reason"] == "it gives values that are not finite"
    for name in ("faulty-tells", "flax-jit"):
        assert rows[name]["gate"]["batch"] == JUDGED["cpu"]
    assert rows["faulty-tells"]["flops"] == many.batch
    assert found["cases"][0]["flops"] == flops(TINY, task, many.batch, many.size)


def test_a_mode_that_dies_or_cannot_run_says_so_and_the_others_are_timed(ran: Any):
    rows = rows_of(ran)
    assert rows["faulty-killed"]["status"] == "failed"
    assert "killed" in rows["faulty-killed"]["reason"]
    assert rows["faulty-dies"]["status"] == "failed"  # while it was timed
    assert "times" not in rows["faulty-dies"]
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
    assert "cifar_resnet20" in shown


def test_converting_is_told_apart_from_syncing_and_validating(ran: Any):
    (row,) = ran["conversion"]
    assert row["bytes"] > 1e6
    assert row["memory"] > 0
    for whole, sync, valid in zip(
        row["times"], row["fsync"], row["validation"], strict=True
    ):
        assert min(sync, valid) > 0
        assert sync + valid < whole


@pytest.mark.slow
@pytest.mark.parametrize("program", programs.PROGRAMS)
def test_programs_are_made_and_their_costs_seen(
    program: str, monkeypatch: pytest.MonkeyPatch
):
    only = {program: programs.PROGRAMS[program]}
    monkeypatch.setattr(programs, "PROGRAMS", only)
    plan = Plan(name="test", cases=(), repeats=7, programs=("cifar_resnet20",))
    (row,) = command.run_plan(plan, (), threads=1)["programs"]
    assert row["program"] == program
    assert min(row["seconds"], row["memory"]) > 0
    work = flops(get_config("cifar_resnet20"), "inference", 1, (32, 32))
    assert row["flops"] == work


def test_a_run_goes_through_json_unharmed(ran: Any, tmp_path: Path):
    assert file.read(written(ran, tmp_path / "again.json")) == ran


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


@pytest.mark.slow
@pytest.mark.skipif(which("c++") is None, reason="there is no C++ compiler")
@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("inference", ("torch-compiled", "torch-compiled-fused", "flax-fused-fast")),
        ("training", ("torch-compiled",)),
    ],
)
def test_compiled_modes_pass_the_gate(task: Any, names: tuple[str, ...]):
    rows = rows_of(run(*(NAMES[name] for name in names), cases=(tiny(task),)))
    assert {n: r["reason"] for n, r in rows.items()} == dict.fromkeys(names, "")


@pytest.mark.slow
def test_the_mode_by_winograd_is_and_passes_the_gate():
    config = TINY.replace(widths=(64, 72))  # the narrow one's kernels stay as they are
    wide = case("wide", "inference", 2, (48, 40), config=config)
    names = ("flax-fused-fast", "flax-winograd-fast")
    plain, winograd = rows_of(run(*(NAMES[n] for n in names), cases=(wide,))).values()
    assert plain["status"] == winograd["status"] == "timed", winograd["reason"]
    assert winograd["gate"]["error"] != plain["gate"]["error"]


@pytest.mark.slow
def test_the_command_times_training_as_often_as_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "bench.json"
    names = ("torch-eager", "flax-fast", "product-torch")
    chosen = [word for name in names for word in ("--mode", name)]
    network = ("--network", "cifar_resnet20", "--task", "training", "--batch", "3")
    more = ("--dtype", "float32", "--repeats", "8", "--threads", "1")
    with pytest.raises(SystemExit, check=lambda ended: not ended.code):
        command.main([*network, *chosen, *more, "--out", str(out)])
    found = file.read(out)
    assert len(found["cases"]) == 1
    assert 0 < found["cases"][0]["took"] <= found["took"]
    rows = rows_of(found)
    for name in names:
        assert len(rows[name]["times"]) == 8, rows[name]["reason"]
    assert f"results: {out}" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "least"), [("resnet18", "timm"), ("resnet50", "keras-jax")]
)
def test_every_library_that_is_installed_computes_the_same(network: str, least: str):
    it = case(network, batch=2, size=(64, 64))
    peers = [
        mode
        for mode in MODES
        if mode.kind == "peer"
        and "compiled" not in mode.options
        and (network == "resnet18" or mode.networks == (network,))
    ]
    can = {mode.name for mode in peers if why_not(mode, it) is None}
    assert least in can
    rows = rows_of(run(*peers, cases=(it,)))
    wrong = {n: r["reason"] for n, r in rows.items() if r["status"] != "timed"}
    assert set(wrong) == set(rows) - can, wrong


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_names_modes_that_exist_and_do_its_task(profile: str):
    plan = PROFILES[profile]()
    assert profile != "quick" or all(it.modes for it in plan.cases)
    for it in plan.cases:
        assert all(it.task in NAMES[name].tasks for name in it.modes)


def test_names_of_modes_are_unique_and_fast_ones_bring_their_flags():
    assert len(NAMES) == len(MODES)
    for mode in MODES:
        assert ("fast" in mode.options) == mode.name.endswith("fast")


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
            window = (layer.kernel[axis + 1], layer.stride or 1)
            taps *= _within(layer.input[axis], *window, int(layer.padding or 0))
        inside += taps
    # The rest is elementwise: norms, sums, rectifiers.
    assert 1 < analysis["flops"] / (2 * 2 * inside) < 1.03
    assert flops(config, "inference", 2, (224, 224)) > 2 * 2 * inside
