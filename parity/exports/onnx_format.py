"""ONNX: a graph written from the description, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from parity.errors import InputError
from parity.exports.facts import KEY, Facts, Program

EXTENSION = ".onnx"
NEEDS = ("onnx", "onnxruntime")
WRITTEN_BY = ("onnx",)


def write(facts: Facts, state: Mapping[str, np.ndarray]) -> bytes:
    """Returns the program of a state of these facts."""
    from resnet_onnx import graph

    told = {KEY: facts.to_json()}
    preprocessing = facts.preprocessing
    model = graph(facts.config, state, preprocessing=preprocessing, facts=told)
    return model.SerializeToString()


def read(data: bytes) -> Program:
    """Loads a program by ONNX Runtime, on a CPU.

    Raises:
        InputError: it is none.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it raises what else it would print too
    how: Any = {"providers": ["CPUExecutionProvider"]}
    try:
        session = onnxruntime.InferenceSession(data, options, **how)
    except Exception as error:  # of classes of its own
        raise InputError(f"ONNX Runtime does not load it ({error})") from error
    told = session.get_modelmeta().custom_metadata_map.get(KEY)
    facts = Facts.from_json(told)
    name = session.get_inputs()[0].name

    def run(images: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(None, {name: images})[0])

    return Program(facts, run)
