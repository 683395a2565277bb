"""What a check can be blind to: noise, memory, hooks, dtypes; what it must not mind.

None of these faults is in the catalogue of mutants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch
from torch import nn

import parity
import resnet_flax.layers
from parity.images import random_images
from resnet_spec import OptimizerConfig, ResNetConfig, Schedule
from tests.support.networks import TINY, flax_like, random_torch

SMALL = TINY.replace(layers=(1,), widths=(4,), num_classes=5)
SIZE = (2, 3, 21, 18)

Change = Callable[[Any], None]


def _nothing(model: Any) -> None: ...


def _check(
    *gates: str,
    torch_change: Change = _nothing,
    flax_change: Change = _nothing,
    config: ResNetConfig = SMALL,
    size: tuple[int, int, int, int] = SIZE,
    seed: int = 0,
) -> parity.Report:
    model = random_torch(config, seed=seed)
    twin = flax_like(model)
    torch_change(model)
    flax_change(twin)
    images = random_images(size, seed=seed + 1)
    return parity.check(model, twin, images, gates=gates or parity.GATES, seed=seed)


def _notes(report: parity.Report) -> dict[str, str]:
    return {row.name: row.note for gate in report.gates for row in gate.failures}


class Remembers(resnet_flax.layers.BatchNorm2d):
    """Follows the statistics in evaluation mode too, without using them."""

    def __call__(self, x: Any, use_running_average: bool | None = None) -> Any:
        y = super().__call__(x)
        if self.use_running_average:
            self._batch_statistics(x, jnp.zeros_like(x[0, 0, 0]))
        return y


class Drifts(resnet_flax.layers.BatchNorm2d):
    def __call__(self, x: Any, use_running_average: bool | None = None) -> Any:
        y = super().__call__(x)
        self.scale.set_value(self.scale[...] * 1.001)
        return y


class Widens(resnet_flax.layers.Conv2d):
    def __call__(self, inputs: Any, out_sharding: Any = None) -> Any:
        return super().__call__(inputs).astype(jnp.float32)


class WrongWithoutJit(resnet_flax.layers.BatchNorm2d):
    def __call__(self, x: Any, use_running_average: bool | None = None) -> Any:
        y = super().__call__(x)
        try:
            bool(y.sum() > 0)
        except jax.errors.ConcretizationTypeError:  # under jit no value is known
            return y
        return y * 1.001


def _turned(cls: type) -> Change:
    return lambda twin: object.__setattr__(twin.layer1[0].bn1, "__class__", cls)


def test_a_layer_that_is_wrong_without_jit_alone_is_seen_in_both_modes():
    gates = [gate for gate in parity.GATES if gate.startswith("G2")]
    found = _check(*gates, flax_change=_turned(WrongWithoutJit))
    failed = {gate.gate: gate.failures[0].name for gate in found.gates if not gate.ok}
    assert failed == {
        "G2 eager": "layer1.0.bn1",
        "G2 isolated": "layer1.0.bn1",
        "G2 training eager": "layer1.0.bn1",
        "G2 training isolated": "layer1.0.bn1",
    }


@pytest.mark.parametrize("gate", ["G2", "G2 isolated"])
def test_statistics_that_evaluation_mode_changes_are_seen(gate: str):
    found = _check(gate, flax_change=_turned(Remembers))
    assert "layer1.0.bn1" in (found.first_divergence or "")
    assert all("the run changes it in" in note for note in _notes(found).values())

    def shift(norm: Any, *_: Any) -> None:
        norm.running_mean.add_(1)

    def shifts(model: Any) -> None:
        model.layer1[0].bn1.register_forward_hook(shift)

    assert "layer1.0.bn1" in (_check(gate, torch_change=shifts).first_divergence or "")


@pytest.mark.parametrize("gate", ["G2 training", "G2 training isolated"])
def test_parameters_that_a_run_changes_are_seen(gate: str):
    found = _check(gate, flax_change=_turned(Drifts))
    assert "layer1.0.bn1" in (found.first_divergence or "")

    def drift(norm: Any, *_: Any) -> None:
        norm.weight.data.mul_(1.001)

    def drifts(model: Any) -> None:
        model.layer1[0].bn1.register_forward_hook(drift)

    assert not _check(gate, torch_change=drifts).ok


def test_hooks_of_parameters_are_copied_with_the_network():
    found = _check(
        "G2 training isolated",
        torch_change=lambda model: model.layer1[0].conv2.weight.register_hook(
            lambda gradient: 2 * gradient
        ),
    )
    assert found.culprits == ("layer1.0.conv2",)


class Noisy(nn.BatchNorm2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * (1 + 1e-3 * torch.randn(()))


def test_noise_is_not_taken_for_rounding_that_grows():
    def noisy(model: Any) -> None:
        model.layer1[0].bn2.__class__ = Noisy

    found = _check("G1", "G1 isolated", "G1 training isolated", torch_change=noisy)
    assert not any(gate.ok for gate in found.gates)
    assert found.first_divergence == "layer1.0.bn2"
    assert found.culprits == ("layer1.0.bn2",)
    assert _notes(found)["layer1.0.bn2"] == "does not compute the same twice in torch"


def test_dropout_left_in_one_network_is_named():
    def drops(model: Any) -> None:
        model.layer1[0].register_forward_hook(
            lambda module, _, y: nn.functional.dropout(y, 0.3, module.training)
        )

    found = _check("G1 training isolated", torch_change=drops)
    assert found.culprits == ("layer1.0",)


def test_a_network_that_leaves_its_dtype_is_seen():
    model = random_torch(SMALL).bfloat16()
    twin = flax_like(model, "bfloat16")
    object.__setattr__(twin.conv1, "__class__", Widens)
    images = random_images(SIZE, seed=1)
    with jax.numpy_dtype_promotion("standard"):
        found = parity.check(model, twin, images, gates=("G2",))
    assert _notes(found)["conv1"] == "is float32 in Flax, bfloat16 in torch"
    assert found.first_divergence == "conv1"


def test_a_frozen_parameter_is_said_and_is_judged_nevertheless():
    def freeze(model: Any) -> None:
        model.conv1.weight.requires_grad_(False)

    gates = ("G2 training", "G2 training isolated")
    found = _check(*gates, torch_change=freeze)
    assert found.ok, found.verdict()
    notes = {row.name: row.note for row in found.gate("G2 training").rows if row.note}
    assert notes["frozen parameters"].startswith("1 do not learn in torch")
    judged = {row.name for row in found.gate("G2 training").rows if row.limit}
    assert "conv1.weight" in judged


# --- equal networks -------------------------------------------------------------------


def test_scales_of_zero_raise_no_alarm():
    def zero(model: Any) -> None:
        with torch.no_grad():
            model.layer1[0].bn2.weight.zero_()

    model = random_torch(SMALL)
    zero(model)
    images = random_images(SIZE, seed=1)
    found = parity.check(*(model, flax_like(model), images), gates=parity.TRAINING)
    assert found.ok, found.verdict()


@pytest.mark.parametrize("seed", range(3))
def test_two_values_to_a_channel_raise_no_alarm(seed: int):
    config = TINY.replace(layers=(1, 1), widths=(4, 6))
    gates = ("G2 training", "G3 training")
    found = _check(*gates, config=config, size=(2, 3, 7, 6), seed=seed)
    assert found.ok, found.verdict()


@pytest.mark.parametrize(
    "kind",
    [*(pytest.param(k, marks=pytest.mark.slow) for k in ("adam", "rmsprop")), "adamw"],
)
def test_gradients_that_are_all_rounding_raise_no_alarm(kind: Any):
    # A bias before a batch norm: Adam divides its gradient's rounding by its own size.
    model = random_torch(SMALL.replace(conv_bias=True))
    optimizer = OptimizerConfig(kind=kind, schedule=Schedule(learning_rate=1e-3))
    images = random_images((3, 3, 18, 21), seed=1)
    found = parity.compare_training(model, flax_like(model), images, optimizer)
    assert found.ok, found.verdict()
    limits = {row.name: row.limit for row in found.gate("G1 steps").rows}
    assert max(limits.values()) <= 1.6e-8
    assert limits["layer1.0.bn1.weight"] == 1e-10


# --- trajectories ---------------------------------------------------------------------


def test_what_was_wrong_before_the_losses_parted_is_named():
    model = random_torch(SMALL)
    twin = flax_like(model)
    norm = model.layer1[0].bn2
    second = int(norm.num_batches_tracked) + 2

    def wrong_once(module: Any, _: Any, y: torch.Tensor) -> None:
        if module.training and module.num_batches_tracked == second:
            y.register_hook(lambda gradient: gradient * 1.0001)

    norm.register_forward_hook(wrong_once)
    optimizer = OptimizerConfig(schedule=Schedule(learning_rate=0.05))
    images = random_images((3, 3, 18, 21), seed=1)
    found = parity.compare_training(model, twin, images, optimizer, steps=4)
    assert not found.ok
    wrong = [row for row in found.gate("G1 steps").failures if "after" in row.kind]
    assert {row.kind.partition(" after ")[2] for row in wrong} == {"2 of the steps"}
    assert wrong[0].name == found.first_divergence == "layer1.0.bn2.bias"
    assert "fc.weight" not in {row.name for row in wrong}
