"""The same check on an accelerator, in both precisions; skipped where there is none."""

from __future__ import annotations

from typing import Any

import jax
import pytest
import torch

import parity
from parity.precision import PRECISIONS, float32_precision
from parity.samples import random_images
from resnet_spec import get_config
from tests.networks import flax_like, random_torch


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


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
def test_twins_on_an_accelerator_pass_in_both_precisions(precision: Any):
    if reason := _accelerator():
        pytest.skip(reason)
    model = random_torch(get_config("resnet50")).cuda()
    images = random_images((4, 3, 225, 193), seed=0)
    found = parity.check(model, flax_like(model), images, precision=precision)
    assert found.ok, found.verdict()
    expected = "tf32" if precision == "tf32" else "float32"
    assert found.setting["arithmetic"] == expected


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
