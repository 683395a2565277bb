"""Programs are judged before anybody gets them, and the judging can fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import parity
from parity.errors import InputError, OutputError
from parity.exporting import ProgramError, export
from parity.exports import onnx_format, stablehlo_format, torch_format
from parity.exports.programs import load_exported
from parity.images import normalised
from parity.judging.programs import check_program
from resnet_onnx import network
from resnet_onnx.layers import Layers
from resnet_spec import Preprocessing
from tests.support.command import Called
from tests.support.networks import TINY, flax_like, images, random_torch

SMALL = TINY.replace(layers=(1, 1), widths=(4, 8))

EXTENSIONS = [m.EXTENSION for m in (onnx_format, stablehlo_format, torch_format)]


@pytest.mark.parametrize(
    ("twin", "extension"),
    [
        ("torch", ".stablehlo"),
        pytest.param("flax", ".pt2", marks=pytest.mark.slow),
        ("flax", ".onnx"),
    ],
)
def test_either_twin_is_exported_judged_and_certified(
    twin: str, extension: str, tmp_path: Path
):
    model = random_torch(SMALL).eval()
    if twin == "flax":
        model = flax_like(model)
    before = parity.digest_of(model)
    done = export(model, tmp_path / f"net{extension}")
    assert parity.digest_of(model) == before
    assert done.report.ok
    assert [gate.gate for gate in done.report.gates] == ["G2", "G3", "G5"]
    judged = done.report.setting["inputs"]["shapes"]
    assert len({tuple(shape) for shape in judged}) == 2
    assert len({shape[0] for shape in judged}) == 2
    assert {p.name for p in tmp_path.iterdir()} == {
        f"net{extension}",
        f"net{extension}.certificate.json",
    }
    certified = json.loads(done.certificate.read_text())
    assert certified["recipe"]["program"] == f"net{extension}"
    assert certified["setting"]["program"]["sha256"] == done.sha256
    assert load_exported(done.path).facts.weights == before


@pytest.mark.parametrize(
    "dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)]
)
def test_half_types_are_judged_by_their_own_ceilings(dtype: str, tmp_path: Path):
    done = export(random_torch(SMALL), tmp_path / "net.onnx", dtype=dtype)
    assert done.report.ok
    assert done.report.setting["arithmetic"] == dtype


def test_a_program_that_takes_pixels_is_judged_on_pixels(tmp_path: Path):
    how = Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    done = export(random_torch(SMALL), tmp_path / "net.onnx", preprocessing=how)
    assert [shape[-1] for shape in done.report.setting["inputs"]["shapes"]] == [3, 3]


def _wrong_eps(layers: Layers, name: str, x: str) -> str:
    found = RIGHT(layers, name, x)
    if name == "bn2":
        layers.nodes[-1].attribute[0].f = 1e-3
    return found


RIGHT = Layers.norm


@pytest.mark.parametrize(
    "fault",
    [
        *("eps", "padding"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("mean", "maximum")),
    ],
)
def test_a_faulty_program_fails_and_is_not_written(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    how = None
    if fault == "eps":
        monkeypatch.setattr(Layers, "norm", _wrong_eps)
    elif fault == "padding":
        right = Layers.conv

        def conv(layers: Layers, name: str, x: str, **how: Any) -> str:
            found = right(layers, name, x, **how)
            if layers.path == "layer2.0." and name == "conv1":
                (pads,) = (a for a in layers.nodes[-1].attribute if a.name == "pads")
                pads.ints[:] = [0, 0, 2, 2]
            return found

        monkeypatch.setattr(Layers, "conv", conv)
    elif fault == "maximum":
        monkeypatch.setattr(Layers, "maxpool", _averaged)
    else:
        how = Preprocessing()
        swapped = Preprocessing(mean=(0.406, 0.456, 0.485))
        right_mean = network.normalised
        monkeypatch.setattr(
            network, "normalised", lambda layers, how: right_mean(layers, swapped)
        )
    with pytest.raises(ProgramError) as raised:
        export(random_torch(SMALL), tmp_path / "net.onnx", preprocessing=how)
    assert not raised.value.report.ok
    assert "FAIL: G2" in str(raised.value)
    assert not list(tmp_path.iterdir())


def _averaged(layers: Layers, name: str, x: str, size: int, **how: Any) -> str:
    window, pads = layers._window(size), [n // 2 for n in layers._window(size)] * 2
    return layers.add(
        *("AveragePool", name, x), kernel_shape=window, strides=[2, 2], pads=pads
    )


def test_a_program_that_raises_has_failed_in_words():
    model = random_torch(SMALL).eval()

    def program(x: np.ndarray) -> np.ndarray:
        raise RuntimeError("no such kernel")

    x = images(SMALL, 40, 33).astype(np.float32)
    report = check_program(model, program, [x])
    assert not report.ok
    assert "raised RuntimeError: no such kernel" in report.verdict()


def test_a_program_that_gives_nan_or_another_shape_has_failed():
    model = random_torch(SMALL).eval()
    x = images(SMALL, 40, 33).astype(np.float32)
    with torch.no_grad():
        right = model(torch.from_numpy(x)).numpy()
    assert check_program(model, lambda x: right, [x]).ok
    assert not check_program(model, lambda x: right * np.nan, [x]).ok
    report = check_program(model, lambda x: right[:, :-1], [x])
    assert not report.ok
    assert "Flax" not in report.verdict()


def test_nothing_is_replaced_unasked(tmp_path: Path):
    path = tmp_path / "net.onnx"
    path.write_text("mine")
    with pytest.raises(OutputError, match=r"exists\. Use --force to replace it"):
        export(random_torch(SMALL), path)
    assert path.read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_a_name_of_another_container_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"is no name of a program of onnx\. Let it"):
        export(random_torch(SMALL), tmp_path / "net.pt2", to="onnx")
    with pytest.raises(ValueError, match="export takes a network of this package"):
        export(torch.nn.Linear(2, 2), tmp_path / "net.onnx")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_command_writes_and_verifies_a_program(call: Called, tmp_path: Path):
    path = tmp_path / "net.onnx"
    small = ("--set", "layers=[1,1]", "--set", "widths=[4,8]", "--seed", 3)
    command = ("export", "cifar_resnet20", path, "--weights", "random", *small)
    out, _ = call(*command, "--to", "onnx", "--json")
    told = json.loads(out)
    assert told["gates"] == {"G2": True, "G3": True, "G5": True}
    certificate = Path(told["certificate"])
    out, _ = call("check", "--verify", certificate)
    assert out.splitlines()[-1] == (
        f"VERIFIED: {certificate} says the same, to the last bit"
    )
    assert call.error(*command, code=3).endswith("exists. Use --force to replace it")
    call(*command, "--force")
    # Another program, under the same name.
    model = onnx.load(path)
    bias = next(t for t in model.graph.initializer if t.name == "fc.bias")
    values = onnx.numpy_helper.to_array(bias) * np.float32(1.001)
    bias.CopyFrom(onnx.numpy_helper.from_array(values, "fc.bias"))
    onnx.save(model, path)
    out, _ = call("check", "--verify", certificate, code=1)
    assert "NOT VERIFIED" in out
    assert "program.sha256" in out


def test_a_program_that_fails_is_exit_code_1_and_no_file(
    call: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Layers, "norm", _wrong_eps)
    path = tmp_path / "net.onnx"
    out, _ = call(
        *("export", "cifar_resnet20", path, "--weights", "random"),
        *("--set", "layers=[1,1]", "--set", "widths=[4,8]"),
        code=1,
    )
    assert out.splitlines()[-1] == f"{path} is not written"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("net.bin",), "net.bin: ends in .bin. A program ends in one of .onnx, "),
        (("net.onnx", "--to", "tflite"), "--to tflite: it must be one of onnx, "),
        (("net.onnx", "--to", "stablehlo"), "Let it end in .stablehlo"),
        (("net.onnx", "--dtype", "float64"), "--dtype is 'float64'; it must be one of"),
        (("net.onnx", "--weights", "no.pth"), "no.pth: no such file"),
        (("net.onnx", "--set", "wide=3"), "unknown setting 'wide'"),
    ],
)
def test_bad_input_is_one_line(
    call: Called, arguments: tuple[str, ...], says: str, tmp_path: Path
):
    name, *options = arguments
    weights = [] if "--weights" in options else ["--weights", "random"]
    command = ("export", "cifar_resnet20", tmp_path / name, *weights, *options)
    assert says in call.error(*command)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_a_photograph_is_the_same_class_in_a_program_of_full_size(
    call: Called, extension: str, tmp_path: Path, pth: Path, photo: Path
):
    path = tmp_path / f"net{extension}"
    call("export", "resnet18", path, "--weights", pth, "--preprocessing")
    program = load_exported(path)
    from PIL import Image

    pixels = np.asarray(Image.open(photo).convert("RGB").resize((224, 224)))
    model = parity.create_model("resnet18", weights=str(pth), framework="torch").eval()
    how = Preprocessing()
    x = normalised(pixels[None], how.mean, how.std)
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).numpy()
    found = program(pixels[None])
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
