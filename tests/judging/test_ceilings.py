"""The frozen ceilings are those of what is measured: neither too low nor too high."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import parity
from parity.images import random_images
from parity.judging.tolerances import CEILINGS
from parity.mutants.mutant import become
from resnet_flax.layers import BatchNorm2d
from resnet_spec import get_config
from tests.support.networks import TINY, flax_like, random_torch

DTYPES = ["float32", "bfloat16", "float16"]


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        pytest.param("float32", "resnet18", marks=pytest.mark.slow),
        *(
            pytest.param(dtype, name, marks=pytest.mark.exhaustive)
            for name in ("resnet18", "resnet50")
            for dtype in DTYPES
            if (dtype, name) != ("float32", "resnet18")
        ),
    ],
)
def test_a_ceiling_is_above_what_is_measured_and_below_twenty_times(
    dtype: str, name: str
):
    model = random_torch(get_config(name)).to(getattr(torch, dtype))
    images = random_images((2, 3, 64, 48), seed=0).astype(dtype).astype(np.float32)
    found = parity.check(
        *(model, flax_like(model, dtype), images), gates=("G3", "G3 training")
    )
    assert found.ok, found.verdict()
    rows = [row for gate in found.gates for row in gate.rows]
    measured = max(row.error / row.figures["growth"] for row in rows)
    frozen = CEILINGS[dtype]
    assert measured < frozen.ceiling < 20 * measured
    assert frozen.measured / 3 < measured < frozen.measured * 3


# In float64 nothing is rounded, so that the reference is the exact one.
def _rounds_in_torch(model: Any) -> None:
    def rounded(module: Any, given: Any, y: torch.Tensor) -> torch.Tensor:
        return y.bfloat16().to(y.dtype) if y.dtype == torch.float32 else y

    model.bn1.register_forward_hook(rounded)


class _Rounds(BatchNorm2d):
    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None
    ) -> jax.Array:
        y = super().__call__(x)
        # XLA would leave a cast there and back out.
        return jax.lax.reduce_precision(y, 8, 7) if y.dtype == jnp.float32 else y


@pytest.mark.parametrize("bad", ["torch", "Flax", "torch Flax"])
def test_a_network_that_rounds_on_the_way_does_not_pass(bad: str):
    model = random_torch(get_config("resnet18"))
    twin = flax_like(model)
    images = random_images((2, 3, 64, 48), seed=0)
    if "torch" in bad:
        _rounds_in_torch(model)
    if "Flax" in bad:
        become("bn1", _Rounds)(twin)
    found = parity.check(model, twin, images, gates=("G2", "G3"))
    failures = found.gate("G3").failures
    assert [row.note for row in failures] == [f"in {name}" for name in bad.split()]
    # Neither is worse than the other where both are bad: only the ceiling sees it.
    assert found.gate("G2").ok == (bad == "torch Flax")


def test_the_rows_of_a_failing_gate_are_of_the_twin_that_failed():
    model = random_torch(TINY)
    twin = flax_like(model)
    _rounds_in_torch(model)
    images = random_images((2, 3, 33, 40), seed=1)
    found = parity.check(model, twin, images, gates=("G2", "G2 isolated"))
    for gate in found.gates:
        assert gate.failures
        for row in gate.failures:
            assert row.error > row.limit
            assert "in torch" in row.note
            assert row.figures["torch"]["l2"] > 10 * row.figures["flax"]["l2"]
    assert found.culprits == ("bn1",)
