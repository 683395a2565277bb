"""The check in training mode: gradients, statistics, kinks, one module at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import parity
import resnet_flax.layers
import resnet_flax.optim
from parity.images import random_images
from parity.judging import steps
from parity.judging.distance import deviation
from parity.judging.kinks import Kinks
from parity.running import torch_copies
from parity.running.taps import Batch
from resnet_spec import OptimizerConfig, ResNetConfig, Schedule
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


# --- many steps -----------------------------------------------------------------------

CONSTANT = Schedule(learning_rate=0.01)
OPTIMIZERS = {
    "sgd": OptimizerConfig(
        schedule=Schedule(
            learning_rate=0.05, kind="cosine", total_steps=30, warmup_steps=4
        ),
        momentum=0.9,
        nesterov=True,
        weight_decay=1e-4,
    ),
    "adamw": OptimizerConfig(
        schedule=Schedule(learning_rate=0.002, kind="step", step_size=7), kind="adamw"
    ),
    "rmsprop": OptimizerConfig(
        schedule=CONSTANT, kind="rmsprop", momentum=0.9, weight_decay=1e-3
    ),
}
BATCH = (4, 3, 33, 40)


def _one_of_each(names: Iterable[str], quick: str) -> list[Any]:
    """All of them, of which only one is in the default suite."""
    return [
        pytest.param(name, marks=() if name == quick else pytest.mark.slow)
        for name in names
    ]


def _learn(optimizer: OptimizerConfig, **kwargs) -> parity.Report:
    model = random_torch(TINY)
    return parity.compare_training(
        *(model, flax_like(model), random_images(BATCH, seed=1), optimizer), **kwargs
    )


@pytest.mark.parametrize("kind", _one_of_each(OPTIMIZERS, "adamw"))
def test_twenty_steps_end_at_the_same_place(kind: str):
    before = parity.digest_of(random_torch(TINY))
    found = _learn(OPTIMIZERS[kind])
    assert found.ok, found.verdict()
    (gate,) = found.gates
    names = {row.name for row in gate.rows}
    assert names >= {*parity.entries(random_torch(TINY)), "step 20", "output"}
    assert max(row.error for row in gate.rows) > 0
    losses = [row.name for row in gate.rows if row.kind == "loss"]
    assert losses == [f"step {i + 1}" for i in range(20)]
    assert parity.digest_of(random_torch(TINY)) == before


@pytest.mark.slow
def test_where_eps_matters_they_do_too():
    adam = OptimizerConfig(schedule=CONSTANT, kind="adam")
    assert _learn(adam, loss_scale=1e-7).ok


@pytest.mark.parametrize(
    ("fault", "optimizer"),
    [
        ({"weight_decay": 1e-4}, OPTIMIZERS["adamw"]),  # optax's default
        pytest.param(
            {"eps": 1e-6},
            OptimizerConfig(schedule=CONSTANT, kind="adam"),
            marks=pytest.mark.slow,
        ),
        pytest.param({"nesterov": False}, OPTIMIZERS["sgd"], marks=pytest.mark.slow),
        pytest.param({"schedule": CONSTANT}, OPTIMIZERS["sgd"], marks=pytest.mark.slow),
    ],
)
def test_a_wrong_optimiser_is_seen(
    fault: dict, optimizer: OptimizerConfig, monkeypatch: pytest.MonkeyPatch
):
    import dataclasses

    right = resnet_flax.optim.create_optimizer
    wrong = dataclasses.replace(optimizer, **fault)
    monkeypatch.setattr(
        *(resnet_flax.optim, "create_optimizer"), lambda model, _: right(model, wrong)
    )
    found = _learn(optimizer, steps=3, loss_scale=1e-7)
    assert not found.ok
    assert found.first_divergence == "the optimiser"


def _not_zeroed_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim.Optimizer, "zero_grad", lambda *_, **__: None)


def _not_zeroed_in_flax(monkeypatch: pytest.MonkeyPatch) -> None:
    right = resnet_flax.optim._transformation

    def added_up(
        config: OptimizerConfig, without: set[str]
    ) -> optax.GradientTransformation:
        return optax.chain(optax.trace(1.0), right(config, without))

    monkeypatch.setattr(resnet_flax.optim, "_transformation", added_up)


@pytest.mark.parametrize(
    "fault",
    [_not_zeroed_in_torch, pytest.param(_not_zeroed_in_flax, marks=pytest.mark.slow)],
)
def test_gradients_that_are_not_zeroed_are_seen_after_the_second_step(
    fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
):
    """Mutant 57: every step learns from all gradients so far."""
    fault(monkeypatch)
    (gate,) = _learn(OPTIMIZERS["sgd"], steps=3).gates
    assert gate.gate == "G1 steps"
    failed = {row.name: row.kind for row in gate.failures}
    # The first step has nothing to add to; the third's loss is the first to show it.
    assert [name for name, kind in failed.items() if kind == "loss"] == ["step 3"]
    assert failed["conv1.weight"] == "parameter"


def _mean_of_means(logits, labels, *, label_smoothing=0.0):
    """Mutant 59: the mean of two batches' means, of three images and of one."""
    right = RIGHT_LOSS
    parts = (slice(0, 3), slice(3, 4))
    means = [
        right(logits[p], labels[p], label_smoothing=label_smoothing) for p in parts
    ]
    return (means[0] + means[1]) / 2


