"""A network in Flax's msgpack and Orbax's folders, with one thing wrong in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.serialization
import numpy as np
import orbax.checkpoint
import pytest

import parity
from parity.errors import CheckpointError
from parity.files import opening
from parity.files.trees import nested
from parity.weights.digest import differing_bits
from tests.support.networks import TINY, random_torch

Tree = dict[str, np.ndarray]
KERNEL = "layer1/0/conv1/kernel"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """The Flax twin's state, under names that slashes part; not to be changed."""
    path = tmp_path_factory.mktemp("tree") / "w.msgpack"
    parity.save(path, random_torch(TINY))
    return dict(opening.read(path).value)


def _msgpack(tree: Tree, path: Path) -> None:
    path.write_bytes(flax.serialization.to_bytes(nested(tree)))


def _orbax(tree: Tree, path: Path, **settings: Any) -> None:
    shutil.rmtree(path, ignore_errors=True)
    handler = orbax.checkpoint.PyTreeCheckpointHandler(**settings)
    with orbax.checkpoint.Checkpointer(handler) as checkpointer:
        args = orbax.checkpoint.args.PyTreeSave(nested(tree))
        checkpointer.save(path, args=args)


CONTAINERS = pytest.mark.parametrize("write", [_msgpack, _orbax])


def _said(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        parity.convert(path, path.with_name("out.npz"))
    assert [*path.parent.iterdir()] == [path]
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert text.isprintable()
    assert ". " in text
    return text


@CONTAINERS
@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (
            KERNEL,
            lambda a: a[..., :4],
            "layer1.0.conv1.weight (4, 8, 3, 3), expected (8, 8, 3, 3)",
        ),
        (
            KERNEL,
            lambda a: a.reshape(9, -1),
            "layer1.0.conv1.weight (9, 64), expected (8, 8, 3, 3)",
        ),
        (
            "layer1/0/conv2/kernel",
            lambda a: a.reshape(9, -1),
            "layer1.0.conv2.kernel is (9, 64) beside layer1.0.bn2.scale (8,)",
        ),
        (
            "layer2/1/conv2/kernel",
            lambda a: a[1:],
            "layer2.1.conv2.weight (16, 16, 2, 3), expected (16, 16, 3, 3)",
        ),
        (
            "layer2/0/conv1/kernel",
            lambda a: np.ascontiguousarray(a.transpose(3, 2, 0, 1)),
            "layer2.0.conv1.weight (3, 3, 16, 8), expected (16, 8, 3, 3)",
        ),
        ("fc/kernel", lambda a: a.T.copy(), "fc.weight (16, 7), expected (7, 16)"),
        ("fc/bias", lambda a: a[:1], "fc.bias (1,), expected (7,)"),
        ("bn1/scale", lambda a: a.reshape(2, 4), "bn1.weight (2, 4), expected (8,)"),
        ("bn1/var", lambda a: a[None], "bn1.running_var (1, 8), expected (8,)"),
    ],
)
def test_rows_96_and_97_a_wrong_shape_is_named(
    tmp_path: Path, tree: Tree, write: Any, name: str, change: Any, said: str
):
    write({**tree, name: change(tree[name])}, tmp_path / "w.msgpack")
    assert said in _said(tmp_path / "w.msgpack")


@CONTAINERS
@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint8", "bool"])
def test_row_96_floats_that_became_integers_are_not_cast_back(
    tmp_path: Path, tree: Tree, write: Any, dtype: str
):
    path = tmp_path / "w"
    write({**tree, KERNEL: np.ones((3, 3, 8, 8), dtype)}, path)
    assert f"{KERNEL} is {dtype}, not one of float16" in _said(path)
    write({**tree, KERNEL: np.ones((3, 3, 8, 8), np.int64)}, path)
    names = ("integers where weights should be: layer1.0.conv1.weight",)
    assert any(name in _said(path) for name in names)


@CONTAINERS
@pytest.mark.parametrize("extra", ["fc/extra", "other/kernel", "extra"])
def test_row_97_an_entry_more_is_named_with_the_way_out(
    tmp_path: Path, tree: Tree, write: Any, extra: str
):
    path = tmp_path / "w"
    write({**tree, extra: np.ones(3, np.float32)}, path)
    said = _said(path)
    assert (
        f"(as it is): {extra.replace('/', '.')}. Leave these out with --ignore" in said
    )
    state = parity.load(path, ignore=extra)
    assert differing_bits(state, parity.state_dict(random_torch(TINY))) == {}


