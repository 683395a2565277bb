"""How the command ends: codes, closed streams, signals, names that are no text."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from parity.exporting import ProgramRecipe
from parity.recipe import Recipe
from parity.weights import twins
from tests.support.command import Called

# Any command, run as ours are: it says much, and ends with the code asked for.
COMMAND = """
import os, sys, time, typer
from contextlib import suppress
from pathlib import Path
from resnet_cli.failures import run
app = typer.Typer()
@app.command()
def command(code: int, to: str = "stdout", target: Path = None, noise: bool = False):
    if target is not None:
        from parity.files.atomic import replacing
        with replacing(target, False) as temporary:
            temporary.write_text("half")
            for stream in (0, 1, 2) if noise else ():  # as a library in C prints
                with suppress(OSError):
                    os.write(stream, b"noise")
            if not noise:
                print("begun", file=sys.stderr, flush=True)
                time.sleep(60)
    for line in range(10_000):
        print("a line that is said", file=getattr(sys, to))
    raise typer.Exit(code)
run(app, "command", sys.argv[1:])
"""


def _code(arguments: str, redirections: str) -> int:
    """Runs the command in a shell; returns its own code, whatever reads it."""
    line = f'"$0" -c "$1" {arguments} {redirections}; exit "${{PIPESTATUS[0]}}"'
    shell = ["bash", "-c", line, sys.executable, COMMAND]
    return subprocess.run(shell, capture_output=True).returncode


@pytest.mark.parametrize("code", [0, 1, 2])
@pytest.mark.parametrize("redirections", ["| head -1", ">&-", "| true", ">&- 2>&-"])
def test_a_closed_standard_output_leaves_the_verdict(code: int, redirections: str):
    assert _code(str(code), redirections) == code


@pytest.mark.parametrize(
    ("to", "redirections", "code"),
    [
        ("stderr", "2>&1 >/dev/null | head -1", 141),
        ("stderr", "2>&-", 0),
        ("stdout", ">/dev/full", 3),
        ("stdout", ">/dev/full 2>/dev/full", 3),
    ],
)
def test_a_stream_that_takes_nothing_is_never_a_verdict(
    to: str, redirections: str, code: int
):
    assert _code(f"0 --to {to}", redirections) == code


@pytest.mark.parametrize("redirections", [">&-", ">&- 2>&-", "<&- >&- 2>&-", "2>&-"])
def test_a_file_never_gets_the_place_of_a_closed_stream(
    tmp_path: Path, redirections: str
):
    target = tmp_path / "target"
    assert _code(f"0 --noise --target {target}", redirections) == 0
    assert target.read_text() == "half"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_ended_from_outside_it_leaves_nothing(tmp_path: Path, number: int):
    arguments = [sys.executable, "-c", COMMAND, "0", "--target", str(tmp_path / "a")]
    before = signal.signal(number, signal.SIG_DFL)  # nohup's children inherit another
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE)
    signal.signal(number, before)
    with process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"begun\n"
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(number)
        assert process.wait() == 128 + number
        assert process.stderr.read() == b""
    assert list(tmp_path.iterdir()) == []


ODD = ["[/x].pth", "[bold].pth", "a\x1b[2J.pth", "a\nb.pth", os.fsdecode(b"a\xff.pth")]


@pytest.mark.parametrize("name", ODD)
def test_a_file_of_any_name_is_read_and_written(
    call: Called, tmp_path: Path, pth: Path, name: str
):
    source, target = tmp_path / name, tmp_path / f"out{name}"
    source.parent.mkdir(exist_ok=True)
    target.parent.mkdir(exist_ok=True)
    source.hardlink_to(pth)
    out, err = call("convert", source, target)
    (note,) = err.splitlines()  # its name does not tell
    assert note.endswith("not timm's resnetblur18, which has the same names")
    assert "\x1b" not in note
    assert "equal, bit for bit" in out
    assert len(out.splitlines()) == 4
    assert "\x1b" not in out
    state = torch.load(pth, weights_only=True)
    assert list(torch.load(target, weights_only=True)) == list(state)


@pytest.mark.parametrize("name", ODD)
def test_a_refusal_of_any_name_is_one_printable_line(
    call: Called, tmp_path: Path, name: str
):
    path = tmp_path / name
    line = call.error("convert", path, tmp_path / "out.pth")
    assert line.isprintable()
    assert line.endswith(": no such file. Check the path")
    path.mkdir(parents=True)
    line = call.error("convert", tmp_path / "none.pth", path)
    assert "none.pth: no such file" in line
    line = call.error("predict", path, "--weights", path)
    assert line.isprintable()
    assert "is a directory" in line


def test_names_in_a_file_reach_no_terminal_as_they_are(
    call: Called, tmp_path: Path, pth: Path
):
    path = tmp_path / "w.pth"
    state = torch.load(pth, weights_only=True)
    torch.save({**state, "\x1b]0;owned\x07\n": torch.zeros(1)}, path)
    line = call.error("convert", path, tmp_path / "out.pth")
    assert r"unexpected: \x1b]0;owned\x07\n" in line
    assert line.isprintable()


def test_what_is_asked_for_in_vain_is_refused(
    call: Called, tmp_path: Path, pth: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out.pth"
    line = call.error("convert", pth, out, "--set", "num_classes=3")
    assert "--set goes with --model" in line
    monkeypatch.setenv("RESNET_TWINS_URL", "http://127.0.0.1:9")  # nobody is there
    line = call.error("predict", tmp_path / "typo.jpg", "--weights", "DEFAULT")
    assert "typo.jpg: no such file" in line
    line = call.error(
        "check", "resnet18", "--image", "typo.jpg", "--weights", "DEFAULT"
    )
    assert "typo.jpg: no such file" in line


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and no cache: whoever asks for one fails."""

    def ask(*arguments: object, **settings: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("parity.files.sources.download", ask)
    monkeypatch.setattr("parity.files.hub.fetch", ask)
    monkeypatch.setattr("parity.files.hub._Repository", ask)


HUB = "hf://owner/name"


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("weights", ["DEFAULT", HUB])
@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (
            ("export", "resnet18", "new.onnx", "--int8", "typo"),
            2,
            "typo: has no phot",
        ),
        (
            ("export", "resnet18", "new.onnx", "--int8", "none"),
            2,
            "none: has no phot",
        ),
        (("export", "resnet18", "there.onnx"), 3, "there.onnx: exists. Use --force"),
        (("export", "resnet18", "new2.onnx"), 3, "new2.onnx.certificate.json: exists."),
        (
            ("export", "resnet18", "new3.onnx", "--int8", "some"),
            3,
            "new3.onnx.loss.json: exists. Use --force",
        ),
        (("export", "resnet18", "no/new.onnx"), 3, "new.onnx: there is no folder"),
        (("export", "resnet18", "pipe.onnx", "--force"), 3, "onnx: is no regular file"),
        (("export", "resnet18", "new.pt2", "--to", "onnx"), 2, "Let it end in .onnx"),
        (
            *(("export", "resnet18", "new.onnx", "--preprocessing"),),
            *(2, "the network takes 1 channels; preprocessing is for photographs"),
        ),
        (
            (
                *("export", "resnet18", "new.onnx", "--set", "out_indices=[1]"),
                *("--set", "include_top=false"),
            ),
            2,
            "a program has one result",
        ),
        (("check", "resnet18", "--image", "typo.jpg"), 2, "typo.jpg: no such file"),
        (("check", "resnet18", "--image", "text.jpg"), 2, "text.jpg: is no image that"),
        (("predict", "typo.jpg"), 2, "typo.jpg: no such file"),
        (("predict", "text.jpg"), 2, "text.jpg: is no image that PIL can read"),
    ],
)
def test_what_can_be_refused_without_the_network_is_refused_before_it(
    call: Called,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    weights: str,
    command: tuple[str, ...],
    code: int,
    said: str,
):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    for name in ("none", "some"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "some" / "a.png")
    for name in ("there.onnx", "new2.onnx.certificate.json", "new3.onnx.loss.json"):
        (tmp_path / name).touch()
    (tmp_path / "text.jpg").write_text("no image")
    os.mkfifo(tmp_path / "pipe.onnx")
    before = sorted(tmp_path.iterdir())
    more = ["--set", "in_channels=1"] if "--preprocessing" in command else []
    assert said in call.error(*command, "--weights", weights, *more, code=code)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("there.pth",), 3, "there.pth: exists. Use --force to replace it"),
        (("folder", "--to", "timm"), 3, "folder: exists. Use --force to replace it"),
        (
            ("folder", "--to", "timm", "--force"),
            3,
            "folder: is a directory without config.json and weights",
        ),
        (("no/new.pth",), 3, "new.pth: there is no folder for it"),
        (("pipe.pth", "--force"), 3, "pipe.pth: is no regular file"),
        (("new.bin",), 3, "the extension '.bin' names no format"),
        (("new.pth", "--dtype", "int7"), 2, "dtype is 'int7'; it must be one of"),
        (("new.pth", "--to", "klingon"), 2, "'klingon'"),
        (("new.pth", "--model", "resnet19"), 2, "no network named 'resnet19'"),
        (("new.pth", "--rename", "a"), 2, "a"),
    ],
)
def test_a_conversion_that_cannot_end_well_is_not_begun(
    call: Called,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    said: str,
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.pth").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.pth")
    assert said in call.error("convert", HUB, *arguments, code=code)