def _sum_for_mean(logits, labels, *, label_smoothing=0.0):
    loss = RIGHT_LOSS(logits, labels, label_smoothing=label_smoothing)
    return loss * logits.shape[0]


def _smoothed_over_the_others(logits, labels, *, label_smoothing=0.0):
    """Mutant 58: ε spread over the K - 1 other classes."""
    classes = logits.shape[-1]
    return RIGHT_LOSS(
        logits, labels, label_smoothing=label_smoothing * classes / (classes - 1)
    )


RIGHT_LOSS = resnet_flax.optim.cross_entropy


@pytest.mark.parametrize(
    "fault",
    [
        _mean_of_means,
        pytest.param(_sum_for_mean, marks=pytest.mark.slow),
        _smoothed_over_the_others,
    ],
)
def test_a_wrong_loss_is_seen(fault, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resnet_flax.optim, "cross_entropy", fault)
    model = random_torch(TINY)
    twin, images = flax_like(model), random_images(BATCH, seed=1)
    found = parity.check(model, twin, images, gates=("G2 training",))
    assert found.gate("G2 training").failures[0].kind == "loss"


def _units_at_zero(*args) -> list[Batch]:
    """A batch of which every third pixel is at the mean of all."""
    values = np.tile([0.2, 0.4, 0.3], 4 * 33 * 40 // 3)
    grid = np.random.default_rng(0).permutation(values).reshape(4, 1, 33, 40)
    images = np.repeat(grid, 3, 1)
    return [Batch(images, np.array([0, 1, 2, 3]))]


@pytest.mark.slow
def test_kinks_in_training_are_reported_and_five_in_a_row_fail(
    monkeypatch: pytest.MonkeyPatch,
):
    model = random_torch(TINY.replace(stem="3x3"))  # no pool to hide a small value
    with torch.no_grad():  # a channel that copies pixels, normalised about 0
        model.conv1.weight[0] = 0
        model.conv1.weight[0, 0, 1, 1] = 0.7
        model.bn1.bias[0] = 0
    # Every third pixel lies on the mean, and rounding decides its sign.
    twin = flax_like(model)
    images = random_images(BATCH, seed=1)
    sgd = OptimizerConfig(schedule=CONSTANT)
    plain = steps._batches

    def first_kinked(inputs, classes, steps, seed):
        batches = _units_at_zero() if seed == 0 else plain(inputs, classes, 1, seed)
        return batches * steps

    monkeypatch.setattr(steps, "_batches", first_kinked)
    found = parity.compare_training(model, twin, images, sgd, steps=2)
    assert found.ok, found.verdict()
    (row,) = (row for row in found.gates[0].rows if row.name == "seeds")
    assert row.note.startswith("seed 0: kink at relu")
    monkeypatch.setattr(steps, "_batches", lambda *args: _units_at_zero())
    found = parity.compare_training(model, twin, images, sgd, steps=1)
    assert not found.ok
    assert "five kinks in a row" in found.verdict()


def test_networks_without_classes_are_not_trained():
    model = random_torch(TINY.replace(include_top=False))
    images = random_images(BATCH, seed=1)
    with pytest.raises(ValueError, match="no classes; training needs scores"):
        parity.compare_training(
            *(model, flax_like(model), images, OPTIMIZERS["sgd"]), steps=1
        )


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
