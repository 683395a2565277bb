"""The command's check as a user calls it: what it prints, and its exit code."""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path

import pytest

import parity
from parity.images import load_image
from parity.weights.digest import digest
from tests.support.command import Called
from tests.support.networks import random_torch

QUICK = ("check", "cifar_resnet20", "--forward", "--set", "layers=[1,1,1]")


def test_check_passes_and_prints_every_layer(call: Called):
    out, _ = call(*QUICK, "--size", "33x24", "--seed", 3)
    lines = out.splitlines()
    assert lines[0].startswith("cifar_resnet20: random weights, seed 3")
    assert lines[0].endswith("2 random images, 33x24, seed 3")
    assert lines[-1] == "PASS: both compute the same network"
    assert any(line.startswith("layer3.0.relu@2 ") for line in lines)


@pytest.mark.slow
def test_check_of_a_file_in_brief(call: Called, pth: Path):
    out, _ = call(
        *("check", "resnet18", "--forward", "--weights", pth),
        *("--size", "65x48", "--brief"),
    )
    assert "layer4.1.relu@2 " not in out
    assert out.splitlines()[-1] == "PASS: both compute the same network"


@pytest.mark.slow
def test_check_of_a_signal_judges_its_decision(call: Called):
    out, _ = call("check", "resnet18_1d", "--forward", "--brief", "--batch", "1")
    assert re.search(r"^G5 +top-1 class +pass ", out, re.MULTILINE)


@pytest.mark.slow
def test_check_on_a_photograph_as_json(call: Called, photo: Path):
    out, _ = call("check", "resnet18", "--forward", "--image", photo, "--json")
    found = json.loads(out)
    assert found["ok"] is True
    pixels = load_image(photo)
    assert found["setting"]["inputs"]["shape"] == [1, 3, 224, 224]
    assert found["setting"]["inputs"]["sha256"] == digest({"inputs": pixels})


def test_a_failed_check_is_exit_code_1(call: Called, monkeypatch: pytest.MonkeyPatch):
    import resnet_flax.layers

    norm = resnet_flax.layers.BatchNorm2d
    original = norm.__call__
    monkeypatch.setattr(norm, "__call__", lambda self, x: original(self, x) * 1.001)
    out, _ = call(*QUICK, "--size", "32x24", "--brief", code=1)
    assert "layer3.0.relu@2 " not in out
    assert out.splitlines()[-1].startswith(
        "FAIL: G1 (float64, every tap): first divergence at bn1;"
    )


@pytest.mark.slow
def test_check_takes_a_half_type_up_and_says_so(
    call: Called, pth: Path, tmp_path: Path
):
    half = tmp_path / "half.safetensors"
    parity.save(half, parity.cast(parity.load(pth), "bfloat16"))
    _, err = call(
        *("check", "resnet18", "--forward", "--weights", half),
        *("--size", "40x40", "--brief"),
    )
    assert "taken from bfloat16 to float32" in err


def test_check_of_another_networks_weights_is_refused(call: Called, tmp_path: Path):
    path = tmp_path / "v1.safetensors"
    parity.save(path, random_torch("resnet50_v1"))
    line = call.error("check", "resnet50", "--weights", path)
    assert "belongs to resnet50_v1" in line


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--steps", "-1"), "Invalid value for '--steps'"),
        (("--steps", "2", "--optimizer", "{"), "--optimizer is no JSON: Expecting"),
        (
            ("--steps", "2", "--optimizer", '{"a":' * 50_000),
            "--optimizer is no JSON: ",
        ),
        (("--steps", "2", "--optimizer", "{}"), "the field 'schedule' is missing"),
        (
            ("--steps", "2", "--optimizer", '{"schedule": 5}'),
            "--optimizer: schedule is 5; it must be a Schedule, in JSON as {",
        ),
        (
            ("--steps", "2", "--optimizer", '{"schedule": {}}'),
            "the field 'learning_rate' is missing",
        ),
        (
            ("--steps", "2", "--optimizer", '{"schedule": {"speed": 1}}'),
            "no field 'speed'; there are kind, learning_rate",
        ),
        (
            (
                *("--steps", "2", "--optimizer"),
                f'{{"schedule": {{"learning_rate": 1{"0" * 400}}}}}',
            ),
            "learning_rate is 1",
        ),
        (("--steps", "2", "--optimizer", "lion"), "name one of sgd, adam"),
        (("--optimizer", "adam"), "give a number of steps too, as --steps 20"),
        (("--dtype", "int8"), "--dtype is 'int8'; it must be one of float32"),
        (("--set", "self=1"), "unknown setting 'self'"),
        (("--set", "name_or_config=1"), "unknown setting 'name_or_config'"),
    ],
)
def test_a_check_that_cannot_be_made_is_refused_with_the_way_out(
    call: Called, arguments: tuple[str, ...], problem: str
):
    assert problem in call.error("check", "resnet18", *arguments)


