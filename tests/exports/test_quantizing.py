"""Programs of 8-bit integers: what they lose is measured, and they are never equal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

import parity
from parity.errors import InputError, OutputError
from parity.exports import int8
from parity.images import normalised
from parity.judging.distance import deviation
from parity.judging.tolerances import CEILINGS
from parity.quantizing import photographs
from resnet_spec import Preprocessing
from tests.support.command import Called
from tests.support.networks import TINY, flax_like, images, random_torch

HOW = Preprocessing(resize=48, crop=40)


def _images(n: int = 8) -> np.ndarray:
    return images(TINY, 40, 40, n=n).astype(np.float32)


@pytest.mark.parametrize("twin", ["torch", "flax"])
def test_what_is_lost_is_measured_on_other_images_and_said(twin: str, tmp_path: Path):
    model = random_torch(TINY).eval()
    if twin == "flax":
        model = flax_like(model)
    x = _images()
    done = parity.quantize(model, tmp_path / "net.onnx", x)
    loss = done.loss
    assert loss.images == 4
    assert list(loss.depth) == ["relu", "layer1.0", "layer2.1", "logits"]
    assert all(1e-4 < error < 0.3 for error in loss.depth.values())
    assert str(loss).startswith("NOT EQUAL: rounded to 8 bits; top-1 agrees on ")
    told = json.loads(done.told.read_text())
    assert told["loss"]["depth"] == dict(loss.depth)
    assert told["calibrated_on"] == 4
    # By what loads it, too, and on the same images.
    program = parity.load_exported(done.path)
    assert program.facts.dtype == "int8"
    plain = parity.load_exported(parity.export(model, tmp_path / "whole.onnx").path)
    errors = [deviation(program(i[None]), plain(i[None])).l2 for i in x[4:]]
    # It was measured against folded norms, which round in another way.
    off = abs(float(np.median(errors)) - loss.depth["logits"])
    assert off <= CEILINGS["float32"].ceiling
    agree = sum(
        int(program(i[None]).argmax() == plain(i[None]).argmax()) for i in x[4:]
    )
    assert loss.agree == agree


def test_a_program_of_8_bits_passes_no_gate(tmp_path: Path):
    model = random_torch(TINY).eval()
    x = _images()
    done = parity.quantize(model, tmp_path / "net.onnx", x)
    report = parity.check_program(model, parity.load_exported(done.path), [x[4:]])
    assert not report.gate("G2").ok
    assert not report.gate("G3").ok


def test_kernels_are_8_bits_wide_and_the_file_is_smaller(tmp_path: Path):
    model = random_torch(TINY.replace(widths=(64, 128)))
    done = parity.quantize(model, tmp_path / "net.onnx", _images())
    made = onnx.load(done.path)
    kinds = {t.name: t.data_type for t in made.graph.initializer}
    assert kinds["layer1.0.conv1.weight_quantized"] == onnx.TensorProto.INT8
    whole = sum(array.nbytes for array in parity.state_dict(model).values())
    assert done.loss.bytes < 0.4 * whole


def test_photographs_are_resized_and_cut_as_parity_does(
    tmp_path: Path, photo: Path, call: Called
):
    (tmp_path / "class").mkdir()
    for name in ("a.jpg", "b.JPG"):
        shutil.copy(photo, tmp_path / "class" / name)
    pixels = photographs(tmp_path, TINY, HOW, pixels=True)
    assert pixels.shape == (2, 40, 40, 3)
    expected = parity.load_image(photo, HOW)
    found = normalised(pixels, HOW.mean, HOW.std)[:1]
    assert np.array_equal(found, expected)
    assert np.array_equal(photographs(tmp_path, TINY, HOW)[:1], expected)
    out, _ = call(
        *("export", "resnet18", tmp_path / "net.onnx", "--weights", "random"),
        *("--set", "layers=[1,1]", "--set", "widths=[8,16]", "--int8", tmp_path),
        "--preprocessing",
    )
    assert "2 photographs\nNOT EQUAL: rounded to 8 bits; top-1 agrees on " in out
    assert "PASS" not in out
    assert (tmp_path / "net.onnx.loss.json").exists()
    program = parity.load_exported(tmp_path / "net.onnx")
    assert program.facts.preprocessing == Preprocessing()
    line = call.error(
        *("export", "resnet18", tmp_path / "net.pt2", "--weights", "random"),
        *("--int8", tmp_path),
    )
    assert "--int8 is for --to onnx" in line


def test_bad_input_is_refused_and_nothing_written(tmp_path: Path):
    model = random_torch(TINY)
    with pytest.raises(InputError, match="Let it end in"):
        parity.quantize(model, tmp_path / "net.pt2", _images())
    with pytest.raises(ValueError, match="quantize takes float32, four axes"):
        parity.quantize(model, tmp_path / "net.onnx", _images()[0])
    with pytest.raises(InputError, match="has no photographs"):
        photographs(tmp_path, TINY, HOW)
    (tmp_path / "net.onnx").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        parity.quantize(model, tmp_path / "net.onnx", _images())
    assert (tmp_path / "net.onnx").read_text() == "mine"


def test_the_maps_that_are_compared_are_the_networks(tmp_path: Path):
    config = TINY.replace(include_top=False)
    model = random_torch(config).eval()
    done = parity.quantize(model, tmp_path / "net.onnx", _images())
    assert done.loss.agree is None
    assert "top-1" not in str(done.loss)
    assert int8.tap_names(config)[-2:] == ["layer2.1", "logits"]
