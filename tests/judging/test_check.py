"""The check passes equal networks, fails wrong ones, and names where they part."""

from __future__ import annotations

import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm
import torch
import torchvision
from flax import nnx

import parity
import resnet_flax.blocks
import resnet_flax.layers
from parity.images import random_images
from parity.judging import gates, tolerances
from parity.weights.twins import abstract_flax
from resnet_spec import get_config
from tests.support.networks import TINY, TINY_BOTTLENECK, flax_like, random_torch

FAST = ("G0", "G2", "G5")  # without another process
QUICK = ("G0", "G1", "G2", "G5")
SIZE = (2, 3, 65, 48)


def _check(config=TINY, *, gates=FAST, change: Callable | None = None) -> parity.Report:
    model = random_torch(config)
    twin = flax_like(model)
    if change is not None:
        change(twin)
    return parity.check(model, twin, random_images(SIZE, seed=1), gates=gates)


@pytest.fixture(scope="module")
def report() -> parity.Report:
    return _check(gates=QUICK)


def test_equal_networks_pass_every_gate(report: parity.Report):
    assert report.ok
    assert report.first_divergence is None
    assert [gate.gate for gate in report.gates] == ["G0", "G1", "G2", "G5"]
    assert not any(gate.skipped for gate in report.gates)


def test_every_module_of_both_twins_is_judged(report: parity.Report):
    calls = {call.name for call in parity.layers(random_torch(TINY), SIZE[1:])}
    for name in ("G1", "G2"):
        judged = {row.name for row in report.gate(name).rows}
        containers = {"output", "layer1", "layer1.0", "layer2", "layer2.0", "layer2.1"}
        assert judged == calls | containers | {"layer2.0.downsample"}
    assert len(report.gate("G0").rows) == len(parity.entries(random_torch(TINY)))


def test_the_report_prints_verdict_gates_and_every_layer(report: parity.Report):
    text = str(report)
    assert text.splitlines()[-1] == "PASS: both compute the same network"
    for part in ("layer2.1.bn2", "layer1.0.relu@2", "G0", "weights, bit for bit"):
        assert part in text
    assert max(map(len, text.splitlines())) < 140


def test_the_report_becomes_json(report: parity.Report):
    found = json.loads(report.to_json())
    assert found["ok"] is True
    assert [gate["gate"] for gate in found["gates"]] == ["G0", "G1", "G2", "G5"]
    setting = found["setting"]
    assert json.loads(setting["config"])["widths"] == [8, 16]
    assert setting["weights"]["torch"] == setting["weights"]["flax"]
    assert setting["versions"]["torch"] == torch.__version__
    row = next(r for r in found["gates"][2]["rows"] if r["name"] == "layer1.0.conv2")
    assert set(row["figures"]) == {"torch", "flax", "ratio", "use"}


def test_float64_runs_elsewhere_and_leaves_this_process_alone(report: parity.Report):
    assert report.gate("G1").ok
    assert not jax.config.read("jax_enable_x64")
    assert jnp.asarray(1.5).dtype == jnp.float32


def test_check_changes_neither_model():
    model, x = random_torch(TINY), random_images(SIZE, seed=1)
    twin = flax_like(model)
    before = parity.digest_of(model)
    model.train()
    twin.train()
    parity.check(model, twin, x, gates=FAST)
    assert parity.digest_of(model) == parity.digest_of(twin) == before
    assert model.training
    assert not twin.bn1.use_running_average
    assert not model.conv1._forward_hooks


def test_torchvisions_own_network_can_be_checked_against_the_flax_twin():
    theirs = torchvision.models.resnet18(num_classes=5)
    state = parity.random_state(parity.entries(theirs), seed=2)
    parity.load_state_dict(theirs, state)
    ours = abstract_flax(get_config("resnet18").replace(num_classes=5))
    parity.load_state_dict(ours, state)
    found = parity.check(theirs, ours, random_images(SIZE, seed=3), gates=FAST)
    assert found.ok


# --- wrong networks -----------------------------------------------------------------


def _patch(owner: object, name: str, value: object):
    return lambda monkeypatch: monkeypatch.setattr(owner, name, value)


