"""Which entries of a file are meant: found, chosen, renamed, before any is judged."""

from __future__ import annotations

import argparse
import collections
import datetime
import pathlib
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import parity
from parity.files import reading
from parity.weights.dialects.recognising import OWN, Recognised
from parity.weights.digest import differing_bits
from parity.weights.twins import entries_of
from resnet_spec import ResNetConfig, get_config
from tests.support.corpus import refused

BASIC = ResNetConfig(block="basic", layers=(2, 1, 3), widths=(8, 16, 24), num_classes=7)


def state_of(config: ResNetConfig) -> dict[str, np.ndarray]:
    return parity.random_state(entries_of(config), seed=3)


@pytest.mark.parametrize("name", ["net", "anything"])
def test_the_only_state_in_a_file_is_taken_whatever_its_name(
    path: Path, tensors, arrays, name: str
):
    torch.save({name: tensors, "epoch": 3}, path)
    state = parity.load(path)
    assert differing_bits(state, arrays) == {}
    assert f"took the state from the entry '{name}'" in state.notes


def test_what_people_save_beside_weights_is_skipped(path: Path, tensors, arrays):
    beside = {
        "args": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("out")),
        "best": np.float64(0.9),
        "loss": torch.tensor(0.5),
        "dtype": np.dtype("float32"),
        "seen": collections.defaultdict(int, {"a": 1}),
        "last": collections.deque([1, 2], maxlen=2),
        "at": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
        "path": pathlib.Path("a") / "b",
    }
    torch.save({"state_dict": tensors, **beside}, path)
    assert differing_bits(parity.load(path), arrays) == {}


def test_an_averaged_state_beside_the_state_is_offered(path: Path, tensors, arrays):
    averaged = {name: tensor + 1 for name, tensor in tensors.items()}
    torch.save({"state_dict": tensors, "state_dict_ema": averaged}, path)
    state = parity.load(path)
    assert differing_bits(state, arrays) == {}
    assert any("--key takes another: state_dict_ema" in note for note in state.notes)
    assert (
        parity.load(path, key="state_dict_ema")["fc.bias"][0] == averaged["fc.bias"][0]
    )


class _Laughs:
    """A text of 2**24 parts, if what it is made of is really called."""

    def __reduce__(self) -> Any:
        doubled: list[Any] = ["ha"]
        for _ in range(24):
            doubled = [doubled, doubled]
        return str, (doubled,)


def test_what_is_skipped_is_not_called(path: Path, tensors, arrays):
    torch.save({"state_dict": tensors, "laughs": _Laughs()}, path)
    tracemalloc.start()
    try:
        assert differing_bits(parity.load(path), arrays) == {}
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_a_pattern_that_leaves_nothing_out_is_said(path: Path, tensors):
    torch.save(tensors, path)
    notes = parity.load(path, ignore=["fc.*", "head.*"]).notes
    assert "left out as asked: fc.weight, fc.bias" in notes
    assert "nothing to ignore is like head.*" in notes


def test_two_names_that_a_prefix_would_make_one_are_refused(path: Path, tensors):
    torch.save(tensors | {"net.a": torch.ones(1), "net/a": torch.ones(1)}, path)
    refused(path, "the same behind 'net'", prefix="net")


def test_what_normalises_images_is_not_dropped_unasked(path: Path, tensors):
    state = {f"model.{name}": tensor for name, tensor in tensors.items()}
    torch.save(state | {"normalizer.mean": torch.zeros(3)}, path)
    refused(path, "normalizer.mean", "--ignore 'normalizer*'")


# --- selection ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def net() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in state_of(BASIC).items()}


