"""Engines that run a graph on a CPU: what people deploy with."""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
from onnx import ModelProto

from resnet_onnx.network import IMAGES

Run = Callable[[np.ndarray], np.ndarray]
"""From images, float32 (n, c, h, w), to what the network gives."""


def load(graph: ModelProto, engine: str, *, threads: int | None = None) -> Run:
    """Makes a graph ready in an engine, in float32.

    Args:
        graph: from :func:`resnet_onnx.graph`.
        engine: one of ``ENGINES``.
        threads: that it computes with; its own choice if ``None``.

    Raises:
        ModuleNotFoundError: the engine is not installed.
        ValueError: there is no such engine.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}; there are {', '.join(ENGINES)}")
    if find_spec(engine) is None:
        raise ModuleNotFoundError(
            f"engine {engine!r} is not installed; pip install 'resnet-twins[engines]' "
            "brings it",
            name=engine,
        )
    return ENGINES[engine](graph, threads)


def onnxruntime(graph: ModelProto, threads: int | None) -> Run:
    """Makes a graph ready in ONNX Runtime; one session takes every shape."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def run(images: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(None, {IMAGES: images})[0])

    return run


def openvino(graph: ModelProto, threads: int | None) -> Run:
    """Makes a graph ready in OpenVINO, which is compiled for each shape."""
    import openvino

    core = openvino.Core()
    data = graph.SerializeToString()
    # On machines of bfloat16 it would compute in that, unasked.
    how: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    if threads:
        how["INFERENCE_NUM_THREADS"] = threads
    compiled: dict[tuple[int, ...], Any] = {}

    def run(images: np.ndarray) -> np.ndarray:
        if images.shape not in compiled:
            read = core.read_model(io.BytesIO(data))
            read.reshape(list(images.shape))
            compiled[images.shape] = core.compile_model(read, "CPU", how)
        return compiled[images.shape](images)[0].copy()

    return run


ENGINES = {"onnxruntime": onnxruntime, "openvino": openvino}
"""Engine → what makes a graph ready in it; each is a module's name, too."""


def installed() -> tuple[str, ...]:
    """Returns the engines that are here, in order; none without ONNX."""
    return tuple(name for name in ENGINES if find_spec(name) is not None)