@CONTAINERS
@pytest.mark.parametrize("name", ["fc/bias", "bn1/scale", KERNEL])
def test_an_entry_less_is_named(tmp_path: Path, tree: Tree, write: Any, name: str):
    path = tmp_path / "w"
    write({key: array for key, array in tree.items() if key != name}, path)
    said = _said(path)
    if name != KERNEL:  # without its first kernel it has no layers
        assert f"as nnx {name.replace('/', '.')} is missing" in said


def _flipped(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_row_97_a_flipped_bit_in_a_msgpack_is_said_to_be_possible(
    tmp_path: Path, tree: Tree
):
    # Nothing in it has a checksum: a name that changed is refused, a value cannot be
    # told from a right one, and is said to be unverified.
    path, target = tmp_path / "w.msgpack", tmp_path / "out.safetensors"
    _msgpack(tree, path)
    data = path.read_bytes()
    value = data.find(tree[KERNEL].tobytes())
    _flipped(path, value)
    done = parity.convert(path, target)
    assert "it has no checksums; its values are unverified" in done.notes
    found = parity.load(target)
    expected = parity.state_dict(random_torch(TINY))
    assert [*differing_bits(found, expected)] == ["layer1.0.conv1.weight"]
    target.unlink()
    path.write_bytes(data)
    _flipped(path, data.find(b"downsample") + 3)
    assert "layer2.0.dowosample.0.kernel" in _said(path)


@pytest.mark.parametrize("settings", [{}, {"use_ocdbt": False}, {"use_zarr3": True}])
def test_rows_95_and_96_a_folder_that_lacks_a_file_is_refused_or_whole(
    tmp_path: Path, tree: Tree, settings: dict[str, Any]
):
    path = tmp_path / "w"
    _orbax(tree, path, **settings)
    whole = parity.load(path)
    files = [found for found in sorted(path.rglob("*")) if found.is_file()]
    said: dict[str, str] = {}
    for file in files:
        data = file.read_bytes()
        file.unlink()
        try:
            assert (
                differing_bits(parity.load(path), whole) == {}
            )  # of what nobody reads
        except CheckpointError as error:
            said[str(file.relative_to(path))] = str(error)
        file.write_bytes(data)
    assert "without _METADATA: it is not complete. Copy all of it" in said["_METADATA"]
    others = [text for name, text in said.items() if name != "_METADATA"]
    assert len(others) >= 3
    assert all("is missing in it, or damaged" in text for text in others)
    for name in ("manifest.ocdbt", "layer1.0.conv1.kernel/0.0.0.0"):
        assert (name in said) == (path / name).exists()


def test_row_95_a_step_that_lacks_its_index_is_named(tmp_path: Path, tree: Tree):
    path = tmp_path / "run" / "7" / "default"
    path.parent.mkdir(parents=True)
    _orbax(tree, path)
    assert parity.load(tmp_path / "run")
    (path / "_METADATA").unlink()
    assert "without 7/default/_METADATA: it is not" in _said(tmp_path / "run")
    path.rename(path.with_name("default.orbax-checkpoint-tmp-3"))
    assert "was not completed by Orbax. Use another step" in _said(tmp_path / "run")


@pytest.mark.parametrize("settings", [{}, {"use_ocdbt": False}])
def test_row_96_flipped_bits_in_a_folder_are_refused_or_said_to_be_possible(
    tmp_path: Path, tree: Tree, settings: dict[str, Any]
):
    path = tmp_path / "w"
    _orbax(tree, path, **settings)
    whole = parity.load(path)
    outcomes = {"same": 0, "refused": 0, "unverified": 0}
    rng = np.random.default_rng(0)
    files = [found for found in sorted(path.rglob("*")) if found.is_file()]
    for file in files[:: -(-len(files) // 20)]:
        data = file.read_bytes()
        for place in rng.integers(len(data), size=4):
            _flipped(file, place)
            outcomes[_outcome(path, whole)] += 1
            file.write_bytes(data)
    assert outcomes["refused"] > 5
    assert sum(outcomes.values()) > 30


def _outcome(path: Path, whole: parity.StateDict) -> str:
    try:
        state = parity.load(path)
    except CheckpointError as error:
        assert str(error).isprintable()  # noqa: PT017  either outcome is right
        return "refused"
    assert "it has no checksums; its values are unverified" in state.notes
    return "unverified" if differing_bits(state, whole) else "same"


WRITERS: dict[str, Callable[..., None]] = {"w.msgpack": _msgpack, "w": _orbax}


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_right_in_them_is_read_bit_for_bit(
    tmp_path: Path, tree: Tree, name: str
):
    WRITERS[name](tree, tmp_path / name)
    expected = parity.state_dict(random_torch(TINY))
    assert differing_bits(parity.load(tmp_path / name), expected) == {}
