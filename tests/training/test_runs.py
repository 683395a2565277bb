"""A run in a folder: stopped, killed, gone on with, read by others, refused."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import parity
from parity.errors import CheckpointError, InputError
from parity.judging.distance import deviation
from parity.judging.tolerances import AFTER_STEPS
from parity.weights.digest import differing_bits, digest
from resnet_training import BEST, LAST, Options, Seen, begin, resume
from resnet_training.engine import Backend
from resnet_training.initial import initial_state
from resnet_training.metrics import METRICS, read
from tests.support.runs import drawn, recipe, same_files

DATA = drawn()
# 30 images, batches of 8: an evaluation every 3.75 steps, and steps between them.
RECIPE = recipe(steps=10, ema_decay=0.5)


def whole(folder: Path, backend: Backend = "torch", **options: Any) -> Path:
    """A run that is never stopped."""
    begin(folder, DATA, RECIPE, backend, options=Options(engine={}, **options)).to()
    return folder


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in torch; not to be changed."""
    return whole(tmp_path_factory.mktemp("runs") / "done")


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


def refused(error: type[Exception], call: Any) -> str:
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


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
