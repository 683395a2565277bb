"""Several devices or processes take the path of one, in either framework."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from parity.judging.distance import deviation
from parity.judging.tolerances import AFTER_STEPS
from resnet_spec import TrainingRecipe
from resnet_training import BEST, LAST, begin, checkpoint
from resnet_training.engine import State
from resnet_training.loader import Loader
from resnet_training.metrics import METRICS, read
from resnet_training.order import check_devices
from resnet_training.pictures import Items
from resnet_training.sources import Source
from tests.support.command import Called
from tests.support.devices import DATA
from tests.support.pages import ROOT
from tests.support.runs import engine_of, loader_of, recipe, trained

PATIENCE = 400  # seconds: a process that waits for another would do so for ever

Tasks = Mapping[str, Mapping[str, Any]]
Found = Mapping[tuple[str, int], State]

PARTS = {"accumulate": 2, "mixup": 0.4, "cutmix": 1.0, "ema_decay": 0.9, "steps": 6}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "parts": PARTS,
    "groups": {"norm": "groups=2"},
    "groups, parts": {"norm": "groups=2", **PARTS},
}
RUN = {"steps": 10, "ema_decay": 0.5}


def tasks(names: Sequence[str], **options: Any) -> dict[str, dict[str, Any]]:
    return {name: {"recipe": CASES[name], "options": options} for name in names}


def train(folder: Path, backend: str, *, torch: int = 1, of: Sequence[Tasks]) -> Found:
    """Has processes train: ``torch`` by torchrun, of JAX one for each of ``of``."""
    folder.mkdir(exist_ok=True)
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    program = [*many, str(torch)] if torch > 1 else []
    module = ["-m", "tests.support.devices", backend, str(folder)]
    together([[sys.executable, *program, *module, json.dumps(one)] for one in of])
    found = {}
    for path in folder.glob("*.safetensors"):
        name, _, rank = path.stem.rpartition("-")
        found[name, int(rank)] = load_file(path)
    return found


def together(commands: Sequence[Sequence[str]]) -> None:
    """Runs processes side by side; ends all, if one fails or hangs."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = [subprocess.Popen(one, env=environment) for one in commands]
    try:
        end = time.monotonic() + PATIENCE
        for process in started:
            assert process.wait(end - time.monotonic()) == 0
    finally:
        kill(started)


