"""Imports only ever point down: every file's, read against one table."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FLOORS: dict[str, int] = {
    "resnet_spec": 1,
    "parity.errors": 1,
    "parity.text": 1,
    "parity.inputs": 1,
    "parity.machine": 1,
    "resnet_torch": 2,
    "resnet_flax": 2,
    "resnet_onnx": 2,
    "parity.images": 2,
    "parity.weights": 3,
    "parity.exports": 4,
    "parity.files": 4,
    "parity.running": 4,
    "parity.judging": 5,
    "resnet_training": 5,
    "parity.mutants": 6,
    "parity.reports": 6,
    "parity.exporting": 6,
    "parity.quantizing": 6,
    "parity.recipe": 6,
    "parity": 7,
    "resnet_cli": 7,
    "benchmarks": 8,
    "tests": 9,
}
"""Rooms, by their floor; the longest name that begins a module's is its room."""

APART = [
    {"resnet_torch", "resnet_flax"},
    {"parity.files", "parity.running"},
    {"parity.files", "parity.exports"},
    {"parity.running", "parity.exports"},
    {"parity.judging", "parity.files"},
]
"""Rooms that do not know each other."""

FOREIGN = {
    "resnet_torch": {"jax", "flax", "parity"},
    "resnet_flax": {"torch", "parity"},
    "resnet_onnx": {"torch", "jax", "flax", "parity"},
}


def _files() -> list[Path]:
    return [
        path
        for package in dict.fromkeys(name.partition(".")[0] for name in FLOORS)
        for path in sorted((ROOT / package).rglob("*.py"))
    ]


def _module(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {_module(path): path for path in _files()}


def _room(module: str) -> str:
    return max((r for r in FLOORS if f"{module}.".startswith(f"{r}.")), key=len)


def _imports(path: Path) -> Iterator[str]:
    """Yields what a file imports anywhere in it, for types too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where they point"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else str(node.module)


def _own(path: Path) -> list[str]:
    return [name for name in _imports(path) if name.partition(".")[0] in FLOORS]


@pytest.mark.parametrize("module", MODULES)
def test_what_a_file_imports_is_on_its_floor_or_below(module: str):
    room = _room(module)
    for name in _own(MODULES[module]):
        other = _room(name)
        assert FLOORS[other] <= FLOORS[room], f"{module} imports {name}, above it"
        for rooms in APART:
            assert not (room != other and {room, other} <= rooms), f"{module}: {name}"
    packages = {name.partition(".")[0] for name in _imports(MODULES[module])}
    assert not packages & FOREIGN.get(room, set())
    if room == "resnet_spec":
        assert packages <= {room, *sys.stdlib_module_names}


def test_no_file_imports_itself_by_way_of_others():
    below = {module: set(_own(path)) for module, path in MODULES.items()}
    while leaves := [m for m, names in below.items() if not names & below.keys()]:
        for module in leaves:
            del below[module]
    assert not below, f"in a circle, or above one: {sorted(below)}"


def test_nothing_imports_the_benchmarks_or_the_command_but_they_and_the_tests():
    for module, path in MODULES.items():
        for name in _own(path):
            if name.startswith(("benchmarks", "resnet_cli")):
                assert module.startswith(("benchmarks", "resnet_cli", "tests")), module


@pytest.mark.parametrize(
    "package",
    [
        *("resnet_spec", "resnet_onnx", "resnet_torch", "resnet_flax"),
        *("parity", "resnet_training"),
    ],
)
def test_no_exported_name_hides_a_module(package: str):
    tree = ast.parse((ROOT / package / "__init__.py").read_text("utf-8"))
    exported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    hidden = {name for name in exported if f"{package}.{name}" in MODULES}
    assert not hidden


def test_every_package_is_installed():
    packages = {
        _module(path)
        for path in MODULES.values()
        if path.name == "__init__.py"
        and not _module(path).startswith(("benchmarks", "tests"))
    }
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    listed = text.partition("packages = [")[2].partition("]")[0]
    assert set(listed.replace('"', "").replace(",", "").split()) == packages
