"""The accelerator's command, on a CPU and in small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import accelerator
from benchmarks.results import file


def test_what_a_machine_lacks_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    lacking = {"torchvision", "optax"}
    monkeypatch.setattr(
        accelerator, "find_spec", lambda name: None if name in lacking else object()
    )
    out = tmp_path / "out"
    assert accelerator.main(["--out", str(out)]) == 2
    assert "lacks optax, torchvision; install them" in capsys.readouterr().err
    assert accelerator.main(["--out", str(out), "--only", "bench"]) == 2
    assert "lacks optax; install them" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.exhaustive
def test_the_accelerators_command_leaves_tests_ceilings_and_times(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.accelerator", "--out", str(tmp_path)],
        env={**os.environ, "SMALL": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed, 6 skipped" in (tmp_path / "tests.txt").read_text()
    assert "1 passed, 3 skipped" in (tmp_path / "tests-tf32.txt").read_text()
    *_, last = (tmp_path / "ceilings-float32.txt").read_text().splitlines()
    assert json.loads(last)["ok"]
    cases = file.read(tmp_path / "bench.json")["cases"]
    timed = [[r["mode"] for r in c["rows"] if r["status"] == "timed"] for c in cases]
    assert timed == [["torch-eager", "flax-jit"]] * 2


@pytest.mark.exhaustive
def test_when_time_is_over_what_was_found_stays(tmp_path: Path):
    command = [sys.executable, "-m", "benchmarks.accelerator", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--only", "tests", "--testing", "1"],
        env={**os.environ, "SMALL": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "tests: ended with -15" in done.stdout
    assert (tmp_path / "tests.txt").exists()
