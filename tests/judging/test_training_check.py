"""The check in training mode: gradients, statistics, kinks, one module at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import parity
import resnet_flax.layers
import resnet_flax.optim
from parity.images import random_images
from parity.judging.distance import deviation
from parity.judging.kinks import Kinks
from parity.running import torch_copies
from resnet_spec import ResNetConfig
from tests.support.networks import TINY, TINY_BOTTLENECK, flax_like, random_torch

ODD = (3, 3, 65, 49)
SMALLEST = TINY_BOTTLENECK.replace(layers=(1,), widths=(8,))
ISOLATED = ("G1 training isolated", "G2 training isolated")
SHARP = ("G0", "G1 training isolated")


@pytest.fixture(scope="module")
def report() -> parity.Report:
    model = random_torch(SMALLEST)
    images = random_images(ODD, seed=1)
    return parity.check(model, flax_like(model), images, gates=parity.TRAINING)


def test_equal_networks_pass_every_gate_of_training_mode(report: parity.Report):
    assert report.ok, report.verdict()
    assert [gate.gate for gate in report.gates] == list(parity.TRAINING)
    assert not any(gate.skipped for gate in report.gates)
    assert report.culprits == ()


def test_every_gradient_every_statistic_and_the_loss_are_judged(report: parity.Report):
    entries = parity.entries(random_torch(SMALLEST))
    for name in ("G1 training", "G2 training"):
        by_kind: dict[str, set[str]] = {}
        for row in report.gate(name).rows:
            by_kind.setdefault(row.kind, set()).add(row.name)
        assert by_kind["output"] == by_kind["gradient"] == set(report.shapes)
        assert by_kind["parameter gradient"] | by_kind["statistic"] == set(entries)
        assert by_kind["loss"] == {""}
    for name in ISOLATED:
        assert {row.name for row in report.gate(name).rows} == set(report.shapes)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "config",
    [
        TINY.replace(shortcut="D", stem="deep"),
        TINY.replace(shortcut="A", include_top=False),
        # Before a norm a bias has no gradient but rounding errors.
        TINY.replace(conv_bias=True),
        TINY.replace(
            dimensions=1, head="signal", signal_width=128, stem="3x3", num_classes=9
        ),
    ],
)
def test_other_networks_pass_too(config: ResNetConfig):
    model = random_torch(config)
    height, width = (1, 128) if config.dimensions == 1 else (64, 48)
    images = random_images((2, 3, height, width), seed=2)
    gates = ("G4", "G2 training", *ISOLATED)
    found = parity.check(model, flax_like(model), images, gates=gates)
    assert found.ok, found.verdict()


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_types_pass_in_training_mode(dtype: str):
    model = random_torch(TINY).to(getattr(torch, dtype))
    images = random_images(ODD, seed=1).astype(dtype).astype(np.float32)
    gates = ("G4", "G2 training", "G2 training isolated", "G3 training")
    found = parity.check(model, flax_like(model, dtype), images, gates=gates)
    assert found.ok, found.verdict()
    assert found.setting["arithmetic"] == dtype


def test_one_image_is_joined_by_its_mirror_image():
    model = random_torch(TINY)
    images = random_images((1, 3, 64, 48), seed=1)
    found = parity.check(model, flax_like(model), images, gates=("G2 training",))
    assert found.ok
    assert found.shapes["conv1"][0] == 2


def test_jitted_experiments_give_what_others_give():
    from parity.running import flax_experiments
    from parity.running.experiments import Experiment
    from parity.running.taps import Quantity

    model = flax_like(random_torch(TINY))
    model.train()
    x = random_images((2, 8, 16, 12), seed=1)
    setup = Experiment("layer1.0.conv1", x, random_images((2, 8, 16, 12), seed=2))
    plain, jitted = (
        flax_experiments.experiment(model, setup, jit=j) for j in (False, True)
    )
    assert Quantity("parameter gradient", "layer1.0.conv1.weight") in plain
    assert plain.keys() == jitted.keys()
    for quantity, value in plain.items():
        assert deviation(jitted[quantity], value).l2 < 1e-6


# --- faults ---------------------------------------------------------------------------


def _fails(change, *, gates=SHARP, config=TINY, torch_too=None) -> parity.Report:
    model = random_torch(config)
    twin = flax_like(model)
    change(twin)
    if torch_too is not None:
        torch_too(model)
    found = parity.check(model, twin, random_images(ODD, seed=1), gates=gates)
    assert not found.ok
    return found


def _without_gradient(self, x):
    return jax.lax.stop_gradient(x) + (x - jax.lax.stop_gradient(x)) * 0.5


def test_a_gradient_that_is_wrong_although_the_value_is_right_is_named(monkeypatch):
    # Not on any list: half a gradient, at one place, that no forward pass can see.
    class Half(resnet_flax.layers.ReLU):
        def __call__(self, x):
            return _without_gradient(self, super().__call__(x))

    def change(twin):
        object.__setattr__(twin.layer2[0].relu, "__class__", Half)

    found = _fails(change, gates=("G2", *ISOLATED))
    assert found.gate("G2").ok
    assert found.culprits == ("layer2.0.relu", "layer2.0.relu@2")
    assert "gradient" in found.verdict()


def test_a_fault_of_the_torch_network_is_named_as_well():
    def change(model):
        norm = model.layer2[1].bn2
        norm.register_forward_hook(lambda module, given, y: y * 1.0001)

    found = _fails(lambda twin: None, torch_too=change)
    assert found.culprits == ("layer2.1.bn2",)


def test_a_module_that_raises_is_named_by_itself():
    found = _fails(lambda twin: setattr(twin.layer2[0].conv1, "strides", (1, 1)))
    assert found.culprits == ("layer2.0.conv1",)


# --- kinks ----------------------------------------------------------------------------


def _at_the_kink() -> tuple[torch.nn.Module, np.ndarray]:
    """A network of which some units are so close to 0 that rounding decides."""
    model = random_torch(TINY)
    images = random_images(ODD, seed=1)
    found = {}

    def keep(module, given, y):
        found["y"] = y.detach().numpy().copy()

    for _ in range(2):  # the second time for what the first one's rounding left
        copy = torch_copies.duplicate(model, training=True, float64=True)
        copy.get_submodule("layer1.0.bn1").register_forward_hook(keep)
        copy(torch.from_numpy(images).double())
        with torch.no_grad():  # unit (0, 0) of every channel becomes nearly 0
            bias = model.layer1[0].bn1.bias
            bias -= torch.from_numpy(found["y"][0, :, 0, 0]).float()
    return model, images


KINKED = ("G4", "G2 training")


def test_units_at_a_kink_are_listed_and_do_not_raise_an_alarm(
    monkeypatch: pytest.MonkeyPatch,
):
    model, images = _at_the_kink()
    twin = flax_like(model)
    found = parity.check(model, twin, images, gates=KINKED)
    assert found.ok, found.verdict()
    notes = {row.name: row.note for row in found.gate("G4").rows if row.note}
    assert "kink, " in notes["layer1.0.relu"]
    assert " unit" in notes["layer1.0.relu"]
    # Without the reference on the same side the gradients part, and rightly: this is
    # what nobody may answer with a wider tolerance.
    for framework in ("torch", "flax"):
        monkeypatch.setattr(Kinks, f"of_{framework}", lambda *_: {})
    found = parity.check(model, twin, images, gates=("G2 training", "G3 training"))
    assert not found.ok
    assert (
        "gradient" in next(gate for gate in found.gates if not gate.ok).failures[0].kind
    )


def test_a_wrong_rectifier_is_not_excused_as_a_kink(monkeypatch: pytest.MonkeyPatch):
    def shifted(self, x):
        return jnp.where(x > 1e-3, x, jnp.zeros_like(x))

    monkeypatch.setattr(resnet_flax.layers.ReLU, "__call__", shifted)
    model, images = random_torch(TINY), random_images(ODD, seed=1)
    found = parity.check(model, flax_like(model), images, gates=KINKED)
    # The reference follows it, and G4 sees that rounding cannot have led it there.
    assert found.gate("G4").failures[0].name == "relu"


@pytest.mark.slow
def test_a_program_in_parts_gives_what_it_gives_at_once(
    monkeypatch: pytest.MonkeyPatch,
):
    from parity.running import flax_programs, flax_runs
    from parity.running.objective import objective_for

    model = flax_like(random_torch(TINY))
    model.train()
    images = random_images((2, 3, 33, 25), seed=1)
    program = flax_runs.train(model, images, objective_for((2, 7), seed=1))
    whole = {q: value.copy() for q, value in program.here()}
    read = []
    monkeypatch.setattr(flax_programs, "ROOM", 100_000)
    computed = flax_programs.computed_elsewhere
    monkeypatch.setattr(
        flax_programs,
        "computed_elsewhere",
        lambda several, arrays: read.append(len(several)) or computed(several, arrays),
    )
    monkeypatch.setattr(
        flax_programs, "is_float", lambda dtype: False
    )  # float32 is right
    parts = {q: value.copy() for q, value in program.elsewhere()}
    assert read[0] > 1
    assert list(parts) == list(whole)
    for quantity, value in whole.items():
        assert deviation(parts[quantity], value).l2 < 1e-5, quantity