@pytest.mark.usefixtures("nobody")
def test_a_certificate_without_its_program_is_refused_before_the_network(
    call: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("onnxruntime")
    recipe = {"name": "resnet18", "overrides": {}, "weights": "DEFAULT"}
    told = ProgramRecipe(Recipe(**recipe), "net.onnx").to_dict()
    monkeypatch.setattr(
        "parity.reports.certificate.read_certificate", lambda path: {"recipe": told}
    )
    path = tmp_path / "net.onnx.certificate.json"
    said = f"{tmp_path / 'net.onnx'}: no such file. Check the path"
    assert said in call.error("check", "--verify", path)


@pytest.mark.usefixtures("nobody")
def test_a_library_that_is_missing_is_missed_before_the_network(
    call: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("train/a", "train/b", "val/a", "val/b"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(folder / "a.png")
    real = twins.find_spec
    monkeypatch.setattr(
        twins,
        "find_spec",
        lambda name: None if name in ("tensorboardX", "jax", "flax") else real(name),
    )
    line = call.error("evaluate", tmp_path, "--weights", "DEFAULT")
    assert "pip install 'resnet-twins[flax]'" in line
    asked = ("train", tmp_path, "--out", tmp_path / "run", "--weights", "DEFAULT")
    line = call.error(*asked, "--model", "resnet18", "--batch", 1, "--tensorboard")
    assert "pip install 'resnet-twins[train]'" in line


def test_an_unreadable_file_is_refused_by_us_and_not_by_the_parser(
    call: Called, tmp_path: Path, pth: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "access", lambda *arguments, **settings: False)
    out, _ = call("convert", pth, tmp_path / "out.pth")
    assert "equal, bit for bit" in out
    call.error("check", "--verify", pth)
    assert "not readable" not in call.error("predict", pth, "--weights", "random")


BOTH = "Use a smaller --size or --batch"
NEITHER, BATCH = "Free some, or use a larger machine", "Use a smaller --batch"


@pytest.mark.parametrize(
    ("command", "place", "advice"),
    [
        (["check", "resnet18"], "checks.check", BOTH),
        (["check", "resnet18", "--image", "a.jpg"], "checks.check", NEITHER),
        (["check", "resnet18", "--train=cifar-paper"], "checks.check_run", BATCH),
        (["check", "--self-test"], "checks.self_test", NEITHER),
        (["check", "--verify", "c.json"], "checks.verify", NEITHER),
        (["predict", "a.jpg"], "predictions.predict", NEITHER),
        (["summary", "resnet18"], "tables.of_network", "Use a smaller --size"),
        (["train", "data", "--out", "run"], "training.train", BOTH),
        (["evaluate", "data", "--weights", "a.pth"], "training.evaluate_", BATCH),
    ],
)
def test_too_little_memory_is_met_by_what_the_command_has(
    call: Called,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    place: str,
    advice: str,
):
    def fail(*arguments: object, **settings: object) -> None:
        raise MemoryError("12 GiB are not there")

    monkeypatch.setattr(f"resnet_cli.{place}", fail)
    line = call.error(*command)
    assert line == f"error: not enough memory (12 GiB are not there). {advice}"


def test_a_conversion_with_too_little_memory_names_no_option(
    call: Called, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pth: Path
):
    def fail(*arguments: object, **settings: object) -> None:
        raise MemoryError

    monkeypatch.setattr("parity.convert", fail)
    line = call.error("convert", pth, tmp_path / "a.pth")
    assert line == f"error: not enough memory. {NEITHER}"


@pytest.mark.filterwarnings("default")
def test_a_warning_of_others_is_a_note(
    call: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "large.png"
    Image.new("RGB", (300, 250)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60_000)
    _, err = call(
        *("predict", path, "--weights", "random", "--model", "cifar_resnet20"),
        *("--backend", "torch"),
    )
    (line,) = err.splitlines()
    assert line.startswith("note: Image size (75000 pixels) exceeds limit of 60000")
