"""Everything that the README and the pages of docs/ show is run here, or compared."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torchvision
from torch.distributed.run import get_args_parser
from typer.main import get_command

from benchmarks import command as benchmarks
from benchmarks.results import file, tables
from benchmarks.results import readme as bench_report
from resnet_cli.main import app
from tests.support.pages import PAGES, ROOT, Block, blocks

README = (ROOT / "README.md").read_text("utf-8")


def _calls(block: Block) -> list[tuple[str, str]]:
    """A console block's commands, each with the output shown under it."""
    parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]
    found = [part.partition("\n") for part in parts]
    return [(command, output) for command, _, output in found]


def _same_for_all_machines(output: str) -> list[str]:
    """Leaves out how large a rounding error is, where, and how many kinks there are."""
    output = re.sub(r"\d\.\de-\d\d|0\.0e\+00", "ERROR", output)
    output = re.sub(r"closest \S+", "closest TAP", output)
    output = re.sub(r"^(G4 .*) \d+ within", r"\1 N within", output, flags=re.MULTILINE)
    return [line.rstrip() for line in output.strip().splitlines()]


@pytest.fixture
def folder(tmp_path: Path, photo: Path, resnet50: Path) -> Path:
    """Where the files that a page speaks of lie."""
    _furnish(tmp_path, photo, resnet50)
    return tmp_path


def _furnish(folder: Path, photo: Path, resnet50: Path) -> None:
    os.link(resnet50, folder / "resnet50.pth")
    shutil.copy(photo, folder / "photo.jpg")


@pytest.fixture(scope="module")
def resnet50(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of torchvision's, always the same."""
    path = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet50().state_dict(), path)
    return path


def _would_run(*targets: str) -> str:
    """What make would, as if nothing were installed yet; spaces are one each."""
    lines = subprocess.check_output(
        ["make", "-n", "-B", *targets],
        cwd=ROOT,
        text=True,
        env={"PATH": os.environ["PATH"]},  # not what an outer make passes on
    )
    return " ".join(lines.split())


def test_every_block_is_of_a_kind_that_is_tested():
    kinds = {"python", "console", "sh", "text", "{toctree}", "{eval-rst}"}
    assert {block.language for block in blocks()} == kinds
    assert len(blocks("python")) > 20


def test_the_first_commands_of_both_front_pages_are_the_makefiles_two():
    for page in ("README.md", "docs/index.md"):
        first = next(block for block in blocks() if block.page == page)
        assert first.language == "console"
        assert first.text == "$ make demo\n$ make test\n"


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_the_shell_lines_are_the_makefiles_or_would_be_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    both, torchrun = _would_run("demo", "test"), get_args_parser()
    shutil.copy(ROOT / "docs" / "bench.json", folder / "old.json")
    monkeypatch.chdir(folder)
    lines = [line for block in blocks("sh") for line in block.text.splitlines()]
    assert len(lines) >= 12
    for line in lines:
        program, *arguments = shlex.split(line, comments=True)
        if program == "torchrun":  # whose own options come first
            own = torchrun.parse_args(arguments)
            assert own.no_python
            program, arguments = own.training_script, own.training_script_args
        if " ".join(line.split()) in both:
            continue
        if program == "make":
            assert _would_run(*arguments)
        elif program == "resnet-twins":
            subcommand = get_command(app).commands[arguments[0]]  # type: ignore
            subcommand.make_context(arguments[0], arguments[1:])  # knows the options
        elif program.endswith("pip"):
            named = re.fullmatch(r"\.\[([\w,-]+)\]", arguments[-1])
            assert named, line
            assert set(named[1].split(",")) <= set(project["optional-dependencies"])
            assert set(arguments[:-1]) <= {"install", "-e", "-c", "constraints.txt"}
        else:
            assert arguments[:2] == ["-m", "benchmarks"], line
            with pytest.raises(SystemExit) as exit:
                benchmarks.main([*arguments[2:], "--list"])
            assert not exit.value.code, capsys.readouterr().err


def test_the_extras_are_all_explained():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs" / "install.md").read_text("utf-8")
    for extra in project["optional-dependencies"]:
        assert f"`{extra}`" in page


def _cases(language: str) -> list:
    """Each page with its quick blocks; and, where it has others, with all."""
    cases = []
    for page in PAGES:
        name = page.relative_to(ROOT).as_posix()
        mine = [block for block in blocks(language) if block.page == name]
        quick = [block for block in mine if not block.slow]
        if quick:
            cases.append(pytest.param(quick, id=name))
        if len(quick) < len(mine):
            cases.append(pytest.param(mine, id=f"{name}-all", marks=pytest.mark.slow))
    return cases


@pytest.mark.parametrize("shown", _cases("console"))
def test_every_command_prints_what_is_shown(folder: Path, shown: list[Block]):
    for command, expected in [call for block in shown for call in _calls(block)]:
        if command in ("make demo", "make test"):
            continue
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


Result = Mapping[str, str]

_PUBLISHED = r'\bweights="(?:DEFAULT|timm:[^"]+|hf://[^"]+)"'


def _python(folder: Path, chosen: list[Block]) -> list[Result]:
    """Runs blocks in one process, and returns what each did."""
    # The published weights are not to be had here; all else stays.
    asked = [
        (it.page, it.line, re.sub(_PUBLISHED, 'weights="random"', it.text))
        for it in chosen
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.pages"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        input=json.dumps(asked),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def quick(
    tmp_path_factory: pytest.TempPathFactory, photo: Path, resnet50: Path
) -> Mapping[Block, Result]:
    """What the quick blocks of all pages did: frameworks are loaded once for all."""
    folder = tmp_path_factory.mktemp("python")
    _furnish(folder, photo, resnet50)
    cases = [case.values[0] for case in _cases("python") if not case.marks]
    chosen = [block for shown in cases for block in shown]
    return dict(zip(chosen, _python(folder, chosen), strict=True))


@pytest.mark.parametrize("shown", _cases("python"))
def test_the_python_of_a_page_runs_and_prints_what_is_shown(
    quick: Mapping[Block, Result], folder: Path, shown: list[Block]
):
    if any(block.slow for block in shown):
        results = _python(folder, shown)
    else:
        results = [quick[block] for block in shown]
    for block, result in zip(shown, results, strict=True):
        assert not result["error"], result["error"]
        said = re.findall(r"^ *print\(.*\)  # (.*)$", block.text, re.MULTILINE)
        expected = block.shown.splitlines() if block.shown else said
        if expected:
            assert result["out"].splitlines() == expected, (block.page, block.line)


def test_the_tables_are_those_of_the_runs_json(tmp_path: Path):
    copy = Path(shutil.copy(ROOT / "README.md", tmp_path))
    bench_report.update_short(bench_report.JSON, copy)
    assert copy.read_text("utf-8") == README
    everything = tables.markdown(file.read(bench_report.JSON))
    assert everything in (ROOT / "docs" / "benchmarks.md").read_text("utf-8")


def test_the_demos_last_lines_have_the_modes_that_are_shown():
    from benchmarks import demo

    (block,) = blocks("text")
    modes = [re.split(r"  +", line)[0] for line in block.text.splitlines()[1:]]
    source = Path(demo.__file__).read_text("utf-8")
    assert len(modes) == 3
    assert all(f'"{mode}"' in source for mode in modes)


def test_the_links_lead_somewhere():
    for page in PAGES:
        links = re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", page.read_text("utf-8"))
        assert all((page.parent / link).exists() for link in links), page
    assert len(re.findall(r"\]\(docs/", README)) > 10


def test_contributing_is_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 45
