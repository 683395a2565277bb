"""Everything that the README shows is run here, and shows what it says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import torchvision

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def _calls() -> list[tuple[str, str]]:
    """The commands of the console blocks, each with the output shown under it."""
    calls = []
    for block in _blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            calls.append((command, output))
    return calls


def _same_for_all_machines(output: str) -> list[str]:
    """Leaves out how large a rounding error is and which layer has the largest."""
    output = re.sub(r"\d\.\de-\d\d", "ERROR", output)
    output = re.sub(r"closest \S+", "closest TAP", output)
    return [line.rstrip() for line in output.strip().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photo: Path) -> Path:
    """Where the files that the README speaks of lie."""
    folder = tmp_path_factory.mktemp("readme")
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet50().state_dict(), folder / "resnet50.pth")
    shutil.copy(photo, folder / "photo.jpg")
    return folder


def test_the_first_commands_are_the_two_of_the_makefile():
    assert _calls()[:2] == [("make demo", ""), ("make test", "")]
    for target in ("demo", "test"):
        # -B: as if nothing were installed yet.
        lines = subprocess.check_output(
            ["make", "-n", "-B", target, f"PYTHON={sys.executable}"],
            cwd=ROOT,
            text=True,
            env={"PATH": os.environ["PATH"]},  # not what an outer make passes on
        )
        for step in _blocks("sh")[0].splitlines()[:2]:
            words = step.replace("python3", sys.executable)
            assert " ".join(words.split()) in " ".join(lines.split())
        run = {"demo": "-m benchmarks.demo", "test": "-m pytest -n 2 --dist loadfile"}[
            target
        ]
        assert f".venv/bin/python {run}" in lines
        assert f".venv/bin/python {run}" in _blocks("sh")[0]


def test_the_extras_that_it_names_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(re.findall(r"'\.\[(\w+)\]'", README))
    assert extras == {"dev", "torch", "flax"}
    assert extras <= set(project["optional-dependencies"])


def test_every_command_prints_what_is_shown(folder: Path):
    calls = _calls()[2:]
    assert len(calls) >= 5
    for command, expected in calls:
        program, *arguments = shlex.split(command)
        assert program == "resnet-twins"
        done = subprocess.run(
            [Path(sys.executable).with_name(program), *arguments],
            cwd=folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert _same_for_all_machines(done.stdout) == _same_for_all_machines(expected)


def test_the_python_runs_from_first_to_last_line(folder: Path):
    code = "\n".join(_blocks("python"))
    printed = re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)
    assert len(printed) == 1
    out = subprocess.check_output([sys.executable, "-c", code], cwd=folder, text=True)
    lines = out.splitlines()
    assert lines[-2:] == ["PASS: both compute the same network", *printed]


def test_the_demos_last_lines_have_the_modes_that_are_shown():
    from benchmarks import demo

    modes = [re.split(r"  +", line)[0] for line in _blocks("text")[0].splitlines()[1:]]
    source = Path(demo.__file__).read_text("utf-8")
    assert len(modes) == 3
    assert all(f'"{mode}"' in source for mode in modes)


def test_the_links_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert all((ROOT / link).exists() for link in links)


def test_contributing_is_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 45
