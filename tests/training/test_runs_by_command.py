"""Runs as the command begins, ends and goes on with them."""

from __future__ import annotations

import json
import os
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

import pytest
from rich.console import Console
from safetensors.numpy import load_file

from parity.judging.distance import deviation
from parity.judging.tolerances import AFTER_STEPS
from resnet_cli.training import _bar
from resnet_spec import TrainingRecipe
from resnet_training import BEST, LAST, Seen, begin, resume
from resnet_training.metrics import read
from resnet_training.sources import Data
from tests.support.command import Called
from tests.support.runs import recipe, same_files

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
