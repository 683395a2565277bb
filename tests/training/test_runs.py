"""A run in a folder: stopped, killed, gone on with, read by others, refused."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file

import parity
from parity.errors import CheckpointError, InputError
from parity.judging.distance import deviation
from parity.judging.tolerances import AFTER_STEPS
from parity.weights.digest import differing_bits, digest
from resnet_cli.training import _bar
from resnet_spec import TrainingRecipe
from resnet_training import BEST, LAST, Options, Seen, begin, resume
from resnet_training.engine import Backend
from resnet_training.initial import initial_state
from resnet_training.metrics import METRICS, read
from resnet_training.sources import Data
from tests.support.command import Called
from tests.support.runs import drawn, recipe

DATA = drawn()
# 30 images, batches of 8: an evaluation every 3.75 steps, and steps between them.
RECIPE = recipe(steps=10, ema_decay=0.5)
FILES = (LAST, BEST, METRICS, "recipe.json", "class_indices.json")


def whole(folder: Path, backend: Backend = "torch", **options: Any) -> Path:
    """A run that is never stopped."""
    begin(folder, DATA, RECIPE, backend, options=Options(engine={}, **options)).to()
    return folder


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in torch; not to be changed."""
    return whole(tmp_path_factory.mktemp("runs") / "done")


def same_files(found: Path, expected: Path) -> None:
    for name in FILES:
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name


@pytest.mark.parametrize("backend", ["torch", "flax"])
@pytest.mark.parametrize("stops", [(4,), (1, 5, 9)])
def test_a_run_that_was_stopped_has_the_files_of_one_that_was_not(
    backend: Backend, stops: tuple[int, ...], done: Path, tmp_path: Path
):
    expected = done if backend == "torch" else whole(tmp_path / "whole", backend)
    folder = tmp_path / "run"
    outcome = begin(folder, DATA, RECIPE, backend).to(stops[0])
    assert (outcome.step, outcome.done) == (stops[0], False)
    for stop in (*stops[1:], None):
        outcome = resume(folder, DATA, backend).to(stop)
    assert outcome.done
    same_files(folder, expected)


