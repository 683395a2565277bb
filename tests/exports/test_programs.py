"""Programs in every container: what they compute, what they take, what they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import parity
from parity.errors import InputError
from parity.exports.facts import Free, Program, free_sizes
from parity.exports.programs import CONTAINERS, load_exported, serialized
from parity.images import normalised
from parity.judging.distance import deviation
from parity.judging.tolerances import CEILINGS
from parity.weights.digest import digest
from resnet_spec import Preprocessing, ResNetConfig
from tests.support.networks import TINY, TINY_BOTTLENECK, images, random_torch

ROOT = Path(__file__).parent.parent.parent
ROUNDING = 1e-5

CONFIGS = {
    "basic": TINY,
    "in groups": TINY_BOTTLENECK.replace(
        attention="eca", norm="group", norm_groups=4, shortcut="D", output_stride=4
    ),
    "padded": TINY.replace(shortcut="A"),
    "average": TINY.replace(anti_alias="average"),
    "blur": TINY.replace(anti_alias="blur"),
    "same": TINY.replace(
        stem_padding="same", block_padding="same", pool_padding="same"
    ),
    "overhanging": TINY_BOTTLENECK.replace(shortcut="D"),
    "squeezed": TINY_BOTTLENECK.replace(attention="se", stem="deep"),
    "split": TINY_BOTTLENECK.replace(radix=2, anti_alias="avd_first", shortcut="D"),
    "signal": TINY.replace(dimensions=1, head="signal", signal_width=64, stem="3x3"),
    "conv": TINY.replace(head="conv"),
    "without a top": TINY.replace(include_top=False),
}

HOW = Preprocessing(resize=48, crop=40, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def _expected(config: ResNetConfig, dtype: str, x: np.ndarray) -> np.ndarray:
    model: Any = random_torch(config).to(getattr(torch, dtype)).eval().double()
    with torch.no_grad():
        return model(torch.from_numpy(x.astype(np.float64))).numpy()


def _written(
    folder: Path, config: ResNetConfig, to: str, **how: Any
) -> tuple[Path, Program]:
    path = folder / f"net{CONTAINERS[to].EXTENSION}"
    state = parity.state_dict(random_torch(config))
    path.write_bytes(serialized(config, state, to, **how))
    return path, load_exported(path)


def _sizes(config: ResNetConfig) -> list[tuple[int, int]]:
    free = free_sizes(config)
    if free is None:
        return [config.natural_size]
    steps = [(free.least, free.least + 2), (free.least + 5, free.least + 1)]
    return [(free.step * rows, free.step * columns) for rows, columns in steps]


QUICK = ("basic", "in groups", "average", "signal")


@pytest.mark.parametrize("to", CONTAINERS)
@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=() if k in QUICK else pytest.mark.slow) for k in CONFIGS],
)
def test_a_program_computes_what_torch_does_for_any_number_and_size(
    kind: str, to: str, tmp_path: Path
):
    config = CONFIGS[kind]
    _, program = _written(tmp_path, config, to)
    for count in (1, 3):
        for size in _sizes(config):
            x = images(config, *size, n=count).astype(np.float32)
            found = program(x)
            assert found.dtype == np.float32
            assert deviation(found, _expected(config, "float32", x)).l2 < ROUNDING


@pytest.mark.parametrize("to", CONTAINERS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_types_halve_the_file_and_stay_below_their_ceiling(
    dtype: str, to: str, tmp_path: Path
):
    path, program = _written(tmp_path, TINY.replace(widths=(32, 64)), to, dtype=dtype)
    whole = path.stat().st_size
    narrow, _ = _written(tmp_path, TINY.replace(widths=(32, 64)), to)
    assert whole < 0.75 * narrow.stat().st_size
    x = images(TINY, 40, 33).astype(np.float16).astype(np.float32)
    expected = _expected(TINY.replace(widths=(32, 64)), dtype, x)
    found = program(x)
    assert found.dtype == np.float32
    assert 0 < deviation(found, expected).l2 < 4 * CEILINGS[dtype].ceiling


@pytest.mark.parametrize("to", CONTAINERS)
def test_preprocessing_inside_takes_pixels_and_normalises_as_parity_does(
    to: str, tmp_path: Path
):
    _, program = _written(tmp_path, TINY, to, preprocessing=HOW)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 35, 3), np.uint8)
    x = normalised(pixels, HOW.mean, HOW.std)
    assert deviation(program(pixels), _expected(TINY, "float32", x)).l2 < ROUNDING
    assert program.facts.preprocessing == HOW
    with pytest.raises(ValueError, match=r"takes uint8 of shape \(n, h, w, 3\)"):
        program(x)


@pytest.mark.parametrize("to", CONTAINERS)
def test_a_program_says_what_it_is(to: str, tmp_path: Path):
    config = TINY.replace(norm_eps=1e-3)
    _, program = _written(tmp_path, config, to, dtype="float16")
    state = parity.cast(parity.state_dict(random_torch(config)), "float16")
    facts = program.facts
    assert (facts.container, facts.config, facts.dtype) == (to, config, "float16")
    assert facts.weights == digest(state)
    assert {"resnet-twins", "numpy"} < set(facts.versions)


def test_a_file_of_stablehlo_is_jaxs_own_and_says_its_calling_convention(
    tmp_path: Path,
):
    from jax import export

    from parity.exports.stablehlo_format import told_of

    path, program = _written(tmp_path, TINY, "stablehlo")
    data = path.read_bytes()
    loaded = export.deserialize(bytearray(data))
    x = images(TINY, 40, 33).astype(np.float32)
    found = np.asarray(loaded.call(x.transpose(0, 2, 3, 1)))
    assert np.array_equal(found, program(x))
    _, told = told_of(data)
    version = told["calling_convention_version"]
    assert version == loaded.calling_convention_version
    assert set(told["platforms"]) == {"cpu", "cuda", "rocm", "tpu"}


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (np.zeros((3, 40, 40), np.float32), "float32 of shape (3, 40, 40)"),
        (np.zeros((1, 40, 40, 3), np.float32), "takes floats of shape (n, 3, h, w)"),
        (np.zeros((1, 3, 40, 40), np.int32), "int32 of shape"),
        (np.zeros((0, 3, 40, 40), np.float32), "of shape (0, 3, 40, 40)"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(x: np.ndarray, says: str):
    state = parity.state_dict(random_torch(TINY))
    program = CONTAINERS["onnx"].read(serialized(TINY, state, "onnx"))
    with pytest.raises(ValueError) as raised:  # noqa: PT011  the message is below
        program(x)
    assert says in str(raised.value)


def test_a_size_that_the_head_does_not_take_is_refused_in_the_networks_words():
    config = CONFIGS["conv"]
    state = parity.state_dict(random_torch(config))
    program = CONTAINERS["onnx"].read(serialized(config, state, "onnx"))
    with pytest.raises(ValueError, match="does not fit: frames whose map"):
        program(np.zeros((1, 3, 40, 40), np.float32))


@pytest.mark.parametrize("to", CONTAINERS)
@pytest.mark.parametrize("damage", ["cut", "changed", "another", "text", "empty"])
def test_a_damaged_file_gives_one_error_that_names_it(
    damage: str, to: str, tmp_path: Path
):
    path, _ = _written(tmp_path, TINY, to)
    data = path.read_bytes()
    other = "onnx" if to != "onnx" else "torch-export"
    state = parity.state_dict(random_torch(TINY))
    path.write_bytes(
        {
            "cut": data[: len(data) // 2],
            "changed": bytes(255 - byte for byte in data[:2000]) + data[2000:],
            "another": serialized(TINY, state, other),
            "text": b"no program\n" * 50,
            "empty": b"",
        }[damage]
    )
    with pytest.raises(InputError) as raised:
        load_exported(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert len(str(raised.value)) < 2000


def test_a_program_of_others_is_refused(tmp_path: Path):
    import onnx

    state = parity.state_dict(random_torch(TINY))
    model = onnx.load_from_string(serialized(TINY, state, "onnx"))
    del model.metadata_props[:]
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="is no program of this project"):
        load_exported(path)
    with pytest.raises(InputError, match=r"ends in \.bin\. A program ends in one of"):
        load_exported(tmp_path / "net.bin")


ALONE = """
import sys
for name in {hidden}:
    sys.modules[name] = None
