"""Which network is meant, and which entries of a file: said to the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import parity
from parity.weights.digest import differing_bits
from parity.weights.twins import entries_of
from resnet_spec import get_config
from tests.support.command import Called

SMALL = "cifar_resnet20"


def tensors(name: str, seed: int = 3) -> dict[str, torch.Tensor]:
    state = parity.random_state(entries_of(get_config(name)), seed=seed)
    return {n: torch.from_numpy(array) for n, array in state.items()}


def under(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {prefix + name: tensor for name, tensor in state.items()}


STRANGER = {"extra.weight": torch.ones(3)}

ASKED: dict[str, tuple[list[str], Any]] = {
    "prefix": (
        ["--prefix", "net"],
        lambda s, other: under("net.", s) | under("old.", other),
    ),
    "key": (["--key", "a.b"], lambda s, other: {"a": {"b": s}, "c": other, "d": other}),
    "ignore": (["--ignore", "extra.*"], lambda s, other: s | STRANGER),
    "rename": (["--rename", "trunk_*=*"], lambda s, other: under("trunk_", s)),
    "two rules": (
        ["--rename", "top.*=fc.*", "--rename", "stem.*=conv1.*"],
        lambda s, other: {
            n.replace("fc.", "top.").replace("conv1.", "stem.", not n.find("conv1")): t
            for n, t in s.items()
        },
    ),
}


@pytest.mark.parametrize("kind", ASKED)
def test_every_choice_is_taken_by_convert_and_predict(
    tmp_path: Path, call: Called, photo: Path, kind: str
):
    asked, wrapped = ASKED[kind]
    path, out = tmp_path / "theirs.pth", tmp_path / "out.pth"
    torch.save(wrapped(tensors(SMALL), tensors(SMALL, 4)), path)
    call.error("convert", path, out)
    call("convert", path, out, *asked)
    expected = parity.random_state(entries_of(get_config(SMALL)), seed=3)
    assert differing_bits(parity.load(out), expected) == {}
    call.error(*_predict(photo, path))
    tops = [
        json.loads(call(*_predict(photo, weights), "--json", *words)[0])["top"]
        for weights, words in ((path, asked), (out, []))
    ]
    assert tops[0] == tops[1]


def _predict(photo: Path, weights: Path) -> tuple[object, ...]:
    named = ("--model", SMALL, "--weights", weights)
    return ("predict", photo, *named, "--backend", "torch")


@pytest.fixture(scope="module")
def nameless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What may be timm's resnetblur50 as well as a resnet50."""
    path = tmp_path_factory.mktemp("nameless") / "weights.pth"
    torch.save(tensors("resnet50"), path)
    return path


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ((), True),
        (("--model", "resnet50"), False),
        (("--set", "anti_alias=blur"), False),
    ],
)
def test_predict_says_what_it_assumes_where_no_network_is_named(
    call: Called, nameless: Path, photo: Path, asked: Any, said: bool
):
    _, err = call("predict", photo, "--weights", nameless, "--backend", "torch", *asked)
    assert ("that it is not timm's resnetblur50 or resnetaa50" in err) == said
