"""What it takes to make a program of a network: compiled, or written to a file."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring.flops import flops
from benchmarks.measuring.pool import apart
from benchmarks.measuring.worker import peak_memory
from resnet_spec import get_config


def measure(network: str) -> list[dict[str, Any]]:
    """Makes each kind of program once, in a process of its own.

    Args:
        network: its name; the weights are random.

    Returns:
        For each kind its seconds, from the network to the first result or to the proved
        file; the bytes that its process took beyond its imports and the network; and
        the network's operations for one image.
    """
    config = get_config(network)
    work = flops(config, "inference", 1, config.natural_size)
    return [
        {
            "network": network,
            "program": program,
            "flops": work,
            **apart(make, network, *how),
        }
        for program, (make, *how) in PROGRAMS.items()
    ]


def _compiled_torch(network: str) -> dict[str, Any]:
    import torch

    import resnet_torch

    model = resnet_torch.create_model(network).eval()
    images = torch.from_numpy(_image(network).transpose(0, 3, 1, 2))
    return _costs(lambda: resnet_torch.compile(model)(images))


def _compiled_flax(network: str) -> dict[str, Any]:
    import jax

    import resnet_flax

    model = resnet_flax.create_model(network, rngs=0)
    model.eval()
    images = jax.device_put(_image(network))
    return _costs(lambda: resnet_flax.compile(model)(images).block_until_ready())


def _exported(network: str, ending: str) -> dict[str, Any]:
    import parity
    import resnet_torch

    model = resnet_torch.create_model(network).eval()
    with tempfile.TemporaryDirectory(prefix="resnet-twins-bench-") as folder:
        path = Path(folder, f"{network}{ending}")
        return _costs(lambda: parity.export(model, path))


def _image(network: str) -> np.ndarray:
    config = get_config(network)
    shape = (1, *config.natural_size, config.in_channels)
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _costs(make: Callable[[], object]) -> dict[str, Any]:
    before, start = peak_memory(), time.perf_counter()
    make()
    return {
        "seconds": time.perf_counter() - start,
        "memory": peak_memory() - before,
    }


PROGRAMS: Mapping[str, tuple[Any, ...]] = {
    "compile, torch": (_compiled_torch,),
    "compile, Flax": (_compiled_flax,),
    "export, ONNX": (_exported, ".onnx"),
    "export, StableHLO": (_exported, ".stablehlo"),
    "export, torch.export": (_exported, ".pt2"),
}
"""What makes each, and its further arguments."""
