"""A framework that is not installed: each command names the extra that brings it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import parity
from tests.support.networks import TINY, random_torch

# As if it were not there: neither found nor imported. One process for all commands.
SCRIPT = """
import contextlib, importlib.util, io, json, sys

hidden = sys.argv[1].split(",")
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: (
    None if name.partition(".")[0] in hidden else real(name, *rest)
)
sys.modules |= dict.fromkeys(hidden)
from resnet_cli.main import main

found = []
for arguments in json.loads(sys.argv[2]):
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            main(arguments)
    except SystemExit as error:
        found.append([error.code, said.getvalue()])
json.dump(found, sys.stdout)
"""

COMMANDS = {
    "torch": (
        ("check", "resnet18"),
        ("check", "--self-test"),
        ("convert", "{weights}", "{out}.pth"),
        ("predict", "{photo}", "--weights", "random", "--backend", "torch"),
        ("train", "{data}", "--out", "{out}", "--batch", "8", "--backend", "torch"),
        ("evaluate", "{data}", "--weights", "{weights}", "--backend", "torch"),
        ("export", "resnet18", "{out}.pt2", "--weights", "random"),
    ),
    "flax": (
        ("check", "resnet18"),
        ("check", "--self-test"),
        ("predict", "{photo}", "--weights", "random", "--backend", "flax"),
        ("train", "{data}", "--out", "{out}", "--batch", "8", "--backend", "flax"),
        ("evaluate", "{data}", "--weights", "{weights}", "--backend", "flax"),
        ("export", "resnet18", "{out}.stablehlo", "--weights", "random"),
    ),
}


@pytest.mark.parametrize("extra", COMMANDS)
def test_every_command_names_the_extra_that_it_needs(
    extra: str, tmp_path: Path, photo: Path, folder_of_images: Path
):
    weights = tmp_path / "weights.safetensors"
    parity.save(weights, random_torch(TINY), config=TINY)
    places = {
        "weights": weights,
        "photo": photo,
        "data": folder_of_images,
        "out": tmp_path / "out",
    }
    commands = [[part.format(**places) for part in one] for one in COMMANDS[extra]]
    hidden = "torch" if extra == "torch" else "flax,jax,jaxlib"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, hidden, json.dumps(commands)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == len(commands)
    for command, (code, said) in zip(commands, found, strict=True):
        assert code not in (None, 0, 1, 70), (command, said)
        assert f"pip install 'resnet-twins[{extra}]'" in said, (command, said)
        assert len(said.strip().splitlines()) == 1, (command, said)
    assert [path.name for path in tmp_path.iterdir()] == [weights.name]
