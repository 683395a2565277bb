"""Programs of 8-bit integers, by ONNX Runtime's own tools: smaller, and not equal.

Weights and maps are rounded to 256 values each: a kernel's by channel, a map's by the
range that it has on calibration images (static quantisation, as pairs of quantising and
dequantising nodes).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parity.exports.facts import KEY, Facts
from resnet_spec import ResNetConfig

Taps = dict[str, np.ndarray]

_PREPARED = {"onnx.quant.pre_process": "onnxruntime.quant"}
"""Tells the tools that norms are folded and shapes inferred already."""


def quantized(
    facts: Facts, folded: Mapping[str, np.ndarray], batches: Sequence[np.ndarray]
) -> bytes:
    """Returns a program of 8-bit integers.

    Args:
        facts: what it shall say of itself.
        folded: the state of the network without batch norms, in float32.
        batches: calibration images, as the program takes them.
    """
    import onnx
    from onnxruntime import quantization

    from resnet_onnx.network import IMAGES

    class Reader(quantization.CalibrationDataReader):
        """Hands out the batches, one after the other."""

        def __init__(self) -> None:
            self._left: Iterator[np.ndarray] = iter(batches)

        def get_next(self) -> Any:
            batch = next(self._left, None)
            return None if batch is None else {IMAGES: batch}

    model = _graph(facts, folded)
    onnx.helper.set_model_props(model, _PREPARED)
    with tempfile.TemporaryDirectory(prefix="resnet-twins-") as folder:
        path = Path(folder, "int8.onnx")
        quantization.quantize_static(
            onnx.shape_inference.infer_shapes(model),
            str(path),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
        )
        made = onnx.load(path)
    onnx.helper.set_model_props(made, {KEY: facts.to_json()})
    return made.SerializeToString()


def taps_of(
    facts: Facts, folded: Mapping[str, np.ndarray], data: bytes
) -> tuple[Sequence[str], Any, Any]:
    """Returns names of maps by depth, and what gives them of the program and unrounded.

    Args:
        facts: the program's.
        folded: see :func:`quantized`.
        data: the program.

    Returns:
        The names, a function of images for the network in float32, and one for the
        program; both to arrays, in order.
    """
    import onnx

    names = tap_names(facts.config)
    plain, rounded = _graph(facts, folded), onnx.load_from_string(data)
    known = {value for node in rounded.graph.node for value in node.output}
    read = [f"{name}_DequantizeLinear_Output" for name in names]
    read = [r if r in known else name for r, name in zip(read, names, strict=True)]
    return names, _watched(plain, names), _watched(rounded, read)


def tap_names(config: ResNetConfig) -> list[str]:
    """Returns the values that tell how deep an error is: each stage's map, the end."""
    from resnet_onnx.network import LOGITS

    blocks = enumerate(config.layers, start=1)
    ends = [f"layer{stage}.{count - 1}" for stage, count in blocks]
    return ["relu", *ends, LOGITS]


def _graph(facts: Facts, folded: Mapping[str, np.ndarray]) -> Any:
    from resnet_onnx import graph

    return graph(facts.config, folded, preprocessing=facts.preprocessing)


def _watched(model: Any, names: Sequence[str]) -> Any:
    import onnx
    import onnxruntime

    from resnet_onnx.network import IMAGES

    have = {value.name for value in model.graph.output}
    for name in dict.fromkeys(names):
        if name not in have:
            value = onnx.helper.make_tensor_value_info(
                name, onnx.TensorProto.FLOAT, None
            )
            model.graph.output.append(value)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return lambda images: session.run(list(names), {IMAGES: images})
