"""The Flax twin against what the torch twin gave elsewhere: no torch is needed here.

``make test-latest`` runs this on the newest versions of JAX and Flax; ``make test``
among the others, so that it cannot rot.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

import parity
import resnet_flax
import resnet_flax.optim
from parity.judging.distance import deviation
from parity.judging.tolerances import AFTER_STEPS, FLOAT64, ceiling
from tests.latest.record import NETWORKS, OPTIMIZERS, record

pytestmark = pytest.mark.slow
RECORDED = os.environ.get("RESNET_TWINS_RECORDED")
WITHOUT_TORCH = find_spec("torch") is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the torch twin's files are."""
    if RECORDED:
        return Path(RECORDED)
    made = tmp_path_factory.mktemp("recorded")
    record(made)
    return made


@pytest.fixture(params=NETWORKS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def recorded(folder: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(folder / f"{name}.npz") as found:
        return dict(found)


def flax_twin(folder: Path, name: str, dtype: str = "float64") -> resnet_flax.ResNet:
    """The twin with the recorded weights, in evaluation mode."""
    model = resnet_flax.create_model(NETWORKS[name], rngs=0, param_dtype=dtype)
    state = parity.load(folder / f"{name}.safetensors")
    parity.load_state_dict(model, parity.cast(state, dtype))
    model.eval()
    return model


def nhwc(images: np.ndarray, dtype: Any = np.float64) -> jax.Array:
    return jnp.asarray(images.transpose(0, 2, 3, 1).astype(dtype))


def test_its_output_is_torchs(folder: Path, name: str, recorded: dict[str, np.ndarray]):
    with jax.enable_x64(True):
        model = flax_twin(folder, name)
        found = nnx.jit(lambda model, x: model(x))(model, nhwc(recorded["images"][0]))
    assert deviation(np.asarray(found), recorded["output"]).l2 <= FLOAT64["output"]


def test_it_learns_as_torch_does(
    folder: Path, name: str, recorded: dict[str, np.ndarray]
):
    with jax.enable_x64(True):
        model = flax_twin(folder, name)
        model.train()
        optimizer = resnet_flax.optim.create_optimizer(model, OPTIMIZERS[name])
        step = nnx.jit(resnet_flax.optim.train_step)
        losses = [
            float(step(model, optimizer, nhwc(x), jnp.asarray(y)))
            for x, y in zip(recorded["images"], recorded["labels"], strict=True)
        ]
        after = parity.state_dict(model)
    assert deviation(np.array(losses), recorded["losses"]).l2 <= AFTER_STEPS
    for entry, value in after.items():
        expected = recorded[f"after {entry}"]
        assert deviation(value, expected).l2 <= AFTER_STEPS, entry
    assert len(after) == sum(key.startswith("after ") for key in recorded)


@pytest.mark.parametrize("faster", ["compile", "fuse", "winograd", "export", "view"])
def test_every_faster_form_computes_the_same(
    folder: Path, name: str, recorded: dict[str, np.ndarray], faster: str
):
    model = flax_twin(folder, name, "float32")
    images = nhwc(recorded["images"][0], np.float32)
    if faster == "compile":
        found = resnet_flax.compile(model)(images)
    elif faster == "export":
        shape = export.symbolic_shape("n, h, w, 3")
        symbolic = jax.ShapeDtypeStruct(shape, jnp.float32)
        graph, state = nnx.split(model)
        call = jax.jit(lambda x: nnx.merge(graph, state)(x))
        found = export.export(call)(symbolic).call(images)
    elif faster == "view":
        model.train()
        found = nnx.view(model, use_running_average=True)(images)
    else:
        found = getattr(resnet_flax, faster)(model)(images)
    assert deviation(np.asarray(found), recorded["output"]).l2 <= ceiling("float32", 8)


def test_a_seed_gives_the_weights_that_it_gave(folder: Path, name: str):
    expected = json.loads((folder / "digests.json").read_text())[name]
    found = resnet_flax.create_model(NETWORKS[name], rngs=0)
    assert parity.digest_of(found) == expected


def test_the_files_come_back_bit_for_bit(folder: Path, name: str, tmp_path: Path):
    first = parity.load(folder / f"{name}.safetensors")
    again = tmp_path / "again.safetensors"
    twin = flax_twin(folder, name, "float32")
    parity.save(again, parity.state_dict(twin), config=NETWORKS[name])
    second = parity.load(again)
    first = parity.cast(first, "float32")
    assert {e: v.tobytes() for e, v in second.items()} == {
        e: v.tobytes() for e, v in first.items() if e in second
    }


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    code = "from resnet_cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
    )


def test_the_command_predicts(tmp_path: Path):
    from PIL import Image

    photo = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (300, 280, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photo)
    found = command(
        *("predict", photo, "--model", "resnet18", "--weights", "random"),
        *("--backend", "flax", "--json"),
    )
    assert found.returncode == 0, found.stderr
    assert len(json.loads(found.stdout)["top"]["flax"]) == 5


@pytest.mark.skipif(not WITHOUT_TORCH, reason="torch is installed")
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "resnet18"),
        ("convert", "{weights}", "{out}.pth"),
        ("predict", "x.png", "--model", "resnet18", "--backend", "torch"),
        ("check", "--self-test"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_needs_torch_names_the_extra(
    folder: Path, tmp_path: Path, arguments: tuple[str, ...]
):
    places = {"weights": folder / "basic.safetensors", "out": tmp_path / "out"}
    found = command(*(argument.format(**places) for argument in arguments))
    assert found.returncode not in (0, 1, 70), found.stdout
    assert "resnet-twins[torch]" in found.stderr, found.stderr
    assert len(found.stderr.strip().splitlines()) == 1, found.stderr
