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


def test_an_unreadable_file_is_refused_by_us_and_not_by_the_parser(
    call: Called, tmp_path: Path, pth: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "access", lambda *arguments, **settings: False)
    out, _ = call("convert", pth, tmp_path / "out.pth")
    assert "equal, bit for bit" in out
    call.error("check", "--verify", pth)
    assert "not readable" not in call.error("predict", pth, "--weights", "random")


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