import numpy as np
from parity.exports.programs import load_exported
program = load_exported({path!r})
x = np.load({images!r})
np.save({found!r}, program(x))
assert not {{n for n, m in sys.modules.items() if m}} & set({hidden})
"""

OF_ITS_OWN = {
    "onnx": ("onnxruntime", ("torch", "jax", "flax", "openvino")),
    "stablehlo": ("jax", ("torch", "onnx", "onnxruntime", "openvino")),
    "torch-export": ("torch", ("jax", "flax", "onnx", "onnxruntime", "openvino")),
}
"""Container → its runtime, and what a program must not need."""


@pytest.mark.parametrize("to", CONTAINERS)
def test_a_fresh_interpreter_with_one_framework_runs_a_program(to: str, tmp_path: Path):
    path, program = _written(tmp_path, TINY, to)
    x = images(TINY, 40, 33).astype(np.float32)
    given, found = tmp_path / "x.npy", tmp_path / "y.npy"
    np.save(given, x)
    code = ALONE.format(
        hidden=OF_ITS_OWN[to][1],
        path=str(path),
        images=str(given),
        found=str(found),
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert deviation(np.load(found), program(x)).l2 < ROUNDING


WITHOUT_US = {
    "onnx": """
import onnxruntime
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
y = session.run(None, {"images": x})[0]
""",
    "stablehlo": """