def _no_bias(self, x):
    scale = self.scale[...] / jnp.sqrt(self.var[...] + self.eps)
    return (x - self.mean[...].reshape(1, 1, 1, -1)) * scale.reshape(1, 1, 1, -1)


def _relu6(self, x):
    return jnp.clip(x, 0, 6)


def _average_for_max(self, x):
    return nnx.avg_pool(x, self.kernel_size, self.strides, self.padding)


def _relu_before_addition(self, x):
    identity = x if self.downsample is None else self.downsample(x)
    out = self.relu(self.bn1(self.conv1(x)))
    return self.relu(self.bn2(self.conv2(out))) + identity


def _without_shortcut(self, x):
    out = self.relu(self.bn1(self.conv1(x)))
    return self.relu(self.bn2(self.conv2(out)))


def _same_padding(module) -> None:
    module.padding = "SAME"


@pytest.mark.parametrize(
    ("patch", "first"),
    [
        (_patch(resnet_flax.layers.BatchNorm2d, "__call__", _no_bias), "bn1"),
        (_patch(resnet_flax.layers.MaxPool2d, "__call__", _average_for_max), "maxpool"),
        (_patch(resnet_flax.layers.ReLU, "__call__", _relu6), "relu"),
        (
            _patch(resnet_flax.blocks.BasicBlock, "__call__", _relu_before_addition),
            "layer1.0.relu@2",
        ),
        (
            _patch(resnet_flax.blocks.BasicBlock, "__call__", _without_shortcut),
            "layer1.0.relu@2",
        ),
        (
            _patch(nnx, "relu", lambda x: jnp.maximum(x, 0.01 * x)),
            "relu",
        ),
    ],
)
def test_a_wrong_function_is_named_first(patch, first: str, monkeypatch):
    loose = jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard")
    with loose[0], loose[1]:
        model = random_torch(TINY)
        twin = flax_like(model)
        patch(monkeypatch)
        found = parity.check(model, twin, random_images(SIZE, seed=1), gates=FAST)
    assert not found.ok
    assert found.first_divergence == first
    assert not found.gate("G2").failures[0].note  # it computes, and computes wrongly
    assert f"first divergence at {first}" in found.verdict()


def _swap(a, b) -> None:
    first, second = a.get_value(), b.get_value()
    a.set_value(second)
    b.set_value(first)


@pytest.mark.parametrize(
    ("change", "first"),
    [
        (lambda m: _same_padding(m.conv1), "conv1"),
        (lambda m: _same_padding(m.layer2[0].conv1), "layer2.0.conv1"),
        (lambda m: _same_padding(m.layer2[0].downsample[0]), None),  # 1x1: equivalent
        (lambda m: setattr(m.layer2[1].bn1, "eps", 1e-3), "layer2.1.bn1"),
        (lambda m: setattr(m.layer2[1].conv1, "strides", (2, 2)), "layer2.1"),
        (lambda m: setattr(m.layer1[0].conv2, "in_features", 9), "layer1.0.conv2"),
    ],
)
def test_a_wrong_setting_is_named_first_and_weights_still_agree(change, first):
    found = _check(change=change)
    assert found.gate("G0").ok
    assert found.ok == (first is None)
    if first is not None:
        assert found.gate("G2").failures[0].name == first


@pytest.mark.parametrize(
    ("change", "first"),
    [
        (lambda m: _swap(m.bn1.mean, m.bn1.var), "bn1.running_mean"),
        (lambda m: _swap(m.bn1.scale, m.bn1.bias), "bn1.weight"),
        (
            lambda m: m.layer1[0].conv1.kernel.set_value(
                m.layer1[0].conv1.kernel.get_value().transpose(1, 0, 2, 3)
            ),
            "layer1.0.conv1.weight",
        ),
        (
            lambda m: m.fc.kernel.set_value(
                jnp.nextafter(m.fc.kernel.get_value(), jnp.float32(9))
            ),
            "fc.weight",
        ),
    ],
)
def test_wrong_weights_are_named_by_their_key(change, first: str):
    found = _check(change=change)
    assert found.first_divergence == first
    assert found.verdict().startswith("FAIL: G0 (weights, bit for bit)")


