"""The accelerator's command, on a CPU and in small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.results import file


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
