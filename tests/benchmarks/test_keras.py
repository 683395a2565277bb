"""Keras's ResNet50 is the paper's v1 with biased convolutions; carried over, ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch

import parity
from parity.judging.distance import deviation
from parity.judging.tolerances import G1_FORWARD
from parity.weights.dialects.recognising import recognise
from resnet_spec import get_config
from tests.support.networks import flax_like, random_torch, run_flax

# Keras has one backend and one dtype for a whole process, so it gets one of its own.
SCRIPT = """
import sys
import keras
import numpy as np
from keras.src import backend
from keras.src.backend.common import dtypes

keras.config.set_floatx("float64")
# Even so Keras takes norms and means in float32: its promotion knows no float64.
dtypes.result_type = backend.result_type = lambda *types: "float64"
height, width = int(sys.argv[1]), int(sys.argv[2])
model = keras.applications.ResNet50(
    weights=None,
    classifier_activation=None,
    input_shape=(height, width, 3),
    classes=10,
)
rng = np.random.default_rng(0)
saved = {}
for layer in model.layers:
    for weight in layer.weights:
        leaf = weight.path.rpartition("/")[2]
        if leaf == "kernel":
            fan_in = np.prod(weight.shape[:-1])
            value = rng.standard_normal(weight.shape) * fan_in**-0.5
        elif leaf in ("gamma", "moving_variance"):
            value = rng.uniform(0.5, 1.5, weight.shape)
        else:
            value = rng.uniform(-0.5, 0.5, weight.shape)
        weight.assign(value)
        saved[f"{layer.name}.{leaf}"] = value
saved["images"] = rng.standard_normal((2, height, width, 3))
saved["logits"] = keras.ops.convert_to_numpy(model(saved["images"], training=False))
np.savez(sys.argv[3], **saved)
"""


@pytest.fixture(scope="module")
def keras(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    path: Path = tmp_path_factory.mktemp("keras") / "keras.npz"
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    subprocess.run(
        [sys.executable, "-c", SCRIPT, "65", "48", str(path)],
        env=environment,
        check=True,
    )
    with np.load(path) as saved:
        return dict(saved)


def _twin_of(keras: dict[str, np.ndarray], name: str) -> Any:
    """Returns a torch twin in float64 with the weights of Keras's network."""
    settings = {"conv_bias": True, "norm_eps": 1.001e-5, "num_classes": 10}
    model = random_torch(get_config(name).replace(**settings)).double().eval()
    found = recognise({n: value for n, value in keras.items() if "." in n}, "keras")
    parity.load_state_dict(model, found.arrays)
    return model


def _images(keras: dict[str, np.ndarray]) -> np.ndarray:
    return np.ascontiguousarray(keras["images"].transpose(0, 3, 1, 2))


@pytest.mark.slow
def test_keras_weights_give_keras_logits_in_both_twins(keras: dict[str, np.ndarray]):
    model = _twin_of(keras, "resnet50_v1")
    with torch.no_grad():
        found = model(torch.from_numpy(_images(keras))).numpy()
    assert deviation(found, keras["logits"]).l2 <= G1_FORWARD
    with jax.enable_x64(True):
        twin = flax_like(model, "float64")
        twin.eval()
        found, _ = run_flax(twin, _images(keras))
    assert deviation(found, keras["logits"]).l2 <= G1_FORWARD


@pytest.mark.slow
def test_with_the_stride_of_v15_the_logits_are_others(keras: dict[str, np.ndarray]):
    # The comparison above can fail: same weights, the stride on the other convolution.
    model = _twin_of(keras, "resnet50")
    with torch.no_grad():
        found = model(torch.from_numpy(_images(keras))).numpy()
    assert deviation(found, keras["logits"]).l2 > 1e6 * G1_FORWARD