def test_float64_sees_what_float32_cannot(monkeypatch: pytest.MonkeyPatch):
    # eps off by a hundredth of 1e-5 is below float32's rounding, and patched code
    # reaches the other process because the program is traced here.
    model = random_torch(TINY)
    twin = flax_like(model)
    original = resnet_flax.layers.BatchNorm2d.__call__

    def off(self, x):
        self.eps *= 1.01
        try:
            return original(self, x)
        finally:
            self.eps /= 1.01

    monkeypatch.setattr(resnet_flax.layers.BatchNorm2d, "__call__", off)
    found = parity.check(model, twin, random_images(SIZE, seed=1), gates=QUICK)
    assert found.gate("G2").ok
    assert not found.gate("G1").ok
    assert found.first_divergence == "bn1"


def test_a_missing_and_an_extra_tap_fail():
    model = random_torch(TINY)
    twin = flax_like(random_torch(TINY.replace(layers=(1, 1))))
    found = parity.check(model, twin, random_images(SIZE, seed=1), gates=("G2",))
    notes = {row.name: row.note for row in found.gate("G2").failures}
    assert notes["layer2.1.conv1"] == "is in torch only"
    twin = flax_like(random_torch(TINY.replace(layers=(2, 2))))
    found = parity.check(model, twin, random_images(SIZE, seed=1), gates=("G2",))
    notes = {row.name: row.note for row in found.gate("G2").failures}
    assert notes["layer1.1.conv1"] == "is in Flax only"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_fail_although_both_have_them(value: float):
    model = random_torch(TINY_BOTTLENECK)
    with torch.no_grad():
        model.layer2[0].bn1.bias[0] = value
    twin = flax_like(model)
    found = parity.check(model, twin, random_images(SIZE, seed=1), gates=FAST)
    assert found.gate("G0").ok
    assert found.gate("G2").failures[0].name == "layer2.0.bn1"
    assert found.gate("G2").failures[0].note == "not finite"
    assert not found.gate("G5").ok


# --- the gates themselves -----------------------------------------------------------


def test_a_tie_is_undecidable_and_said_so():
    model = random_torch(TINY)
    with torch.no_grad():
        model.fc.weight[1:] = model.fc.weight[:1]
        model.fc.bias[1:] = model.fc.bias[:1]
    found = parity.check(
        model, flax_like(model), random_images(SIZE, seed=1), gates=("G5",)
    )
    assert found.ok
    assert all("undecidable" in row.note for row in found.gate("G5").rows)
    assert "undecidable" in found.gate_table()


def test_other_decisions_fail():
    found = _check(
        change=lambda m: m.fc.bias.set_value(m.fc.bias.get_value() * -50), gates=("G5",)
    )
    assert not found.gate("G5").ok


def test_a_network_that_raises_fails_naming_the_module_and_what_it_raised():
    found = _check(change=lambda m: setattr(m.layer2[1].conv1, "strides", (2, 2)))
    for name in ("G2", "G5"):
        (row,) = found.gate(name).rows
        assert row.name == "layer2.1"
        assert row.note.startswith("raised TypeError: add got incompatible shapes")
    assert "raised TypeError" in found.verdict()


def test_a_torch_network_that_raises_fails_in_the_same_way():
    model = random_torch(TINY)
    twin = flax_like(model)
    model.layer2[1].conv1.stride = (2, 2)
    found = parity.check(model, twin, random_images(SIZE, seed=1), gates=FAST)
    assert found.gate("G0").ok
    assert found.first_divergence == "layer2.1"
    assert "layer2.1 raised RuntimeError" in found.verdict()
    json.loads(found.to_json())


def test_a_layer_that_leaves_float64_fails_by_name(monkeypatch: pytest.MonkeyPatch):
    original = resnet_flax.layers.MaxPool2d.__call__

    def rounded(self, x):
        return original(self, x).astype(jnp.float32)

    monkeypatch.setattr(resnet_flax.layers.MaxPool2d, "__call__", rounded)
    model = random_torch(TINY)
    with jax.numpy_dtype_promotion("standard"):
        found = parity.check(
            model, flax_like(model), random_images(SIZE, seed=1), gates=("G1",)
        )
    assert found.first_divergence == "maxpool"
    assert "computes in float32, not float64" in found.verdict()