def kill(started: Sequence[subprocess.Popen[Any]]) -> None:
    # torchrun's processes are no group with it, and JAX's ignore SIGTERM.
    for process in started:
        with suppress(psutil.NoSuchProcess):
            below = psutil.Process(process.pid).children(recursive=True)
            for one in (*below, process):
                with suppress(psutil.NoSuchProcess):
                    one.kill()
        process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all processes of this file write."""
    return tmp_path_factory.mktemp("devices")


@pytest.fixture(scope="module")
def alone() -> Mapping[str, State]:
    """What torch finds in one process, on one device."""
    found = {}
    for name in ("plain", "parts"):
        one = recipe(**CASES[name])
        engine = engine_of("torch", one, DATA)
        losses, arrays = trained(engine, one, DATA, 0, engine.plan.steps)
        with loader_of(engine, one, DATA) as loader:
            batches = loader.evaluation(DATA.validation)
            counts = engine.counted([engine.evaluate(batch) for batch in batches])
        said = np.array([counts.loss, counts.right, counts.images])
        found[name] = {**arrays, "losses": np.array(losses), "counts": said}
    return found


@pytest.fixture(scope="module")
def two(folder: Path) -> Found:
    """What two processes of torch find; a run is begun, and stopped after 5 steps."""
    wrong = {
        fault: {"recipe": {}, "options": {}, "fault": fault}
        for fault in ("own statistics", "sum of gradients")
    }
    run = {"run": str(folder / "run"), "stop": 5, "options": {}, "recipe": RUN}
    stopped = {"stopped": {**tasks(["groups, parts"])["groups, parts"], "stop": 4}}
    all_of = {**tasks(list(CASES)), **stopped, **wrong, "run": run}
    return train(folder / "two", "torch", torch=2, of=[all_of])


@pytest.fixture(scope="module")
def jax(folder: Path, two: Found) -> Found:
    """What one process of JAX finds on 8, 4 and 2 devices; it ends the run on 4."""
    wrong = {"recipe": CASES["groups"], "options": {"devices": 2}}
    all_of = {
        **tasks(["plain"], devices=8),
        **tasks(["parts"], devices=4),
        **tasks(["groups", "groups, parts"], devices=2),
        "sum of gradients": {**wrong, "fault": "sum of gradients"},
        "run": {"run": str(folder / "run"), "stop": None, "options": {"devices": 4}},
    }
    all_of["parts"]["lowered"] = True
    return train(folder / "jax", "flax", of=[all_of])


def apart(found: State, expected: State) -> float:
    """The largest relative difference of what both have."""
    names = [n for n in expected if n not in ("asked", "gathers")]
    assert set(names) <= found.keys()
    assert found["counts"][2] == len(DATA.validation)
    return max(deviation(found[name], expected[name]).l2 for name in names)


def elsewhere(found: State, expected: State) -> bool:
    """Whether the weights themselves have gone another way."""
    name = "layer1.0.conv1.weight"
    return deviation(found[name], expected[name]).l2 > 1e-3


@pytest.mark.parametrize("name", ["plain", "parts"])
def test_two_processes_of_torch_take_the_path_of_one(
    alone: Mapping[str, State], two: Found, name: str
):
    for rank in range(2):
        assert apart(two[name, rank], alone[name]) <= AFTER_STEPS


@pytest.mark.parametrize("name", ["plain", "parts"])
def test_many_devices_of_jax_take_the_path_of_torchs_one(
    alone: Mapping[str, State], jax: Found, name: str
):
    assert apart(jax[name, 0], alone[name]) <= AFTER_STEPS


@pytest.mark.parametrize("name", ["groups", "groups, parts"])
def test_groups_are_the_same_in_both_frameworks_and_no_global_norm(
    alone: Mapping[str, State], two: Found, jax: Found, name: str
):
    assert apart(jax[name, 0], two[name, 0]) <= AFTER_STEPS
    usual = alone["plain" if name == "groups" else "parts"]
    assert elsewhere(two[name, 0], usual)


@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_go_on_to_the_same_bits(two: Found, rank: int):
    found, expected = two["stopped", rank], two["groups, parts", rank]
    for name in expected:
        # The second one began again with the first one's running statistics.
        if rank == 0 or "running" not in name:
            assert np.array_equal(found[name], expected[name]), name


# All processes evaluate the first one's statistics, and the counts are over all.
@pytest.mark.parametrize("name", ["groups", "groups, parts"])
def test_all_processes_count_the_same(two: Found, name: str):
    first, second = (two[name, rank] for rank in range(2))
    for what in ("counts", "losses"):
        assert np.array_equal(first[what], second[what])


@pytest.mark.parametrize("fault", ["own statistics", "sum of gradients"])
def test_what_two_processes_do_wrong_is_seen(
    alone: Mapping[str, State], two: Found, fault: str
):
    assert elsewhere(two[fault, 0], alone["plain"])


def test_a_sum_of_gradients_is_seen_in_jax(two: Found, jax: Found):
    assert elsewhere(jax["sum of gradients", 0], two["groups", 0])


def test_a_step_brings_no_images_together(jax: Found):
    assert jax["parts", 0]["gathers"] == 0


def test_all_processes_hear_that_one_asks(two: Found, jax: Found):
    for (name, _), found in two.items():
        assert found["asked"].all(), name
    assert jax["plain", 0]["asked"].all()


def test_a_run_changes_its_framework_and_its_number_of_devices(
    folder: Path, jax: Found, tmp_path: Path
):
    begin(tmp_path, DATA, recipe(**RUN), "torch").to()
    (found, at), (expected, _) = (
        checkpoint.read(path / LAST) for path in (folder / "run", tmp_path)
    )
    assert at.step == 10
    assert found.keys() == expected.keys()
    assert max(deviation(found[n], expected[n]).l2 for n in expected) <= AFTER_STEPS
    ours, theirs = (read(path) for path in (folder / "run", tmp_path))
    for one, other in zip(ours, theirs, strict=True):
        assert all(abs(one[name] - other[name]) <= AFTER_STEPS for name in other), one


def test_the_first_process_alone_writes(folder: Path, jax: Found):
    # The others failed if they tried to: see tests/support/devices.py.
    names = {path.name for path in (folder / "run").iterdir()}
    usual = {LAST, BEST, METRICS, "recipe.json", "class_indices.json", "curves.png"}
    assert names == {*usual, "run.html"}


class Counted(Source):
    """Images whose reads are counted."""

    def __init__(self) -> None:
        self.labels, self.classes = DATA.train.labels, DATA.train.classes
        self.asked: list[int] = []

    def items(self, indices: np.ndarray) -> Items:
        self.asked += indices.tolist()
        return DATA.train.items(indices)

    def name(self, index: int) -> str:
        return DATA.train.name(index)


@pytest.mark.parametrize("fields", [{}, {"accumulate": 2}, {"mixup": 0.4}])
def test_each_process_reads_its_share_of_the_images_only(fields: dict[str, Any]):
    one, reads = recipe(batch=16, **fields), []
    for rank in range(4):
        source = Counted()
        with Loader(source, one, rank=rank, ranks=4) as loader:
            list(loader.batches(0, 5))
        reads.append(source.asked)
    # Mixing takes the image before: of a process's first one, that is another's.
    more = 5 if one.mixup else 0
    assert [len(asked) for asked in reads] == [5 * 16 // 4 + more] * 4
    with Loader(whole := Counted(), one) as loader:
        list(loader.batches(0, 5))
    if not more:
        assert sorted(image for asked in reads for image in asked) == sorted(
            whole.asked
        )


@pytest.mark.parametrize(
    ("fields", "devices", "said"),
    [
        ({"norm": "groups=2"}, 1, "norm 'groups=2', for 2 devices, and this run has 1"),
        ({"norm": "groups=2"}, 1, "torchrun --nproc-per-node 2"),
        ({"batch": 7}, 4096, "it must be a multiple of 4096"),
        ({"drop_path": 0.1}, 2, "use one, or --drop-path 0"),
    ],
)
def test_devices_that_do_not_fit_a_recipe_are_refused(
    fields: dict[str, Any], devices: int, said: str
):
    with pytest.raises(ValueError, match=r"norm|batch|drop_path") as caught:
        check_devices(recipe(**fields), devices)
    assert said in str(caught.value)


def test_a_number_of_processes_is_taken_from_torchruns_environment_only(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    engine = engine_of("torch", recipe(), DATA)
    assert (engine.rank, engine.ranks, engine.device) == (0, 1, "cpu")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--backend", "torch", "--devices", "2"], "torchrun --nproc-per-node"),
        (["--backend", "flax", "--processes", "2"], "--coordinator HOST:PORT"),
        (["--backend", "flax", "--coordinator", "auto", "--process", "0"], "alone"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    call: Called, tmp_path: Path, options: list[str], said: str
):
    path = tmp_path / "images.npz"
    source: Any = DATA.train
    np.savez(path, images=source.images, labels=source.labels)
    small = ["--val-split", "0.2", "--model", "cifar_resnet20", "--size", "12"]
    small += ["--batch", "8"]
    out = ["--out", str(tmp_path / "run")]
    assert said in call.error("train", path, *small, *out, *options)


@pytest.mark.slow
def test_four_processes_of_torch_take_the_path_of_one(
    alone: Mapping[str, State], folder: Path
):
    four = tasks(["plain", "parts"])
    found = train(folder / "four", "torch", torch=4, of=[four])
    assert len(found) == 8
    for (name, _), state in found.items():
        assert apart(state, alone[name]) <= AFTER_STEPS


def address() -> str:
    """A port of this machine that nobody has."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_two_processes_of_jax_take_the_path_of_torchs_one(
    alone: Mapping[str, State], folder: Path, devices: int
):
    where = address()
    both = [
        tasks(
            ["plain", "parts"],
            devices=devices,
            coordinator=where,
            processes=2,
            process=index,
        )
        for index in range(2)
    ]
    found = train(folder / f"processes{devices}", "flax", of=both)
    assert len(found) == 4
    for (name, _), state in found.items():
        assert apart(state, alone[name]) <= AFTER_STEPS
        # Said two calls later, so that nobody waits for the step.
        assert state["asked"].tolist() == [False, False, True, True]