def test_a_run_goes_on_in_the_other_framework(done: Path, tmp_path: Path):
    folder = tmp_path / "run"
    begin(folder, DATA, RECIPE, "flax").to(4)
    resume(folder, DATA, "torch").to(7)
    resume(folder, DATA, "flax").to()
    for name in (BEST, LAST):
        found, expected = (load_file(f / name) for f in (folder, done))
        assert list(found) == list(expected)
        for one, array in expected.items():
            assert deviation(found[one], array).l2 <= AFTER_STEPS, one
    ours, theirs = (read(f) for f in (folder, done))
    assert [line.keys() for line in ours] == [line.keys() for line in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert all(abs(one[n] - other[n]) <= AFTER_STEPS * abs(other[n]) for n in one)


def test_a_line_ahead_of_the_checkpoint_and_half_a_line_are_cut(
    done: Path, tmp_path: Path
):
    folder = tmp_path / "run"
    begin(folder, DATA, RECIPE).to(6)
    with open(folder / METRICS, "a") as file:
        file.write('{"step": 7, "epoch": 1.9, "loss": 99.0}\n{"step": 8, "epo')
    resume(folder, DATA).to()
    same_files(folder, done)


_KILLED = """
import sys
from tests.training.test_runs import DATA, RECIPE
from resnet_training import LAST, Options, begin, resume
from pathlib import Path
folder = Path(sys.argv[1])
options = Options(engine={}, save_every=1)
go = resume(folder, DATA, options=options) if (folder / LAST).exists() else begin(
    folder, DATA, RECIPE, options=options)
print("begun", flush=True)
go.to()
"""


@pytest.mark.parametrize("times", [1, 20])
def test_a_run_that_is_killed_at_any_moment_ends_the_same(times: int, tmp_path: Path):
    expected = tmp_path / "whole"
    one = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", _KILLED, str(expected)], check=True, env=one)
    folder, rng, killed = tmp_path / "run", random.Random(times), 0
    for attempt in range(10 * times):
        process = subprocess.Popen(
            [sys.executable, "-c", _KILLED, str(folder)],
            stdout=subprocess.PIPE,
            env=one,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        if killed < times and attempt < 10 * times - 1:
            time.sleep(rng.uniform(0, 0.5))
            killed += process.poll() is None
            process.kill()
        process.communicate(timeout=120)
        if process.returncode == 0:
            if killed == times:
                break
            shutil.rmtree(folder)  # it was quicker than the kill
    assert killed == times
    same_files(folder, expected)
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith(".")) == []


COMMAND = (
    *("--recipe", "cifar-paper", "--batch", "4", "--size", "16"),
    *("--evaluation-resize", "16", "--set", "layers=[1,1,1]"),
    *("--set", "widths=[6,8,12]", "--steps", "14", "--lr", "0.02"),
)


def test_the_command_trains_predicts_and_evaluates(
    call: Called, folder_of_images: Path, tmp_path: Path
):
    run = tmp_path / "run"
    data = folder_of_images
    out, _ = call("train", data, *COMMAND, "--out", run)
    assert "best validation accuracy 100.00%" in out
    assert json.loads((run / "class_indices.json").read_text()) == {
        "0": "night sky",
        "1": "wüste",
    }
    assert {p.name for p in run.iterdir()} >= {"curves.png", "run.html"}
    out, _ = call("evaluate", data, "--weights", run / BEST, "--json")
    rows = json.loads(out)
    assert [row["right"] for row in rows] == [10, 10]
    last = [line for line in read(run) if "right" in line][-1]
    assert last["right"] == 10
    image = folder_of_images / "val" / "wüste" / "0.jpg"
    out, _ = call("predict", image, "--weights", run / BEST, "--top", 2, "--json")
    tops = json.loads(out)["top"]
    for framework in ("torch", "flax"):
        assert [g["class"] for g in tops[framework]] == ["wüste", "night sky"]


_COMMAND = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from resnet_cli.main import main; main()"
)
"""Where the tests run in the background, programs start deaf to Ctrl-C."""


def test_the_command_goes_on_in_the_other_framework_and_back(
    call: Called, folder_of_images: Path, tmp_path: Path
):
    run = tmp_path / "run"
    small = (*COMMAND, "--steps", 6, "--dtype", "float64")
    call("train", folder_of_images, *small, "--backend", "flax", "--out", run,
         "--stop-at", 2)  # fmt: skip
    goes_on = ("train", folder_of_images, "--resume", run)
    _, said = call(*goes_on, "--backend", "torch", "--stop-at", 4)
    assert "from step 2" in said
    assert "saved after step 4" in said
    out, _ = call(*goes_on, "--backend", "flax")
    assert "done: 6 steps" in out
    recipe = TrainingRecipe.from_json((run / "recipe.json").read_text())
    begin(tmp_path / "whole", _opened(folder_of_images), recipe).to()
    found, expected = (load_file(f / LAST) for f in (run, tmp_path / "whole"))
    for name, array in expected.items():
        assert deviation(found[name], array).l2 <= AFTER_STEPS, name


@pytest.mark.parametrize("skip", [False, True])
def test_a_broken_image_stops_a_run_or_is_counted(
    skip: bool, call: Called, folder_of_images: Path, tmp_path: Path
):
    data, run = tmp_path / "images", tmp_path / "run"
    shutil.copytree(folder_of_images, data)
    broken = [data / "train" / "wüste" / "3.jpg", data / "val" / "night sky" / "1.jpg"]
    for path in broken:
        path.write_bytes(path.read_bytes()[:40])
    if not skip:
        _, said = call("train", data, *COMMAND, "--out", run, code=2)
        *_, said = said.splitlines()
        assert str(broken[0]) in said
        assert "--skip-broken" in said
        return
    small = (*COMMAND, "--skip-broken")
    _, said = call("train", data, *small, "--out", run, "--stop-at", 9)
    assert "could not be read" in said
    assert str(broken[0]) in said
    call("train", data, "--resume", run, "--skip-broken")
    call("train", data, *small, "--out", tmp_path / "whole")
    same_files(run, tmp_path / "whole")
    last = [line for line in read(run) if "right" in line][-1]
    assert last["images"] == 9