def test_a_failed_report_is_json_that_strict_parsers_take():
    def strict(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    model = random_torch(TINY)
    with torch.no_grad():
        model.layer1[0].conv1.weight[0, 0, 0, 0] = float("nan")
    other = flax_like(random_torch(TINY.replace(layers=(1, 1))))
    for twin in (flax_like(model), other):
        found = parity.check(model, twin, random_images(SIZE, seed=1), gates=FAST)
        assert not found.ok
        parsed = json.loads(found.to_json(), parse_constant=strict)
        assert parsed["ok"] is False


def test_a_check_that_judged_nothing_does_not_pass():
    assert not _check(gates=()).ok
    found = _check(TINY.replace(include_top=False), gates=("G5",))
    assert not found.ok
    assert found.verdict() == "FAIL: no gate had anything to judge"


def test_models_in_the_wrong_place_are_refused():
    model = random_torch(TINY)
    x = random_images(SIZE, seed=1)
    for pair in ((model, model), (flax_like(model), model)):
        with pytest.raises(
            TypeError, match="the torch model comes first, the Flax model"
        ):
            parity.check(*pair, x)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("resnet18", marks=pytest.mark.slow),
        pytest.param("resnet50d", marks=pytest.mark.slow),
        pytest.param("resnet50", marks=pytest.mark.exhaustive),
    ],
)
def test_timms_network_passes_though_its_activations_have_other_names(name: str):
    theirs = timm.create_model(name).eval()
    state = parity.random_state(parity.entries(theirs), seed=4)
    parity.load_state_dict(theirs, state)
    twin = abstract_flax(get_config(name))
    parity.load_state_dict(twin, state)
    found = parity.check(theirs, twin, random_images(SIZE, seed=1), gates=QUICK)
    assert found.ok, found.verdict()
    notes = {row.name: row.note for row in found.gate("G2").rows if row.note}
    assert notes["layer1.0.act1"] == "is in torch only, not compared"
    assert notes["layer1.0.relu"] == "is in Flax only, not compared"
    assert "not compared" in found.gate_table()
    twin.layer3[0].bn1.eps = 1e-3
    found = parity.check(theirs, twin, random_images(SIZE, seed=1), gates=FAST)
    assert found.first_divergence == "layer3.0.bn1"


def test_it_works_where_implicit_transfers_are_forbidden():
    with jax.transfer_guard("disallow"):
        assert _check().ok


def test_without_classes_decisions_are_skipped_with_the_reason():
    found = _check(TINY.replace(include_top=False))
    assert found.ok
    assert found.gate("G5").skipped == "the network has no classes to choose from"


def test_a_gate_that_judged_nothing_does_not_pass():
    assert not gates.GateResult("G9", "nothing", ()).ok


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_types_are_judged_by_their_own_roundoff(dtype: str):
    model = random_torch(TINY).to(getattr(torch, dtype))
    twin = flax_like(model, dtype)
    x = random_images(SIZE, seed=1).astype(dtype)  # so that both see the same numbers
    found = parity.check(model, twin, x.astype(np.float32), gates=FAST)
    assert found.setting["dtype"] == dtype
    assert found.ok, str(found)
    assert found.gate("G2").rows[0].limit > 1e-3


def test_inputs_that_are_no_images_are_refused():
    model = random_torch(TINY)
    with pytest.raises(ValueError, match=r"int64 of shape \(1, 3, 8, 8\)"):
        parity.check(model, flax_like(model), np.zeros((1, 3, 8, 8), np.int64))
    with pytest.raises(ValueError, match=r"of shape \(3, 8, 8\)"):
        parity.check(model, flax_like(model), np.zeros((3, 8, 8)))
    with pytest.raises(ValueError, match="no gate 'G7'"):
        parity.check(model, flax_like(model), np.zeros((1, 3, 8, 8)), gates=["G7"])


def test_tolerances_are_of_the_order_of_what_is_measured(report: parity.Report):
    # A gate far above what equal twins need would be one that lets faults through.
    worst = report.gate("G1").worst
    assert worst is not None
    assert worst.error > tolerances.G1_FORWARD / 1e4
    worst = report.gate("G2").worst
    assert worst is not None
    assert worst.figures["use"] > 1 / 20
