"""The ONNX graph, a third reading of the description, against the torch twin."""

from __future__ import annotations

import ast
import inspect
import io
from importlib import import_module
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from hypothesis import given, settings

import parity
import resnet_torch.layers
from parity.judging.distance import deviation
from parity.judging.tolerances import CEILINGS
from resnet_onnx import graph
from resnet_onnx.attention import KINDS
from resnet_onnx.layers import Layers
from resnet_spec import ResNetConfig, get_config, list_models
from resnet_spec.attention import ATTENTION
from resnet_spec.plan import stages
from tests.support.examples import examples
from tests.support.networks import (
    TINY,
    configs_with_images,
    images,
    random_torch,
    without_large_ones,
)

ROUNDING = 1e-5


def _run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"images": x.astype(np.float32)})[0])


def _openvino(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    core = openvino.Core()
    read = core.read_model(io.BytesIO(model.SerializeToString()))
    run = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return run(x.astype(np.float32))[0]


def _expected(model: Any, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model.eval().double()(torch.from_numpy(x)).numpy()


def _functions(module: Any) -> list[str]:
    tree = ast.parse(Path(inspect.getfile(module)).read_text("utf-8"))
    kinds = (ast.ClassDef, ast.FunctionDef)
    return [
        node.name.lower().replace("_", "")
        for node in tree.body
        if isinstance(node, kinds)
    ]


@pytest.mark.parametrize("name", ["resnet", "blocks", "attention"])
def test_the_graph_is_written_in_the_order_and_by_the_names_of_the_twins(name: str):
    ours, theirs = (
        _functions(import_module(f"{package}.{name}"))
        for package in ("resnet_onnx", "resnet_torch")
    )
    assert ours == theirs


def test_layers_have_the_names_and_the_order_of_the_twins():
    ours, theirs = (
        [name for name, value in vars(maker).items() if inspect.isfunction(value)]
        for maker in (Layers, resnet_torch.layers.Layers)
    )
    shared = [name for name in theirs if name in ours and name[0] != "_"]
    assert [name for name in ours if name in shared] == shared
    assert len(shared) == 16


def test_every_attention_has_a_graph_and_another_is_refused(
    monkeypatch: pytest.MonkeyPatch,
):
    assert KINDS.keys() == ATTENTION.keys()
    monkeypatch.delitem(KINDS, "se")
    config = TINY.replace(attention="se")
    with pytest.raises(ValueError, match="attention 'se' has no graph"):
        graph(config, parity.state_dict(random_torch(config)))


def _too_odd(config: ResNetConfig) -> bool:
    plans = [plan for blocks in stages(config) for plan in blocks]
    strided = any(plan.stride > 1 and plan.first_dilation > 1 for plan in plans)
    of_3x3 = config.stride_on == "3x3" and config.anti_alias == "none"
    of_3x3 = of_3x3 or config.shortcut == "B3"
    return config.block_padding == "same" and strided and of_3x3


@given(drawn=configs_with_images())
@settings(max_examples=examples(60))
def test_any_network_is_the_same_in_a_graph_or_refused_in_one_line(
    drawn: tuple[ResNetConfig, np.ndarray],
):
    config, x = drawn
    x = x.astype(np.float32).astype(np.float64)
    model = random_torch(config)
    state = parity.state_dict(model)
    if _too_odd(config):
        with pytest.raises(ValueError, match="padded SAME at once"):
            graph(config, state)
        return
    made = graph(config, state)
    onnx.checker.check_model(made, full_check=True)
    found, expected = _run(made, x), _expected(model, x)
    assert found.dtype == np.float32
    assert deviation(found, expected).l2 < 10 * ROUNDING
    folded = parity.state_dict(resnet_torch.fuse(random_torch(config)))
    assert deviation(_run(graph(config, folded), x), expected).l2 < 10 * ROUNDING


@pytest.mark.slow
@pytest.mark.parametrize("name", without_large_ones(list_models()))
def test_networks_at_full_size_are_the_same_in_both_runtimes(name: str):
    config = get_config(name)
    model = random_torch(name)
    made = graph(config, parity.state_dict(model))
    x = images(config, *config.natural_size, n=1).astype(np.float32)
    expected = _expected(model, x.astype(np.float64))
    for run in (_run, _openvino):
        assert deviation(run(made, x), expected).l2 < ROUNDING


def test_both_runtimes_compute_the_same_for_any_number_and_size():
    config = TINY.replace(stem="deep", shortcut="D", attention="se")
    model = random_torch(config)
    made = graph(config, parity.state_dict(model))
    for n, size in ((1, (33, 47)), (3, (64, 35))):
        x = images(config, *size, n=n).astype(np.float32)
        expected = _expected(model, x.astype(np.float64))
        assert deviation(_run(made, x), expected).l2 < ROUNDING
        assert deviation(_openvino(made, x), expected).l2 < ROUNDING


def test_initialisers_and_values_have_torchvisions_names():
    model = random_torch(TINY)
    state = parity.state_dict(model)
    made = graph(TINY, state)
    names = {tensor.name for tensor in made.graph.initializer}
    assert names == {n for n in state if not n.endswith("num_batches_tracked")}
    values = {node.output[0] for node in made.graph.node}
    paths = {path for path, _ in model.named_modules() if path}
    assert {"layer1.0.conv1", "layer2.0.downsample.1", "fc"} <= values & paths


def test_a_fused_networks_graph_has_no_norms_and_computes_the_same():
    model = random_torch(TINY).eval()
    state = parity.state_dict(resnet_torch.fuse(model))
    made = graph(TINY, state)
    assert {node.op_type for node in made.graph.node}.isdisjoint({"BatchNormalization"})
    x = images(TINY, 40, 33).astype(np.float32)
    expected = _expected(model, x.astype(np.float64))
    assert deviation(_run(made, x), expected).l2 < ROUNDING


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_stay_in_the_file_and_in_the_rounding(dtype: str):
    model = random_torch(TINY)
    state = parity.cast(parity.state_dict(model), dtype)
    made = graph(TINY, state)
    kinds = {tensor.data_type for tensor in made.graph.initializer}
    assert kinds == {getattr(onnx.TensorProto, dtype.upper())}
    parity.load_state_dict(model, parity.cast(state, "float32"))
    x = images(TINY, 40, 33).astype(getattr(ml_dtypes, dtype, dtype)).astype(np.float32)
    found, expected = _run(made, x), _expected(model, x.astype(np.float64))
    assert found.dtype == np.float32
    assert deviation(found, expected).l2 < 3 * CEILINGS[dtype].ceiling


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"layer1.0.bn1.weight": None}, "lacks layer1.0.bn1.weight"),
        ({"layer1.0.conv1.weight": None}, "lacks layer1.0.conv1.weight"),
        ({"layer1.0.conv1.bias": np.zeros(8, np.float32)}, "has layer1.0.conv1.bias"),
        ({"conv1.weight": np.zeros((8, 3, 7, 7))}, "are float64"),
    ],
)
def test_a_state_of_another_network_is_refused(change: dict[str, Any], says: str):
    state = parity.state_dict(random_torch(TINY)) | change
    state = {name: array for name, array in state.items() if array is not None}
    with pytest.raises(ValueError, match=says):
        graph(TINY, state)