def test_the_bar_says_how_a_run_goes(monkeypatch: pytest.MonkeyPatch):
    shown = StringIO()
    terminal = partial(Console, file=shown, force_terminal=True, width=120)
    monkeypatch.setattr(
        "resnet_cli.training.Console", lambda stderr: terminal(legacy_windows=False)
    )
    with _bar(8, shown=True) as watch:
        watch(Seen(3, 8, 1.25, None, 40.0, 2.0))
        watch(Seen(4, 8, 0.75, 0.625, 41.0, 2.0))
    said = shown.getvalue()
    assert "loss 0.7500, accuracy 62.50%, 41 images/s" in said
    assert "4/8" in said
    assert re.search(r"\d:\d\d:\d\d|-:--:--", said)  # the time that is left


def test_events_for_tensorboard_need_no_framework(tmp_path: Path):
    program = (
        "import sys; from pathlib import Path\n"
        "sys.modules |= dict.fromkeys(('torch', 'jax', 'flax', 'tensorflow'))\n"
        "from resnet_training.metrics import Metrics\n"
        "metrics = Metrics(Path(sys.argv[1]), 0, tensorboard=True)\n"
        "metrics.write([{'step': 1, 'loss': 0.5}]); metrics.close()"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in events.read_bytes()


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
    ],
)
def test_asked_to_end_it_saves_and_says_how_to_go_on(
    number: int, code: int, folder_of_images: Path, tmp_path: Path
):
    run = tmp_path / "run"
    arguments = ["train", str(folder_of_images), *COMMAND, "--steps", "4000"]
    process = subprocess.Popen(
        [sys.executable, "-c", _COMMAND, *arguments, "--out", str(run)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    for _ in range(600):
        if len(read(run)) > 20:
            break
        time.sleep(0.1)
    process.send_signal(number)
    _, said = process.communicate(timeout=600)
    assert process.returncode == code
    assert f"--resume {run}" in said
    steps = [line["step"] for line in read(run)]
    at = resume(run, _opened(folder_of_images)).at
    assert at.step == steps[-1]
    assert f"saved after step {at.step}" in said


def _opened(path: Path) -> Data:
    from resnet_training import open_data

    return open_data(path)


def refused(error: type[Exception], call: Any) -> str:
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_run_from_a_path_goes_on_by_the_line_that_it_prints(
    call: Called, folder_of_images: Path, tmp_path: Path
):
    data, run = folder_of_images / "train", tmp_path / "a run"
    beside = ("--workers", 1, "--save-every", 5, "--keep", 2, "--skip-broken")
    beside += ("--tensorboard", "--backend", "torch", "--device", "cpu")
    named = ("--val-split", 0.25, "--out", run)
    _, said = call("train", data, *COMMAND, *beside, *named, "--stop-at", 4)
    words = shlex.split(said.partition("to go on: ")[2])
    asked = ["resnet-twins", "train", *map(str, (data, "--resume", run, *beside))]
    assert sorted(words) == sorted(asked)
    refusal = call.error("train", data, "--resume", run, "--val-split", 0.5)
    assert "begun on other images" in refusal
    other = call.error("train", data, "--resume", run, "--lr", 0.5)
    assert "another recipe: learning_rate is 0.5, was 0.02" in other
    out, said = call(*words[1:])
    assert "done: 14 steps" in out
    assert (
        "18 images of 2 classes, 6 to validate on; 14 steps of 4, from step 4" in said
    )
    asked = TrainingRecipe.from_json((run / "recipe.json").read_text())
    begin(tmp_path / "b", data, asked, "torch", val_split=0.25).to()
    same_files(tmp_path / "b", run)


def test_a_run_knows_the_weights_that_it_began_with(done: Path, tmp_path: Path):
    other = recipe(steps=4, seed=1)
    run = begin(tmp_path / "a", DATA, other, weights=done / BEST)
    asked = parity.cast(parity.load(done / BEST), "float32")
    found = run.plan.recipe.weights
    assert found is not None
    assert found == digest(asked)
    began = parity.cast(run.engine.network(), "float32")  # the run is in float64
    assert not differing_bits(began, asked)
    assert run.notes == ("taken from float64 to float32",)
    run.to()
    assert resume(tmp_path / "a", DATA).at.recipe.weights == found
    # The recipe names them now: others, or none, are not what it says.
    again = run.plan.recipe
    assert begin(tmp_path / "b", DATA, again, weights=asked).plan.recipe == again
    for given, what in ((None, "none are given"), (done / LAST, "these have")):
        call = partial(begin, tmp_path / "c", DATA, again, weights=given)
        assert f"digest {found[:16]}, and {what}" in refused(ValueError, call)
    assert not (tmp_path / "c").exists()


def test_what_fits_of_other_weights_is_taken_and_the_rest_said(
    done: Path, tmp_path: Path
):
    five = drawn(classes=5)
    run = begin(tmp_path / "run", five, recipe(steps=4), weights=str(done / BEST))
    assert run.notes[1:] == ("fc.weight, fc.bias are new and random",)
    found, given = (
        run.engine.network(),
        parity.cast(parity.load(done / BEST), "float32"),
    )
    new = initial_state(run.plan.config, seed=0)
    for name, array in found.items():
        source = new if name.startswith("fc.") else given
        assert np.array_equal(array, source[name]), name


def test_a_recipe_is_taken_from_a_file_and_options_change_it(
    call: Called, folder_of_images: Path, tmp_path: Path
):
    path, run = tmp_path / "mine.json", tmp_path / "run"
    asked = recipe(steps=2, decay="cosine", milestones=())
    path.write_text(asked.to_json())
    options = ("--epochs", "0.5", "--decay", "constant", "--batch", "6")
    call("train", folder_of_images, "--recipe", path, *options, "--out", run)
    found = TrainingRecipe.from_json((run / "recipe.json").read_text())
    changed: dict[str, Any] = {"steps": None, "epochs": 0.5, "batch": 6}
    assert found == replace(asked, decay="constant", **changed)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "mine.json: no such file"),
        ("{", "mine.json: is no JSON"),
        ("[1]", "mine.json: "),
        ('{"batchsize": 4}', "mine.json: .*batchsize"),
        ('{"batch": -4}', "mine.json: batch is -4; it must be an integer from 1"),
        ("pipe", "mine.json: is no regular file"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(
    text: str | None, said: str, call: Called, folder_of_images: Path, tmp_path: Path
):
    path = tmp_path / "mine.json"
    if text == "pipe":
        os.mkfifo(path)
    elif text is not None:
        path.write_text(text)
    out = ("--out", tmp_path / "run")
    line = call.error("train", folder_of_images, "--recipe", path, *out)
    assert re.search(said, line)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("device", ["nonsense", "xpu:7"])
def test_a_device_that_is_not_there_is_refused(
    device: str, call: Called, folder_of_images: Path, tmp_path: Path
):
    named = ("--out", tmp_path / "run", "--device", device)
    said = call.error("train", folder_of_images, *COMMAND, *named)
    assert f"device is '{device}', which cannot be used (" in said
    assert not (tmp_path / "run").exists()


def test_what_cannot_go_on_is_refused_with_what_differs(done: Path, tmp_path: Path):
    said = refused(ValueError, lambda: begin(done, DATA, RECIPE))
    assert "holds a run; --resume" in said
    said = refused(ValueError, lambda: resume(done, drawn(seed=1)))
    assert "begun on other images" in said
    said = refused(ValueError, lambda: resume(done, drawn(classes=5)))
    assert "has the classes 0, 1, 2, 3; the data have 0, 1, 2, 3, 4" in said
    other = recipe(steps=10, ema_decay=0.5, learning_rate=0.2)
    said = refused(ValueError, lambda: resume(done, DATA, recipe=lambda _: other))
    assert "another recipe: learning_rate is 0.2, was 0.1" in said
    said = refused(CheckpointError, lambda: resume(tmp_path, DATA))
    assert f"{tmp_path / LAST}: no such file" in said
    said = refused(CheckpointError, lambda: resume(done / BEST, DATA))
    assert f"holds weights only: no run can go on from it. Use {LAST}" in said
    said = refused(ValueError, lambda: resume(done, DATA).to(3))
    assert "10 steps are done" in said
    few = recipe(batch=64)
    said = refused(InputError, lambda: begin(tmp_path / "a", DATA, few))
    assert "30 images to train on, and a batch has 64" in said
    assert not (tmp_path / "a").exists()
    long = recipe(steps=2, warmup_epochs=3)
    said = refused(ValueError, lambda: begin(tmp_path / "b", DATA, long))
    assert "warmup_epochs is 3, 11 steps; it must be shorter than the run of 2" in said
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("place", [100, -100])
def test_a_damaged_checkpoint_is_refused(place: int, done: Path, tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(done, folder)
    data = bytearray((folder / LAST).read_bytes())
    data[place] ^= 1
    (folder / LAST).write_bytes(data)
    said = refused(CheckpointError, lambda: resume(folder, DATA))
    assert str(folder / LAST) in said


def test_a_run_that_diverges_says_so_and_keeps_what_was_saved(tmp_path: Path):
    wild = recipe(steps=40, learning_rate=1e30, decay="constant", milestones=())
    said = refused(ValueError, lambda: begin(tmp_path / "run", DATA, wild).to())
    assert "the run has diverged. Use a lower --lr" in said


def test_other_programs_read_a_run_of_ours(done: Path):
    for name in (LAST, BEST):
        state = parity.load(done / name)
        config = state.config
        assert config is not None
        assert config == RECIPE.config(4)
        for framework in ("torch", "flax"):
            twin = parity.create_model(config, framework, done / name)
            assert parity.entries(twin).keys() == state.keys()
    assert any(
        "arrays of its training" in note for note in parity.load(done / LAST).notes
    )


@pytest.mark.parametrize("backend", ["torch", "flax"])
def test_the_best_weights_are_the_averages_that_were_evaluated(
    backend: Backend, tmp_path: Path
):
    once = recipe(steps=5, ema_decay=0.5, evaluate_every=9)  # at the end alone
    begin(tmp_path, DATA, once, backend).to()
    kept, run = parity.load(tmp_path / BEST), resume(tmp_path, DATA, backend)
    assert not differing_bits(kept, run.engine.averaged())
    assert "conv1.weight" in differing_bits(kept, run.engine.network())


def test_tensorboard_has_every_number(done: Path, tmp_path: Path):
    event = pytest.importorskip("tensorboardX.proto.event_pb2").Event
    folder = whole(tmp_path / "run", tensorboard=True)
    (path,) = (folder / "tensorboard").iterdir()
    data, found = path.read_bytes(), []
    while data:  # length, its checksum, the event, its checksum
        size = int.from_bytes(data[:8], "little")
        said = event.FromString(data[12 : 12 + size])
        found += [(said.step, v.tag, v.simple_value) for v in said.summary.value]
        data = data[16 + size :]
    expected = [
        (line["step"], name, value)
        for line in read(done)
        for name, value in line.items()
        if name not in ("step", "epoch")
    ]
    assert [one[:2] for one in found] == [one[:2] for one in expected]
    for (_, _, ours), (_, _, theirs) in zip(found, expected, strict=True):
        assert ours == np.float32(theirs)


def test_the_last_checkpoints_are_kept(tmp_path: Path):
    folder = whole(tmp_path / "run", keep=2, save_every=3)
    found = sorted(p.name for p in folder.glob("last*"))
    assert found == [
        "last-00000009.safetensors",
        "last-00000010.safetensors",
        "last.safetensors",
    ]
    # One of them goes on, and those behind it are no longer the run's.
    again = resume(folder / found[0], DATA, options=Options(keep=3))
    with pytest.raises(RuntimeError, match="here"):
        again.to(watch=_stop)
    assert sorted(p.name for p in folder.glob("last-*")) == found[:1]
    resume(folder / found[0], DATA).to()  # which keeps none, and takes none away
    assert sorted(p.name for p in folder.glob("last-*")) == found[:1]


def _stop(seen: Seen) -> None:
    raise RuntimeError("here")
