"""The containers of other libraries: their own files read, ours read by them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.serialization
import h5py
import jax
import jax.numpy as jnp
import ml_dtypes
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

# Keras has one backend for a whole process, so it gets one of its own.
MAKE = """
import sys
import keras
import numpy as np

folder = sys.argv[1]
x = inputs = keras.Input((8, 9, 3))
x = keras.layers.ZeroPadding2D(1, name="conv1_pad")(x)
x = keras.layers.Conv2D(4, 3, name="conv1_conv")(x)
x = keras.layers.BatchNormalization(name="conv1_bn")(x)
x = keras.layers.Conv2D(5, 1, use_bias=False, name="conv2_block1_1_conv")(x)
x = keras.layers.BatchNormalization(scale=False, center=False, name="still_bn")(x)
x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
x = keras.layers.Dense(3, name="predictions")(x)
model = keras.Model(inputs, x, name="tiny")
rng = np.random.default_rng(0)
saved = {}
for layer in model.layers:
    for weight in layer.weights:
        weight.assign(rng.standard_normal(weight.shape))
        saved[f"{layer.name}/{weight.path.rpartition('/')[2]}"] = np.asarray(weight)
np.savez(f"{folder}/expected.npz", **saved)
model.save_weights(f"{folder}/tiny.weights.h5")
model.save(f"{folder}/tiny.keras")
model.save(f"{folder}/tiny.h5")
model.compile("adam", "mse")
model.train_on_batch(np.ones((2, 8, 9, 3)), np.ones((2, 3)))
model.save(f"{folder}/trained.keras")
model.save(f"{folder}/trained.h5")
outer = keras.Sequential([model, keras.layers.Dense(2, name="head")])
outer.build((None, 8, 9, 3))
outer.save(f"{folder}/nested.h5")
"""

LOAD = """
import sys
import keras
import numpy as np

model = keras.applications.ResNet50(weights=None, classes=10, input_shape=(64, 64, 3))
with np.load(sys.argv[2]) as saved:
    expected = dict(saved)
for path, by_name in [
    (f"{sys.argv[1]}/w.h5", {}),
    (f"{sys.argv[1]}/w.h5", {"by_name": True}),
    (f"{sys.argv[1]}/w.weights.h5", {}),
]:
    for weight in model.weights:
        weight.assign(np.zeros(weight.shape))
    model.load_weights(path, **by_name)
    for layer in model.layers:
        for weight in layer.weights:
            name = f"{layer.name}/{weight.path.rpartition('/')[2]}"
            np.testing.assert_array_equal(np.asarray(weight), expected[name])
"""

TREE: dict[str, np.ndarray] = {
    "params/conv_init/kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "params/Dense_0/bias": np.array([-0.0, np.nan, np.inf], np.float16),
    "batch_stats/bn_init/var": np.arange(6.0)[::-1].reshape(2, 3).T,
    "step": np.array(7),
}
HALF = {"params/half": np.arange(5).astype(ml_dtypes.bfloat16)}
LAYERS: dict[str, np.ndarray] = {
    "conv1_conv/kernel": np.arange(108, dtype=np.float32).reshape(3, 3, 3, 4),
    "conv1_conv/bias": np.arange(4, dtype=np.float32),
    **{
        f"conv1_bn/{leaf}": np.full(4, number, np.float32)
        for number, leaf in enumerate(("gamma", "beta", "moving_mean"))
    },
    "conv1_bn/moving_variance": np.ones(4, ml_dtypes.bfloat16),
    "predictions/kernel": np.ones((4, 2), np.float64),
}
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


def _keras(script: str, *arguments: str) -> None:
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    subprocess.run(
        [sys.executable, "-c", script, *arguments], env=environment, check=True
    )


@pytest.fixture(scope="module")
def keras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files that Keras made, with what is in them."""
    folder = tmp_path_factory.mktemp("keras")
    _keras(MAKE, str(folder))
    return folder


def _expected(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "expected.npz") as saved:
        return dict(saved)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tiny.h5", "Keras HDF5"),
        ("tiny.weights.h5", "Keras 3 HDF5"),
        ("tiny.keras", ".keras"),
    ],
)
def test_keras_three_containers_have_the_same_names_and_bits(
    keras: Path, name: str, kind: str
):
    content = opening.read(keras / name)
    assert content.kind == kind
    assert differing_bits(content.value, _expected(keras)) == {}
    assert differing_bits(dict(opening.each(keras / name)), content.value) == {}
    assert content.metadata is None
    assert not content.notes


@pytest.mark.parametrize("name", ["trained.h5", "trained.keras"])
def test_what_a_training_left_beside_the_network_is_left_out(keras: Path, name: str):
    content = opening.read(keras / name)
    assert set(content.value) == set(_expected(keras))
    assert any("left out" in note for note in content.notes)


def test_a_network_within_one_has_its_own_layers_names(keras: Path):
    found = opening.read(keras / "nested.h5").value
    assert set(found) == {*_expected(keras), "head/kernel", "head/bias"}


def test_a_number_after_the_names_of_old_keras_is_taken_off(
    tmp_path: Path, keras: Path
):
    path = tmp_path / "old.h5"
    expected = _expected(keras)
    with h5py.File(path, "w") as file:
        names = dict.fromkeys(name.partition("/")[0] for name in expected)
        file.attrs["layer_names"] = np.array([name.encode() for name in names])
        for name, array in expected.items():
            layer, _, leaf = name.partition("/")
            file.require_group(layer)[f"{layer}/{leaf}:0"] = array
    content = opening.read(path)
    assert content.kind == "Keras HDF5"
    assert differing_bits(content.value, expected) == {}