@pytest.mark.slow
def test_two_processes_of_jax_in_groups_are_torchs(two: Found, folder: Path):
    where = address()
    both = [
        tasks(["groups"], devices=1, coordinator=where, processes=2, process=index)
        for index in range(2)
    ]
    found = train(folder / "groups", "flax", of=both)
    assert apart(found["groups", 0], two["groups", 0]) <= AFTER_STEPS
    assert np.array_equal(found["groups", 0]["counts"], found["groups", 1]["counts"])


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "flax"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_process_stops_all_at_one_step(
    backend: str, number: int, tmp_path: Path
):
    path, run = tmp_path / "images.npz", tmp_path / "run"
    source: Any = DATA.train
    np.savez(path, images=source.images, labels=source.labels)
    long: TrainingRecipe = replace(recipe(), steps=100_000, evaluate_every=1e6)
    (tmp_path / "long.json").write_text(long.to_json())
    command = [str(Path(sys.executable).with_name("resnet-twins")), "train", str(path)]
    command += ["--recipe", str(tmp_path / "long.json"), "--val-split", "0.2"]
    command += ["--out", str(run), "--backend", backend]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if backend == "torch":
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        commands = [[*torchrun, "--nproc-per-node", "2", "--no-python", *command]]
    else:
        many = ["--coordinator", address(), "--processes", "2", "--process"]
        commands = [[*command, *many, str(index)] for index in range(2)]
    started = [subprocess.Popen(one, env=environment) for one in commands]
    try:
        end = time.monotonic() + PATIENCE
        while len(read(run) if run.exists() else []) < 20:
            assert time.monotonic() < end
            assert all(process.poll() is None for process in started)
            time.sleep(0.2)
        if backend == "torch":  # the second process, as torchrun starts them
            below = psutil.Process(started[0].pid).children()
            psutil.Process(max(one.pid for one in below)).send_signal(number)
        else:
            started[1].send_signal(number)
        for process in started:
            process.wait(60)
    finally:
        kill(started)
    _, at = checkpoint.read(run / LAST)
    assert at.step == read(run)[-1]["step"] >= 20