@pytest.mark.parametrize("what", [["--self-test"], ["--verify", "c.json"]])
@pytest.mark.parametrize("option", ["--certificate", "--html"])
def test_what_only_a_networks_check_writes_is_refused_beside_others(
    call: Called, what: list[str], option: str
):
    said = call.error("check", *what, option, "somewhere")
    assert "--html and --certificate go with a network's name" in said


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            ["check", "--verify", "c.json", "--set", "groups=2", "--size", "32x32"],
            "--size and --set do nothing with --verify; leave them out",
        ),
        *(
            (
                ["check", *what, *option],
                f"{option[0]} does nothing with {what[0]}; leav",
            )
            for what in (["--self-test"], ["--verify", "c.json"])
            for option in (
                *(["--set", "groups=2"], ["--size", "64x64"], ["--batch", "2"]),
                *(["--dtype", "float32"], ["--image", "x.png"], ["--seed", "0"]),
                *(["--forward"], ["--steps", "3"], ["--optimizer", "adam"]),
                *(["--train", "cifar-paper"], ["--brief"], ["--key", "ema"]),
                *(["--precision", "tf32"], ["--from", "timm"], ["--allow-nonfinite"]),
            )
        ),
        (["check", "--self-test", "--weights", "random"], "--weights does nothing wi"),
        (["check", "--verify", "c.json", "--json"], "--json does nothing with --ver"),
        *(
            (
                ["check", "resnet18", "--train", "cifar-paper", *option],
                f"{option[0]} does nothing with --train; leave it out",
            )
            for option in (
                *(["--image", "x.png"], ["--size", "64x64"], ["--dtype", "float32"]),
                *(["--precision", "strict"], ["--forward"], ["--brief"]),
                *(["--weights", "w.pth"], ["--certificate", "c.json"]),
                *(["--optimizer", "sgd"], ["--rename", "a=b"]),
            )
        ),
        (
            ["check", "resnet18", "--train", "cifar-paper", "--steps", "0"],
            "--steps 0: give --train one step at least",
        ),
        *(
            (["check", "resnet18", "--image", "x.png", *option], f"{option[0]} does no")
            for option in (["--size", "64x64"], ["--batch", "2"])
        ),
        (
            ["check", "resnet18", "--json", "--brief"],
            "--brief does nothing with --json",
        ),
        *(
            (
                [*command, "--weights", "random", *option],
                f"{option[0]} does nothing wit",
            )
            for command in (
                ["check", "resnet18"],
                ["predict", "x.png"],
                ["export", "resnet18", "x.onnx"],
            )
            for option in (
                *(["--key", "ema"], ["--prefix", "net"], ["--ignore", "head.*"]),
                *(["--rename", "a=b"], ["--from", "timm"], ["--allow-nonfinite"]),
            )
        ),
        (
            ["predict", "x.png", "--weights", "w.pth", "--seed", "3"],
            "--seed does nothing with weights that are not random; leave it out",
        ),
        (
            ["export", "resnet18", "x.onnx", "--int8", "f", "--seed", "3"],
            "--seed does nothing with weights that are not random; leave it out",
        ),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    call: Called, command: list[str], said: str
):
    assert said in call.error(*command)


def test_weights_that_lie_elsewhere_are_taken_whatever_they_are(
    call: Called, monkeypatch: pytest.MonkeyPatch
):
    asked = []

    def verify(path: Path, *, weights: str | None) -> bool:
        asked.append(weights)
        return True

    monkeypatch.setattr("resnet_cli.checks.verify", verify)
    for more in ([], ["--weights", "w.pth"], ["--weights", "random"]):
        call("check", "--verify", "c.json", *more)
    assert asked == [None, "w.pth", "random"]


@pytest.mark.parametrize("option", ["--certificate", "--html"])
def test_a_place_that_cannot_be_written_is_refused_before_the_check(
    option: str, call: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("resnet_cli.checks._run", lambda recipe: pytest.fail("ran"))
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "no" / "c.json")
    for place, problem in (
        ("/nowhere/x.json", "there is no folder /nowhere"),
        ("/proc/x.json", "cannot be written"),  # not even by root
        (tmp_path / ("x" * 300), "cannot be written (File name too long)"),
        (link, f"there is no folder {tmp_path / 'no'}"),
        (tmp_path, "is a directory"),
    ):
        line = call.error("check", "resnet18", option, place, code=3)
        assert line.startswith(f"error: {place}: {problem}")
    assert list(tmp_path.iterdir()) == [link]


@pytest.mark.parametrize(
    "command",
    [
        ("check", "resnet18", "--certificate"),
        ("check", "resnet18", "--html"),
        ("check", "resnet18", "--train", "cifar-paper", "--html"),
        ("summary", "--all", "--plot"),
        ("export", "resnet18", "--weights", "random", "--force"),
        ("convert", "--force"),
    ],
)
@pytest.mark.parametrize("kind", ["fifo", "device", "socket", "link"])
def test_nothing_is_written_onto_what_is_no_regular_file(
    call: Called,
    tmp_path: Path,
    pth: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    kind: str,
):
    for place in ("checks._run", "tables.of_all"):
        monkeypatch.setattr(f"resnet_cli.{place}", lambda *_: pytest.fail("ran"))
    name = {"--plot": "x.png", "export": "x.onnx", "convert": "x.pth"}
    known = next((name[word] for word in command if word in name), "x.html")
    path = odd = tmp_path / known
    if kind == "link":
        odd = tmp_path / "odd"
        path.symlink_to(odd)
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(odd))
    elif kind == "device":
        path.symlink_to("/dev/null")
        odd = Path("/dev/null")
    else:
        os.mkfifo(odd)
    before = odd.stat().st_mode
    if command[0] == "convert":
        command = ("convert", str(pth), *command[1:])
    line = call.error(*command, path, code=3)
    assert line.startswith(f"error: {path}: is no regular file")
    assert odd.stat().st_mode == before
    assert path.is_symlink() == (kind in ("link", "device"))