def _without_names(keras: Path, path: Path) -> None:
    shutil.copy(keras / "tiny.weights.h5", path)
    with h5py.File(path, "a") as file:
        for group in file["layers"].values():  # type: ignore[union-attr]
            del group["vars"].attrs["name"]


def test_a_weights_file_of_keras_before_3_6_is_refused(keras: Path, tmp_path: Path):
    path = tmp_path / "w.weights.h5"
    _without_names(keras, path)
    with pytest.raises(CheckpointError, match=r"layers/conv2d.*Keras before 3\.6"):
        opening.read(path)


def test_in_a_keras_file_the_configuration_has_those_names(keras: Path, tmp_path: Path):
    weights, path = tmp_path / "w.weights.h5", tmp_path / "w.keras"
    _without_names(keras, weights)
    with zipfile.ZipFile(keras / "tiny.keras") as old:
        config, metadata = old.read("config.json"), old.read("metadata.json")
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(path, "w", compression) as new:
            new.writestr("metadata.json", metadata)
            new.writestr("config.json", config)
            new.write(weights, "model.weights.h5")
        assert differing_bits(opening.read(path).value, _expected(keras)) == {}


def test_a_lambda_layer_is_never_built(keras: Path, tmp_path: Path):
    path, canary = tmp_path / "w.keras", tmp_path / "canary"
    code = f"__import__('pathlib').Path({str(canary)!r}).touch()"
    with (
        zipfile.ZipFile(keras / "tiny.keras") as old,
        zipfile.ZipFile(path, "w") as new,
    ):
        config = json.loads(old.read("config.json"))
        config["config"]["layers"].append(
            {"class_name": "Lambda", "config": {"name": "evil", "function": code}}
        )
        new.writestr("metadata.json", old.read("metadata.json"))
        new.writestr("config.json", json.dumps(config))
        new.writestr("model.weights.h5", old.read("model.weights.h5"))
    assert differing_bits(opening.read(path).value, _expected(keras)) == {}
    assert not canary.exists()


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
    [("h5py", "tiny.h5", "keras-files"), ("tensorstore", "w", "flax")],
)
def test_a_library_that_is_missing_is_named_with_its_extra(
    keras: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    library: str,
    name: str,
    extra: str,
):
    path = keras / name
    if name == "w":
        path = tmp_path / "w"
        writing.write(path, TREE, None, "orbax")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(CheckpointError, match=rf"{library}.*resnet-twins\[{extra}\]"):
        parity.load(path)


def test_a_name_that_lies_about_the_content_is_noted(tmp_path: Path):
    path = tmp_path / "w.msgpack"
    writing.write(tmp_path / "w.npz", TREE, None, "npz")
    (tmp_path / "w.npz").rename(path)
    assert opening.read(path).notes == ["the content is npz, whatever the name says"]


def test_a_projection_stands_before_the_last_of_its_block(tmp_path: Path):
    path = tmp_path / "w.weights.h5"
    names = ["conv1", *(f"conv3_block{b}_{n}" for b, n in ((1, 1), (1, 2), (1, 3)))]
    names += ["conv3_block1_0", "conv3_block2_1", "stack1_block1_2", "stack1_block1_0"]
    kernel = np.ones((1, 1, 2, 2), np.float32)
    arrays = {f"{name}_conv/kernel": kernel for name in names}
    writing.write(path, arrays, None, "weights.h5")
    with h5py.File(path) as file:
        layers: Any = file["layers"]
        counted = ["conv2d", *(f"conv2d_{n}" for n in range(1, len(names)))]
        found = [layers[name]["vars"].attrs["name"] for name in counted]
    order = [names[n] for n in (0, 1, 2, 4, 3, 5, 7, 6)]
    assert [name.removesuffix("_conv") for name in found] == order


@pytest.mark.slow
def test_keras_resnet50_takes_our_files(tmp_path: Path):
    arrays = {}
    rng = np.random.default_rng(0)
    for name, parts in _resnet50().items():
        for leaf, shape in parts.items():
            arrays[f"{name}/{leaf}"] = rng.standard_normal(shape, np.float32)
    for name in ("w.h5", "w.weights.h5"):
        writing.write(tmp_path / name, arrays, None, writing.format_of(name))
    np.savez(tmp_path / "expected.npz", **arrays)
    _keras(LOAD, str(tmp_path), str(tmp_path / "expected.npz"))


def _resnet50() -> dict[str, dict[str, tuple[int, ...]]]:
    """Returns Keras's layers and shapes in torch's order: projections come last."""
    layers: dict[str, dict[str, tuple[int, ...]]] = {}

    def add(name: str, size: int, inner: int, outer: int) -> None:
        shapes = {"kernel": (size, size, inner, outer), "bias": (outer,)}
        layers[f"{name}_conv"] = shapes
        norm = ("gamma", "beta", "moving_mean", "moving_variance")
        layers[f"{name}_bn"] = dict.fromkeys(norm, (outer,))

    add("conv1", 7, 3, 64)
    inner = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for block in range(blocks):
            name = f"conv{stage + 2}_block{block + 1}"
            add(f"{name}_1", 1, inner, width)
            add(f"{name}_2", 3, width, width)
            add(f"{name}_3", 1, width, 4 * width)
            if block == 0:
                add(f"{name}_0", 1, inner, 4 * width)
            inner = 4 * width
    layers["predictions"] = {"kernel": (2048, 10), "bias": (10,)}
    return layers
