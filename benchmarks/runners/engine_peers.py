"""ONNX Runtime and OpenVINO: engines that take the torch twin, exported."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import inputs
from benchmarks.measuring.worker import Job, Runner
from parity.weights.twins import build as build_twin


def build(job: Job) -> Runner:
    """Makes the engine ready."""
    model = build_twin("torch", job.case.spec, inputs.read_weights(job.folder))
    images, _ = inputs.read_batch(job.folder, job.case)
    example = torch.from_numpy(images)
    make = _openvino if "openvino" in job.mode.options else _onnxruntime
    start = time.perf_counter()
    run = make(model, example, job)
    prepared = time.perf_counter() - start
    del model
    last: list[np.ndarray] = []

    def call() -> None:
        last[:] = [run(images)]

    return Runner(call, lambda: {"logits": last[0]}, facts={"prepared": prepared})


def _onnxruntime(model: Any, example: torch.Tensor, job: Job) -> Any:
    import onnxruntime  # type: ignore[import-not-found]  an extra

    path = job.folder / f"{job.mode.name}.onnx"
    torch.onnx.export(model, (example,), str(path), input_names=["x"], dynamo=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    session = onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"]
    )
    return lambda images: session.run(None, {"x": images})[0]


def _openvino(model: Any, example: torch.Tensor, job: Job) -> Any:
    import openvino  # type: ignore[import-not-found]  an extra

    converted = openvino.convert_model(model, example_input=example)
    converted.reshape(list(example.shape))
    compiled = openvino.Core().compile_model(
        converted,
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": job.threads,
            # On bfloat16 machines it would compute in that, unasked.
            "INFERENCE_PRECISION_HINT": "f32",
        },
    )
    return lambda images: compiled(images)[0]
