"""The containers of other libraries: their own files read, ours read by them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.serialization
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest
from flax import nnx

import parity
from parity.errors import CheckpointError, OutputError
from parity.files import msgpack_format, opening, writing
from parity.files.content import own_metadata, written_metadata
from parity.files.trees import flat, nested
from parity.weights.digest import differing_bits
from parity.weights.state import as_array
from tests.support.containers import HALF, LAYERS, TREE

NAMES = pytest.mark.parametrize(
    ("name", "format", "arrays"),
    [
        ("w.npz", None, TREE),
        ("w.msgpack", None, TREE | HALF),
        ("w", "orbax", TREE | HALF),
        ("w.h5", None, LAYERS),
        ("w.weights.h5", None, LAYERS),
        ("w.safetensors", None, TREE | HALF),
        ("w.pth", None, TREE | HALF),
    ],
)


def test_hdf5_without_keras_names_gives_its_paths(tmp_path: Path):
    path = tmp_path / "flaxmodels.h5"
    names = ("conv1/weight", "layer1/block0/bn1/mean", "fc/bias")
    with h5py.File(path, "w") as file:
        for number, name in enumerate(names):
            file[name] = np.full(3, number, ">f4")
            file.create_dataset(
                f"packed/{name}",
                data=np.full((7, 9), number, np.float32),
                chunks=(4, 4),
                compression="gzip",
                shuffle=True,
                fletcher32=True,
            )
    content = opening.read(path)
    assert content.kind == "HDF5"
    for number, name in enumerate(names):
        assert content.value[name].tolist() == [number] * 3
        assert content.value[name].dtype == np.dtype("f4")
        assert (content.value[f"packed/{name}"] == number).all()
        assert content.value[f"packed/{name}"].shape == (7, 9)


@NAMES
def test_what_is_written_is_read_back_bit_for_bit(
    tmp_path: Path, name: str, format: Any, arrays: dict[str, np.ndarray]
):
    path = tmp_path / name
    metadata = written_metadata({"tool": "resnet-twins 0"})
    form = format or writing.format_of(path)
    writing.write(path, arrays, metadata, form)
    content = opening.read(path)
    found = {leaf: as_array(value) for leaf, value in content.value.items()}
    assert differing_bits(found, arrays) == {}
    assert not content.notes
    room = content.kind not in ("npz", "msgpack", "Orbax")
    assert content.metadata == (own_metadata(metadata) if room else None)
    assert len(content.sha256) == 64
    before = content.sha256
    with pytest.raises(OutputError, match=r"exists\. Use --force"):
        writing.write(path, arrays, None, form)
    writing.write(path, arrays, None, form, overwrite=True)
    assert opening.read(path).metadata is None
    assert list(tmp_path.iterdir()) == [path]
    if content.kind in ("npz", "msgpack"):
        assert opening.read(path).sha256 == before


@pytest.mark.parametrize("name", ["w.npz", "w.msgpack", "w.h5", "w.weights.h5"])
def test_a_full_disk_leaves_what_stood_there(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / name
    path.write_text("precious")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "sync", full)
    arrays = LAYERS if "h5" in name else TREE
    with pytest.raises(OutputError, match="No space left"):
        writing.write(path, arrays, None, writing.format_of(path), overwrite=True)
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


def test_a_state_of_a_twin_goes_into_every_container_that_has_its_names(
    tmp_path: Path, arrays: dict[str, np.ndarray]
):
    for name, format in (("a.npz", None), ("a.msgpack", None), ("a", "orbax")):
        format: Any
        parity.save(tmp_path / name, arrays, format=format)
        found = parity.load(tmp_path / name)
        assert differing_bits(found, arrays) == {}
        assert found.sha256
        unverified = any("unverified" in note for note in found.notes)
        assert unverified == (name != "a.npz")
    with pytest.raises(CheckpointError, match=r"a\.h5: .* as keras: conv_bias is"):
        parity.save(tmp_path / "a.h5", arrays)
    with pytest.raises(OutputError, match=r"\.keras.*Write \.weights\.h5"):
        parity.save(tmp_path / "a.keras", arrays)
    with pytest.raises(OutputError, match="names no format"):
        parity.save(tmp_path / "a", arrays)


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.npz", "npz"),
        ("A.NPZ", "npz"),
        ("a.msgpack", "msgpack"),
        ("a.h5", "h5"),
        ("a.weights.h5", "weights.h5"),
        ("a.Weights.H5", "weights.h5"),
        ("weights.h5", "h5"),
        ("a.b.pth", "pth"),
    ],
)
def test_the_longest_extension_tells_the_format(name: str, format: str):
    assert writing.format_of(name) == format


def test_names_that_no_tree_can_have_are_refused():
    assert flat(nested(TREE)).keys() == TREE.keys()
    zero = np.zeros(1)
    for names in (("a", "a/b"), ("a/b", "a"), ("a//b",), ("/a",), ("a/",)):
        with pytest.raises(CheckpointError, match=r"a branch|empty part"):
            nested(dict.fromkeys(names, zero))
    with pytest.raises(CheckpointError, match="two entries that come to the name"):
        flat({"a": {"b": zero}, "a/b": zero})


def test_numpy_reads_our_archive_and_we_numpys(tmp_path: Path):
    path = tmp_path / "w.npz"
    writing.write(path, TREE, None, "npz")
    with np.load(path, allow_pickle=False) as found:
        assert differing_bits(dict(found), TREE) == {}
    for save in (np.savez, np.savez_compressed):
        save(path, **TREE, **HALF)  # type: ignore[arg-type]
        content = opening.read(path)
        assert differing_bits(content.value, TREE | HALF) == {}
        assert content.checked
    np.savez(path, a=np.arange(3, dtype=">f4"))
    assert opening.read(path).value["a"].dtype == np.dtype("f4")
    with pytest.raises(CheckpointError, match=r"half is bfloat16, which npz does not"):
        writing.write(path, HALF, None, "npz", overwrite=True)


def test_flax_reads_our_bytes_and_we_flaxs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "w.msgpack"
    arrays = TREE | HALF | {"large/" + "x" * n: np.ones(n) for n in (40, 300, 9000)}
    for size in (2**30, 1000):  # the last are split
        monkeypatch.setattr(msgpack_format, "_CHUNK", size)
        monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", size)
        writing.write(path, arrays, None, "msgpack", overwrite=True)
        theirs = flax.serialization.to_bytes(nested(arrays))
        assert path.read_bytes() == theirs
        found = flax.serialization.msgpack_restore(path.read_bytes())
        assert differing_bits(flat(found), arrays) == {}
        assert differing_bits(opening.read(path).value, arrays) == {}


def test_an_old_training_state_keeps_its_branches(tmp_path: Path):
    path = tmp_path / "state.msgpack"
    state = {
        "optimizer": {"target": {"conv": {"kernel": jnp.ones((2, 3))}}, "state": [1]},
        "step": 9,
        "scale": np.float32(3),
        "empty": {},
        "none": None,
    }
    path.write_bytes(flax.serialization.to_bytes(state))
    found = opening.read(path).value
    assert found["optimizer/target/conv/kernel"].shape == (2, 3)
    assert found["optimizer/state/0"] == 1
    assert found["step"] == 9
    assert found["scale"] == 3
    assert found["none"] is None
    assert "empty" not in found


def _standard(path: Path, tree: Any) -> None:
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
        checkpointer.wait_until_finished()


def _pytree(path: Path, tree: Any, **settings: Any) -> None:
    handler = orbax.checkpoint.PyTreeCheckpointHandler(**settings)
    with orbax.checkpoint.Checkpointer(handler) as checkpointer:
        checkpointer.save(path, args=orbax.checkpoint.args.PyTreeSave(tree))


@pytest.mark.parametrize(
    "save",
    [
        _standard,
        _pytree,
        lambda path, tree: _pytree(path, tree, use_ocdbt=False),
        lambda path, tree: _pytree(path, tree, use_zarr3=True),
    ],
    ids=["standard", "pytree", "without-ocdbt", "zarr3"],
)
def test_folders_of_orbax_are_read(tmp_path: Path, save: Callable[[Path, Any], None]):
    arrays = TREE | HALF | {"zeros": np.zeros((2, 5), np.float32)}
    tree = jax.tree.map(
        lambda array: array if array.dtype == np.float64 else jnp.asarray(array),
        nested({name: array for name, array in arrays.items() if name != "step"}),
    )
    save(tmp_path / "w", {**tree, "step": np.array(7), "list": [np.ones(2), {}]})
    content = opening.read(tmp_path / "w")
    assert content.kind == "Orbax"
    expected = {**arrays, "list/0": np.ones(2)}
    assert differing_bits(content.value, expected) == {}
    assert content.size > 0
    again = opening.read(tmp_path / "w")
    assert again.sha256 == content.sha256


def test_variables_of_nnx_lose_their_level(tmp_path: Path):
    state = nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    _standard(tmp_path / "pure", nnx.to_pure_dict(state))
    _standard(tmp_path / "state", state)
    for name in ("pure", "state"):
        assert set(opening.read(tmp_path / name).value) == {"kernel", "bias"}
    text = (tmp_path / "state" / "_METADATA").read_text()
    assert '"value"' in text


def test_the_one_step_of_a_manager_is_found_and_of_several_none(tmp_path: Path):
    path = tmp_path / "run"
    with orbax.checkpoint.CheckpointManager(path) as manager:
        manager.save(7, args=orbax.checkpoint.args.StandardSave(nested(TREE)))
        manager.wait_until_finished()
        for folder in (path, path / "7", path / "7" / "default"):
            assert differing_bits(opening.read(folder).value, TREE) == {}
        manager.save(9, args=orbax.checkpoint.args.StandardSave(nested(TREE)))
        manager.wait_until_finished()
    with pytest.raises(CheckpointError, match=r"7/default, 9/default\. Name one"):
        opening.read(path)
    with pytest.raises(CheckpointError, match=r"run: has 2 steps"):
        parity.load(path)


def test_orbax_reads_our_folder(tmp_path: Path):
    path = tmp_path / "w"
    writing.write(path, TREE | HALF, None, "orbax")
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore(path)
    assert differing_bits(flat(found), TREE | HALF) == {}
    target = {"params": {"half": jnp.zeros(5, jnp.bfloat16)}}
    writing.write(path, HALF, None, "orbax", overwrite=True)
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        onto = checkpointer.restore(path, target)
    assert isinstance(onto["params"]["half"], jax.Array)


def test_only_a_folder_of_orbax_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "w"
    path.mkdir()
    (path / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="a directory that Orbax did not make"):
        writing.write(path, TREE, None, "orbax", overwrite=True)
    assert (path / "thesis.txt").read_text() == "precious"
    (path / "thesis.txt").unlink()
    path.rmdir()
    path.write_text("a file")
    with pytest.raises(OutputError, match="is no directory"):
        writing.write(path, TREE, None, "orbax", overwrite=True)
    path.unlink()
    writing.write(path, TREE, None, "orbax")

    def corrupt(temporary: Path, arrays: dict[str, np.ndarray], metadata: Any) -> None:
        write(temporary, {"step": np.array(8)}, metadata)

    write = writing._WRITERS["orbax"]
    monkeypatch.setitem(writing._WRITERS, "orbax", corrupt)
    with pytest.raises(OutputError, match="not read back as written"):
        writing.write(path, TREE, None, "orbax", overwrite=True)
    assert differing_bits(opening.read(path).value, TREE) == {}
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OutputError, match="there is no folder for it"):
        writing.write(tmp_path / "a" / "b", TREE, None, "orbax")


def test_what_a_killed_process_left_of_a_folder_goes_at_the_next_write(tmp_path: Path):
    left = tmp_path / ".resnet-twins-0123456789abcdef.tmp"
    (left / "state" / "d").mkdir(parents=True)
    (left / "state" / "d" / "half").write_bytes(bytes(10))
    writing.write(tmp_path / "w.npz", TREE, None, "npz")
    assert [path.name for path in tmp_path.iterdir()] == ["w.npz"]


@pytest.mark.parametrize(
    ("library", "name", "extra"),
    [("h5py", "w.h5", "keras-files"), ("tensorstore", "w", "flax")],
)
def test_a_library_that_is_missing_is_named_with_its_extra(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    library: str,
    name: str,
    extra: str,
):
    path = tmp_path / name
    if library == "h5py":
        writing.write(path, LAYERS, None, "h5")
    else:
        writing.write(path, TREE, None, "orbax")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(CheckpointError, match=rf"{library}.*resnet-twins\[{extra}\]"):
        parity.load(path)


def test_a_name_that_lies_about_the_content_is_noted(tmp_path: Path):
    path = tmp_path / "w.msgpack"
    writing.write(tmp_path / "w.npz", TREE, None, "npz")
    (tmp_path / "w.npz").rename(path)
    assert opening.read(path).notes == ["the content is npz, whatever the name says"]