def under(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def headless(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: v for name, v in state.items() if not name.startswith("fc.")}


EXTRA = torch.zeros(3)


@pytest.mark.parametrize(
    ("wrap", "asked"),
    [
        (
            lambda s: {
                "state_dict": under("model.", s),
                "pytorch-lightning_version": "2",
            },
            {},
        ),
        (lambda s: under("module._orig_mod.encoder.net.", s), {}),
        (lambda s: under("module.", s) | {"n_averaged": torch.tensor(3)}, {}),
        (lambda s: {"net": under("module.", s), "acc": 93.1, "epoch": 4}, {}),
        (
            lambda s: under("net.", s) | {"loss.weight": EXTRA},
            {"ignore": "loss.*"},
        ),
        (
            lambda s: under("teacher.body.", s) | under("student.body.", s),
            {"prefix": "teacher.body"},
        ),
        (
            lambda s: under("trunk_", s) | {"head_.bias": EXTRA},
            {"rename": "trunk_*=*", "ignore": ["head_*"]},
        ),
        (lambda s: {"a": {"b": under("model.", s)}}, {"key": "a.b"}),
    ],
)
def test_people_find_their_network(
    tmp_path: Path, net: dict[str, Any], wrap: Any, asked: dict[str, Any]
):
    path = tmp_path / "weights.pth"
    torch.save(wrap(net), path)
    state = parity.load(path, **asked)
    assert differing_bits(state, state_of(BASIC)) == {}
    done = parity.convert(path, tmp_path / "out.safetensors", **asked)
    assert done.config == BASIC


@pytest.mark.parametrize("beside", ["queue", "queue_ptr", "prototypes.weight"])
def test_what_names_itself_no_weight_is_left_out(
    tmp_path: Path, net: dict[str, Any], beside: str
):
    path = tmp_path / "weights.pth"
    value = torch.zeros(2, dtype=torch.int64) if beside == "queue_ptr" else EXTRA
    torch.save(
        {"state_dict": under("module.", headless(net)) | {f"module.{beside}": value}},
        path,
    )
    state = parity.load(path)
    assert set(state) == set(headless(net))
    assert any("left out" in note and beside in note for note in state.notes)


def test_of_several_networks_the_error_says_what_each_is(tmp_path: Path, net: Any):
    path = tmp_path / "weights.pth"
    torch.save(under("q.", net) | under("k.", headless(net)), path)
    said = refused(path, "has several networks", "under 'q.' it is", "under 'k.' it is")
    assert "without a head" in str(said)
    assert "--prefix q" in str(said)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"prefix": "encoder"},
            "no names that begin with 'encoder'. They begin with conv1",
        ),
        ({"ignore": "*"}, "nothing left"),
        ({"key": "ema"}, "no state under the key 'ema'"),
        ({"rename": "bn1.*=conv1.*"}, "twice"),
    ],
)
def test_a_choice_that_leads_nowhere_is_one_line(
    tmp_path: Path, net: Any, asked: dict[str, Any], said: str
):
    path = tmp_path / "weights.pth"
    torch.save(net, path)
    refused(path, said, **asked)


@pytest.mark.parametrize("rename", ["", "a", "=b", "a=*"])
def test_a_rule_that_is_none_is_refused(rename: str):
    with pytest.raises(ValueError, match="write it as OLD=NEW"):
        parity.load("nowhere.pth", rename=[rename])


def test_notes_count_one_and_many(path: Path, tensors):
    inner = {f"net.{name}": tensor for name, tensor in tensors.items()}
    for more in (1, 2):
        others = {f"other{i}.weight": torch.ones(1) for i in range(more)}
        torch.save(inner | others, path)
        said = f"left out {'1 other' if more == 1 else '2 others'}"
        assert any(n.endswith(said) for n in parity.load(path, prefix="net").notes)
    torch.save(tensors, path)
    for rule, many in (("fc.bias=fc.bias", "1 entry"), ("fc.*=fc.*", "2 entries")):
        notes = parity.load(path, rename=rule).notes
        assert f"renamed {many} as {rule}" in notes


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet18", "resnetblur18, which has the"),
        ("resnet50d", "resnetblur50d or resnetaa50d, which have the"),
    ],
)
def test_of_networks_with_the_same_names_all_are_named(name: str, said: str):
    config = get_config(name)
    arrays = {
        name: np.broadcast_to(np.float32(0), entry.shape)
        for name, entry in entries_of(config).items()
    }
    (note,) = reading._assumed(Recognised(arrays, OWN, None, (), ()), "w.pth")
    assert note.endswith(f"that it is not timm's {said} same names")
