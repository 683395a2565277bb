"""The same check on an accelerator, in both precisions; skipped where there is none."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
import torch

import parity
from parity.images import random_images
from parity.machine import PRECISIONS, float32_precision
from resnet_spec import OptimizerConfig, Schedule, get_config
from tests.support.networks import TINY_BOTTLENECK, flax_like, random_torch


def _accelerator() -> str | None:
    """Why there is none, or ``None``."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if jax.default_backend() != "gpu":
        return f"JAX computes on {jax.default_backend()}"
    return None


def _matmul_precision() -> Any:
    config: Any = jax.config
    return config.jax_default_matmul_precision


ARITHMETICS = {
    "strict": ("float32", "strict", "float32"),
    "tf32": ("float32", "tf32", "tf32"),
    "bfloat16": ("bfloat16", "strict", "bfloat16"),
}
"""Dtype and precision that are asked for, and what is then computed in."""

# Compiling each module of a deep network by itself takes an accelerator minutes.
WHOLE = tuple(g for g in parity.GATES if "isolated" not in g and "eager" not in g)


@pytest.mark.gpu
@pytest.mark.parametrize("asked", ARITHMETICS)
@pytest.mark.parametrize(
    ("network", "shape", "gates"),
    [
        pytest.param("resnet18", (4, 3, 97, 65), WHOLE, id="resnet18"),
        pytest.param(TINY_BOTTLENECK, (4, 3, 65, 49), tuple(parity.GATES), id="tiny"),
    ],
)
def test_twins_on_an_accelerator_pass_every_gate(
    network: Any, shape: tuple[int, int, int, int], gates: tuple[str, ...], asked: str
):
    if reason := _accelerator():
        pytest.skip(reason)
    dtype, precision, arithmetic = ARITHMETICS[asked]
    model = random_torch(network).cuda().to(getattr(torch, dtype))
    images = random_images(shape, seed=0).astype(dtype).astype(np.float32)
    found = parity.check(
        *(model, flax_like(model, dtype), images),
        gates=gates,
        precision=precision,  # type: ignore[arg-type]  of the table
    )
    assert found.ok, str(found)
    assert found.setting["arithmetic"] == arithmetic


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_fault_is_seen_on_an_accelerator(precision: Any):
    if reason := _accelerator():
        pytest.skip(reason)
    model = random_torch(TINY_BOTTLENECK).cuda()
    twin: Any = flax_like(model)
    twin.layer2[0].bn2.eps = 1e-3
    images = random_images((2, 3, 65, 49), seed=0)
    found = parity.check(model, twin, images, gates=("G1", "G2"), precision=precision)
    assert not found.ok
    assert "layer2.0.bn2" in str(found).splitlines()[-1]


@pytest.mark.gpu
def test_steps_on_an_accelerator_are_the_same():
    if reason := _accelerator():
        pytest.skip(reason)
    model = random_torch(TINY_BOTTLENECK).cuda()
    images = random_images((4, 3, 65, 49), seed=0)
    optimizer = OptimizerConfig(
        schedule=Schedule(learning_rate=0.02), momentum=0.9, weight_decay=1e-4
    )
    twin = flax_like(model)
    found = parity.compare_training(model, twin, images, optimizer, steps=5)
    assert found.ok, str(found)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_on_a_cpu_both_precisions_are_float32(precision: Any):
    model = random_torch(get_config("cifar_resnet20"))
    images = random_images((2, 3, 32, 32), seed=0)
    found = parity.check(
        *(model, flax_like(model), images), gates=("G2", "G3"), precision=precision
    )
    assert found.ok
    if _accelerator():
        assert found.setting["arithmetic"] == "float32"


def test_precision_is_set_in_both_frameworks_and_restored():
    before = (
        torch.backends.cudnn.allow_tf32,
        _matmul_precision(),
    )
    with float32_precision("tf32"):
        assert torch.backends.cuda.matmul.allow_tf32
        assert _matmul_precision() == "tensorfloat32"
    with float32_precision("strict"):
        assert not torch.backends.cudnn.allow_tf32
        assert _matmul_precision() == "highest"
    after = (
        torch.backends.cudnn.allow_tf32,
        _matmul_precision(),
    )
    assert after == before
    wrong: Any = "fast"
    with pytest.raises(ValueError, match="precision is 'fast'; it must be one of"):
        float32_precision(wrong).__enter__()
