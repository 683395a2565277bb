"""Keras's three containers: its own files read, ours read by it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from parity.errors import CheckpointError
from parity.files import opening, writing
from parity.weights.digest import differing_bits

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