from jax import export
program = export.deserialize(bytearray(open(path, "rb").read()))
y = np.asarray(program.call(x.transpose(0, 2, 3, 1)))
""",
    "torch-export": """
import torch
y = torch.export.load(path).module()(torch.from_numpy(x)).detach().numpy()
""",
}


def _elsewhere(python: str, to: str, path: Path, x: np.ndarray) -> np.ndarray:
    """Runs a program in another interpreter, without any of this project's code."""
    given, found = path.with_name("x.npy"), path.with_name("y.npy")
    np.save(given, x)
    code = (
        f"import sys; sys.modules['parity'] = sys.modules['resnet_spec'] = None\n"
        f"import numpy as np\npath, x = {str(path)!r}, np.load({str(given)!r})\n"
        f"{WITHOUT_US[to]}\nnp.save({str(found)!r}, y)\n"
    )
    subprocess.run([python, "-I", "-c", code], check=True, cwd=path.parent)
    return np.load(found)


@pytest.mark.parametrize("to", CONTAINERS)
def test_a_program_runs_without_this_project(to: str, tmp_path: Path):
    path, program = _written(tmp_path, TINY, to)
    x = images(TINY, 40, 33).astype(np.float32)
    found = _elsewhere(sys.executable, to, path, x)
    assert deviation(found, program(x)).l2 < ROUNDING


def _second_python() -> str | None:
    """An interpreter with another JAX: of `make test-latest`, or one that is named."""
    named = os.environ.get("RESNET_TWINS_SECOND_PYTHON")
    latest = ROOT / ".venv-latest" / "bin" / "python"
    return named or (str(latest) if latest.exists() else None)


@pytest.mark.slow
def test_a_newer_jax_runs_a_program_of_this_one(tmp_path: Path):
    python = _second_python()
    if python is None:
        pytest.skip("no second interpreter: `make test-latest` makes one")
    path, program = _written(tmp_path, CONFIGS["blur"], "stablehlo")
    x = images(TINY, 40, 33).astype(np.float32)
    found = _elsewhere(python, "stablehlo", path, x)
    assert deviation(found, program(x)).l2 < ROUNDING


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"to": "tflite"}, "to is 'tflite'; it must be one of onnx, stablehlo, torch"),
        ({"to": "onnx", "dtype": "float64"}, "dtype is 'float64'"),
    ],
)
def test_what_cannot_be_written_is_refused(how: dict[str, Any], says: str):
    state = parity.state_dict(random_torch(TINY))
    with pytest.raises(ValueError, match=says):
        serialized(TINY, state, **how)


def test_pixels_are_no_input_of_a_network_of_four_channels():
    config = TINY.replace(in_channels=4)
    state = parity.state_dict(random_torch(config))
    with pytest.raises(ValueError, match="4 channels; preprocessing is for photo"):
        serialized(config, state, "onnx", preprocessing=HOW)


@pytest.mark.parametrize("to", CONTAINERS)
def test_a_state_of_another_network_is_no_program(to: str):
    state = parity.state_dict(random_torch(TINY))
    del state["layer1.0.bn1.weight"]
    with pytest.raises(ValueError, match=r"layer1\.0\.bn1\.weight"):
        serialized(TINY, state, to)


def test_sides_are_free_where_the_head_and_the_rounding_of_maps_allow_it():
    assert free_sizes(TINY) == Free(1, 9)
    assert free_sizes(CONFIGS["padded"]) == Free(8, 2)
    assert free_sizes(CONFIGS["signal"]) is None


UNINSTALLED = """
import importlib.metadata as metadata
import sys

known = metadata.version


def version(name):
    if name == "resnet-twins":
        raise metadata.PackageNotFoundError(name)
    return known(name)


metadata.version = version

import parity
from tests.support.networks import TINY, random_torch

model = random_torch(TINY).eval()
parity.save(sys.argv[1], model, config=TINY)
parity.export(model, sys.argv[2])
"""


def test_a_copy_of_the_source_writes_files_and_programs(tmp_path: Path):
    weights, program = (str(tmp_path / n) for n in ("a.safetensors", "a.onnx"))
    subprocess.run(
        [sys.executable, "-c", UNINSTALLED, weights, program], cwd=ROOT, check=True
    )
    exported = load_exported(program)
    assert exported.facts.versions["resnet-twins"] == "0+unknown"
    assert exported.facts.weights == parity.load(weights).metadata["sha256"]
