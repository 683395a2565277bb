"""Equal networks raise no alarm, whatever their settings, weights, images and dtype."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import parity
import resnet_torch
from parity.images import random_images
from parity.judging.distance import deviation
from parity.judging.reference import Reference, reference_of
from parity.judging.series import lost_of_products
from parity.judging.tolerances import arithmetic_floor, growth_of_product
from parity.running.objective import loss_scale, objective_for
from parity.running.pair import pair_of
from parity.running.taps import Quantity
from parity.weights.state import DTYPES
from parity.weights.twins import ABSTRACT
from resnet_spec import ResNetConfig
from tests.support.networks import (
    TINY,
    TINY_BOTTLENECK,
    configs_with_images,
    flax_like,
    random_torch,
)

RUNS = 20
COMPUTED_IN = st.sampled_from(["float32", "float32", "bfloat16", "float16"])


@pytest.mark.slow
def test_an_identity_has_the_gradient_of_its_own_branch_alone():
    config = TINY_BOTTLENECK.replace(shortcut="D")
    model = random_torch(config)
    assert isinstance(model.get_submodule("layer1.0.downsample.0"), torch.nn.Identity)
    gates = ("G1 training", "G1 training isolated")
    found = parity.check(
        model, flax_like(model), random_images((2, 3, 33, 40), seed=4), gates=gates
    )
    assert found.ok, found.verdict()


def test_a_gradient_is_granted_the_roundings_of_the_way_there_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = random_torch(TINY)
    images = random_images((3, 3, 65, 49), seed=1)
    reference = reference_of(
        pair_of(model, flax_like(model)),
        images,
        objective=objective_for((3, 7), seed=0),
        folder=tmp_path,
        progress=lambda _: None,
    )
    monkeypatch.setattr(Reference, "_magnified", {})
    monkeypatch.setattr(Reference, "_sums", {})
    layers = 9  # three blocks of two, one shortcut, the stem, the classifier
    for kind, name, behind in [
        ("output", "conv1", 1),
        ("statistic", "bn1.running_mean", 1),
        ("output", "fc", layers),
        ("gradient", "fc", layers),
        ("gradient", "conv1", 2 * layers - 1),
        ("parameter gradient", "conv1.weight", 2 * layers - 1),
        ("loss", "", layers),
    ]:
        growth = reference.growth(Quantity(kind, name))
        assert growth == (behind**0.5, behind**0.5), (kind, name)


@pytest.mark.parametrize("largest", [0.0, 1e-9, 15.9, 16.1, 3e4, 1e30, float("inf")])
def test_float16_gradients_are_scaled_into_its_range(largest: float):
    scale = loss_scale(largest)
    assert scale == 2.0 ** np.round(np.log2(scale))
    assert scale <= 1024
    if largest < float("inf"):
        assert largest * scale < 2**15
        assert scale == 1024 or largest * scale > 2**12


def test_roundings_of_a_sum_grow_by_its_length_and_by_what_cancels_in_it():
    terms = np.random.default_rng(0).standard_normal((3344, 500)).astype(np.float32)
    sums = terms.sum(0, dtype=np.float64)
    terms[-1] -= (sums * 15 / 16).astype(np.float32)  # most of it cancels
    sums = terms.sum(0, dtype=np.float64)
    perturbation = np.linalg.norm(terms, axis=0)
    magnified = float(np.linalg.norm(perturbation) / np.linalg.norm(sums))
    error = deviation(terms.cumsum(0, dtype=np.float32)[-1], sums).l2
    by_length = growth_of_product(len(terms))
    assert error > arithmetic_floor("float32", max(by_length, magnified))
    assert error < arithmetic_floor("float32", by_length * magnified)


LARGE = ResNetConfig(block="basic", layers=(2, 2), widths=(16, 32), num_classes=10)
SIZES_OF_TRAINING = [
    (seed, batch, threads, kind)
    for kind in ("uniform", "normal")
    for batch in (4, 8)
    for threads in (1, 2)
    for seed in range(5)
]


def trained_at_size(seed: int, batch: int, threads: int, kind: str) -> parity.Report:
    """A check of a network as it is created, on maps as large as those of training."""
    rng = np.random.default_rng(seed)
    draw = rng.random if kind == "uniform" else rng.standard_normal
    images = draw((batch, 3, 224, 224)).astype(np.float32)
    torch.manual_seed(seed)
    model = resnet_torch.create_model(LARGE)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        gates = ("G4", "G2 training")
        return parity.check(model, flax_like(model), images, gates=gates, seed=seed)
    finally:
        torch.set_num_threads(before)


def test_what_a_serial_sum_loses_where_most_terms_are_tiny_is_measured():
    # As a batch norm's gradient behind a max pool: two thirds are next to nothing.
    rng = np.random.default_rng(0)
    gradient = rng.standard_normal((1, 8, 300, 300)) * 1e-4
    gradient[:, :, rng.random((300, 300)) < 0.7] *= 1e-3
    gradient[:, :, :150] += 1e-4
    gradient -= gradient.mean((2, 3), keepdims=True)
    x = np.full((1, 1, 300, 300), 0.5)
    terms = (gradient[0] * x[0]).reshape(8, -1).astype(np.float32)
    sums = terms.cumsum(1, dtype=np.float32)[:, -1]
    lost = np.linalg.norm(sums - terms.sum(1, dtype=np.float64))
    assert lost / 2 < lost_of_products(gradient, x, 1) < lost * 2


def test_large_maps_raise_no_alarm():
    # torch sums the stem's gradient over 50,176 positions in an order that loses three
    # digits, where all pixels have one sign and the gradients' sums cancel.
    found = trained_at_size(0, 4, 1, "uniform")
    assert found.ok, found.verdict()
    row = next(r for r in found.gate("G2 training").rows if r.name == "conv1.weight")
    assert row.figures["torch"]["l2"] < 3e-4  # what its limit grants is no blank cheque
    assert row.limit < 3e-4


@pytest.mark.exhaustive
@pytest.mark.parametrize(("seed", "batch", "threads", "kind"), SIZES_OF_TRAINING)
def test_no_false_alarm_at_sizes_of_training(
    seed: int, batch: int, threads: int, kind: str
):
    found = trained_at_size(seed, batch, threads, kind)
    assert found.ok, found.verdict()


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", range(10))
def test_no_false_alarm(number: int):
    seen, alarms = [], []

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
        if not found.ok:  # the others of this number are checked nevertheless
            alarms.append(f"{config} in {dtype}, weights {weights}: {found.verdict()}")

    cast(Any, check)()
    assert not alarms, f"{len(alarms)} of {len(seen)}: {alarms}"
    assert len(seen) >= RUNS
