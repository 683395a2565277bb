"""Equal networks raise no alarm, whatever their settings, weights, images and dtype."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import parity
from parity.state import DTYPES
from parity.twins import ABSTRACT
from resnet_spec import ResNetConfig
from tests.networks import configs_with_images

RUNS = 20
COMPUTED_IN = st.sampled_from(["float32", "float32", "bfloat16", "float16"])


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
def test_no_false_alarm(number: int):
    seen = []

    @seed(number)
    @settings(
        max_examples=RUNS,
        database=None,
        phases=[Phase.generate],  # what alarms need not be made small
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(configs_with_images(), COMPUTED_IN, st.integers(0, 2**16))
    def check(case: tuple[ResNetConfig, np.ndarray], dtype: str, weights: int) -> None:
        config, images = case
        model, twin = (
            ABSTRACT[name](config, param_dtype=dtype) for name in ("torch", "flax")
        )
        state = parity.random_state(parity.entries(model), seed=weights)
        for network in (model, twin):
            parity.load_state_dict(network, parity.cast(state, dtype))
        images = images.astype(DTYPES[dtype]).astype(np.float32)
        found = parity.check(model, twin, images, seed=weights)
        seen.append(config)
        print(f"{number}/{len(seen)}: {dtype}, {config}, {images.shape}: {found.ok}")
        assert found.ok, f"{config} in {dtype}, weights {weights}: {found.verdict()}"

    cast(Any, check)()
    assert len(seen) >= RUNS
