"""Both twins learn alike: schedules, optimisers and losses against torch's own."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    SequentialLR,
    StepLR,
)

import parity
import resnet_flax.optim
import resnet_torch.optim
from parity.compare import deviation
from parity.tolerances import FLOAT64_BUFFERS, G1_FORWARD, UNIT_ROUNDOFF
from resnet_spec import OptimizerConfig, Schedule
from tests.networks import TINY, flax_like, images, random_torch

STEPS = 20
CONSTANT = Schedule(learning_rate=0.02)
STAIRS = Schedule(
    learning_rate=0.02, kind="step", step_size=4, gamma=0.3, warmup_steps=5
)
WAVE = Schedule(
    learning_rate=0.02,
    kind="cosine",
    total_steps=18,
    end_learning_rate=0.001,
    warmup_steps=3,
    warmup_factor=0.1,
)
SCHEDULES = [
    CONSTANT,
    Schedule(learning_rate=0.3, warmup_steps=7),
    STAIRS,
    WAVE,
    Schedule(learning_rate=0.1, kind="step", step_size=30, gamma=0.97),
    Schedule(learning_rate=0.5, kind="cosine", total_steps=83),
    Schedule(learning_rate=0.5, kind="cosine", total_steps=2, warmup_steps=1),
]


def torch_rates(schedule: Schedule, steps: int) -> np.ndarray:
    """The rates of torch's own schedulers."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], schedule.learning_rate)
    warmup = schedule.warmup_steps
    if schedule.kind == "step":
        later: Any = StepLR(optimizer, schedule.step_size or 0, schedule.gamma)
    elif schedule.kind == "cosine":
        period = (schedule.total_steps or 0) - warmup
        later = CosineAnnealingLR(optimizer, period, schedule.end_learning_rate)
    else:
        later = LambdaLR(optimizer, lambda step: 1.0)
    if warmup:
        first = LinearLR(optimizer, schedule.warmup_factor, total_iters=warmup)
        later = SequentialLR(optimizer, [first, later], milestones=[warmup])
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        later.step()
    return np.array(rates)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_is_the_one_that_torch_steps_through(schedule: Schedule):
    expected = torch_rates(schedule, 300)
    found = np.array([schedule.at(step) for step in range(300)])
    assert deviation(found, expected).max <= G1_FORWARD


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_traced_schedule_has_the_same_rates(schedule: Schedule, dtype: str):
    steps = [*range(300), 10**4, 10**6]
    expected = np.array([schedule.at(step) for step in steps])
    with jax.enable_x64(dtype == "float64"):
        rate = jax.jit(lambda step: resnet_flax.optim._rate(schedule, step))
        found = np.stack([rate(jnp.asarray(np.int32(step))) for step in steps])
    assert found.dtype == dtype
    # Each by itself while the run lasts: the smallest have all their digits.
    last = len(steps) if schedule.total_steps is None else schedule.total_steps
    normal = expected[:last] > np.finfo(np.float32).tiny
    errors = np.abs(found - expected)[:last][normal] / expected[:last][normal]
    assert errors.max() <= 8 * UNIT_ROUNDOFF[dtype]
    assert deviation(found[:300], expected[:300]).l2 <= 1000 * UNIT_ROUNDOFF[dtype]


def values(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    """A tree of random float64 arrays, no two of one size."""
    rng = np.random.default_rng(seed)
    shapes = {"bias": (5,), "kernel": (3, 2, 4), "weight": (4, 3)}
    return {name: scale * rng.standard_normal(s) for name, s in shapes.items()}


def torch_path(
    config: OptimizerConfig, scale: float = 1.0, dtype: torch.dtype = torch.float64
) -> dict[str, np.ndarray]:
    """Every parameter after each of the steps, by the torch twin's optimiser."""
    model = nn.ParameterDict(
        {k: nn.Parameter(torch.from_numpy(v)) for k, v in values(0, scale).items()}
    ).to(dtype)
    optimizer = resnet_torch.optim.create_optimizer(model, config)
    path: dict[str, list[np.ndarray]] = {name: [] for name in model}
    for step in range(STEPS):
        for name, gradient in values(1 + step, scale).items():
            model[name].grad = torch.from_numpy(gradient).to(dtype)
        optimizer.step()
        for name, parameter in model.items():
            path[name].append(parameter.detach().numpy().copy())
    return {name: np.stack(steps) for name, steps in path.items()}


class Tree(nnx.Module):
    def __init__(self, arrays: dict[str, np.ndarray], dtype: str) -> None:
        for name, value in arrays.items():
            setattr(self, name, nnx.Param(jnp.asarray(value.astype(dtype))))


def flax_path(
    make: Callable[[nnx.Module], nnx.Optimizer[Any]],
    scale: float = 1.0,
    dtype: str = "float64",
    resume_at: int | None = None,
) -> dict[str, np.ndarray]:
    """The same by an optimiser of Flax, jitted; continued by another one."""
    model = Tree(values(0, scale), dtype)
    optimizer = make(model)

    @nnx.jit
    def update(model: Tree, optimizer: nnx.Optimizer[Any], gradients: nnx.State):
        optimizer.update(model, gradients)

    path: dict[str, list[np.ndarray]] = {name: [] for name in values(0)}
    for step in range(STEPS):
        if step == resume_at:
            saved = jax.tree.map(np.array, nnx.state((model, optimizer)))
            model = Tree(values(99), dtype)
            optimizer = make(model)
            nnx.update((model, optimizer), jax.tree.map(jnp.asarray, saved))
        update(model, optimizer, nnx.state(Tree(values(1 + step, scale), dtype)))
        for name, steps in path.items():
            steps.append(np.array(getattr(model, name)[...]))
    return {name: np.stack(steps) for name, steps in path.items()}


def distance(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    assert list(found) == list(expected)
    return max(deviation(found[name], expected[name]).l2 for name in expected)


sgd = partial(OptimizerConfig, kind="sgd")
adam = partial(OptimizerConfig, kind="adam")
adamw = partial(OptimizerConfig, kind="adamw")
rmsprop = partial(OptimizerConfig, kind="rmsprop")

OPTIMIZERS = [
    sgd(schedule=CONSTANT),
    sgd(schedule=STAIRS, weight_decay=0.1),
    sgd(schedule=CONSTANT, momentum=0.9),
    sgd(schedule=STAIRS, momentum=0.9, weight_decay=0.1),
    sgd(schedule=WAVE, momentum=0.8, weight_decay=0.1, nesterov=True),
    adam(schedule=CONSTANT),
    adam(schedule=WAVE, betas=(0.0, 0.9), eps=1e-6),
    adam(schedule=STAIRS, betas=(0.8, 0.99), weight_decay=0.1),
    adamw(schedule=CONSTANT),
    adamw(schedule=WAVE, weight_decay=0.0),
    adamw(schedule=STAIRS, betas=(0.8, 0.99), weight_decay=0.3),
    rmsprop(schedule=CONSTANT),
    rmsprop(schedule=WAVE, weight_decay=0.1, eps=1e-6),
    rmsprop(schedule=STAIRS, momentum=0.9, alpha=0.9),
    rmsprop(schedule=CONSTANT, centered=True),
    rmsprop(schedule=WAVE, momentum=0.9, weight_decay=0.1, centered=True),
]


# As small as eps, or smaller: where it stands, and that it is there, shows.
@pytest.mark.parametrize("scale", [1.0, 1e-7])
@pytest.mark.parametrize("config", OPTIMIZERS)
def test_an_optimiser_walks_the_same_path_in_float64(
    config: OptimizerConfig, scale: float
):
    with jax.enable_x64(True):
        found = flax_path(
            lambda model: resnet_flax.optim.create_optimizer(model, config), scale
        )
    assert distance(found, torch_path(config, scale)) <= G1_FORWARD


def fixed(*rules: optax.GradientTransformation) -> Callable[..., Any]:
    """Makes an optimiser of these rules."""
    return lambda model: nnx.Optimizer(model, optax.chain(*rules), wrt=nnx.Param)


def scheduled(schedule: Schedule, *, ahead: int = 0) -> optax.GradientTransformation:
    def rate(step: Any) -> jax.Array:
        return resnet_flax.optim._rate(schedule, step + ahead)

    return optax.scale_by_learning_rate(rate)


DECAY = optax.add_decayed_weights(0.1)
RATE = scheduled(CONSTANT)
ADAM = optax.scale_by_adam()

FAULTS: dict[str, tuple[OptimizerConfig, Callable[..., Any]]] = {
    "weight decay after momentum": (
        sgd(schedule=CONSTANT, momentum=0.9, weight_decay=0.1),
        fixed(optax.trace(0.9), DECAY, RATE),
    ),
    "a mean for momentum": (
        sgd(schedule=CONSTANT, momentum=0.9),
        fixed(optax.ema(0.9, debias=False), RATE),
    ),
    "nesterov for momentum": (
        sgd(schedule=CONSTANT, momentum=0.9),
        fixed(optax.trace(0.9, nesterov=True), RATE),
    ),
    "adam with decay for adamw": (
        adamw(schedule=CONSTANT, weight_decay=0.1),
        fixed(DECAY, ADAM, RATE),
    ),
    "optax's default decay for adamw": (
        adamw(schedule=CONSTANT),
        fixed(ADAM, optax.add_decayed_weights(1e-4), RATE),
    ),
    "another beta2": (
        adam(schedule=CONSTANT),
        fixed(optax.scale_by_adam(b2=0.99), RATE),
    ),
    "another eps": (
        adam(schedule=CONSTANT),
        fixed(optax.scale_by_adam(eps=1e-6), RATE),
    ),
    "adam's eps under the root": (
        adam(schedule=CONSTANT),
        fixed(optax.scale_by_adam(eps=0.0, eps_root=1e-8), RATE),
    ),
    "rmsprop's eps under the root": (
        rmsprop(schedule=CONSTANT),
        fixed(optax.scale_by_rms(0.99, eps=1e-8), RATE),
    ),
    "the rate before rmsprop's momentum": (
        rmsprop(schedule=STAIRS, momentum=0.9),
        fixed(
            optax.scale_by_rms(0.99, eps=1e-8, eps_in_sqrt=False),
            scheduled(STAIRS),
            optax.trace(0.9),
        ),
    ),
    "a schedule one step ahead": (sgd(schedule=WAVE), fixed(scheduled(WAVE, ahead=1))),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_gate_sees_a_rule_that_is_not_torchs(fault: str):
    # The comparison above, made to fail. optax's own adam mixes dtypes.
    config, make = FAULTS[fault]
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        found = flax_path(make, 1e-7)
    assert distance(found, torch_path(config, 1e-7)) > 1e6 * G1_FORWARD


@pytest.mark.parametrize("scale", [1.0, 1e-7])
@pytest.mark.parametrize("config", [adam(schedule=CONSTANT), adamw(schedule=WAVE)])
def test_adam_keeps_its_digits_in_float32(config: OptimizerConfig, scale: float):
    found = flax_path(
        lambda model: resnet_flax.optim.create_optimizer(model, config),
        scale,
        "float32",
    )
    expected = torch_path(config, scale)
    theirs = torch_path(config, scale, torch.float32)
    assert distance(found, expected) <= 3 * distance(theirs, expected)


def test_adam_would_lose_them_by_the_bias_correction_of_optax():
    with jax.numpy_dtype_promotion("standard"):
        found = flax_path(fixed(ADAM, RATE), 1e-7, "float32")
    config = adam(schedule=CONSTANT)
    expected = torch_path(config, 1e-7)
    theirs = torch_path(config, 1e-7, torch.float32)
    assert distance(found, expected) > 10 * distance(theirs, expected)


@pytest.mark.parametrize("config", OPTIMIZERS)
def test_a_resumed_optimiser_goes_on_where_it_was(config: OptimizerConfig, path: Any):
    def walk(model: nn.ParameterDict, optimizer: Any, first: int, last: int) -> None:
        for step in range(first, last):
            rates.append(optimizer.param_groups[0]["lr"])
            for name, gradient in values(1 + step).items():
                model[name].grad = torch.from_numpy(gradient)
            optimizer.step()

    def fresh(seed: int) -> tuple[nn.ParameterDict, torch.optim.Optimizer]:
        arrays = {k: torch.from_numpy(v) for k, v in values(seed).items()}
        model = nn.ParameterDict({k: nn.Parameter(v) for k, v in arrays.items()})
        return model, resnet_torch.optim.create_optimizer(model, config)

    rates: list[float] = []
    model, optimizer = fresh(0)
    walk(model, optimizer, 0, 7)
    torch.save((model.state_dict(), optimizer.state_dict()), path)
    model, optimizer = fresh(99)
    saved = torch.load(path, weights_only=True)
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    walk(model, optimizer, 7, STEPS)
    assert rates == [config.schedule.at(step) for step in range(STEPS)]
    for name, whole in torch_path(config).items():
        np.testing.assert_array_equal(model[name].detach().numpy(), whole[-1])


@pytest.mark.parametrize("config", [OPTIMIZERS[4], OPTIMIZERS[7], OPTIMIZERS[-1]])
def test_so_does_a_resumed_one_of_flax(config: OptimizerConfig):
    def make(model: nnx.Module) -> nnx.Optimizer[Any]:
        return resnet_flax.optim.create_optimizer(model, config)

    with jax.enable_x64(True):
        whole, resumed = flax_path(make), flax_path(make, resume_at=7)
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value)


def logits_and_labels() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    return 3 * rng.standard_normal((6, 11)), rng.integers(0, 11, 6)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
def test_the_loss_and_its_gradient_are_torchs(label_smoothing: float):
    x, labels = logits_and_labels()
    logits = torch.from_numpy(x).requires_grad_()
    expected = nn.functional.cross_entropy(
        logits, torch.from_numpy(labels), label_smoothing=label_smoothing
    )
    expected.backward()
    assert logits.grad is not None
    twin = torch.from_numpy(x[:, None, None, :]).requires_grad_()
    loss = resnet_torch.optim.cross_entropy(
        twin, torch.from_numpy(labels.astype(np.int32)), label_smoothing=label_smoothing
    )
    loss.backward()
    assert loss == expected
    assert twin.grad is not None
    assert torch.equal(twin.grad.flatten(1), logits.grad)
    with jax.enable_x64(True):
        for shaped in (x, x[:, None, :, None]):
            # Traced, as a jitted step's argument is.
            loss, gradient = jax.jit(
                jax.value_and_grad(
                    lambda x, labels, s: resnet_flax.optim.cross_entropy(
                        x, labels, label_smoothing=s
                    )
                )
            )(jnp.asarray(shaped), jnp.asarray(labels), label_smoothing)
            assert (
                deviation(np.asarray(loss), expected.detach().numpy()).l2 <= G1_FORWARD
            )
            gradient = np.asarray(gradient).reshape(x.shape)
            assert deviation(gradient, logits.grad.numpy()).l2 <= G1_FORWARD


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_loss_of_half_types_is_computed_in_float32(dtype: str):
    x, labels = logits_and_labels()
    half = torch.from_numpy(x).to(getattr(torch, dtype))
    expected = nn.functional.cross_entropy(half.double(), torch.from_numpy(labels))
    loss = resnet_torch.optim.cross_entropy(half, torch.from_numpy(labels))
    found = resnet_flax.optim.cross_entropy(
        jnp.asarray(half.double().numpy().astype(np.float32)).astype(dtype),
        jnp.asarray(labels.astype(np.int32)),
    )
    assert loss.dtype == torch.float32
    assert found.dtype == jnp.float32
    for value in (loss.numpy(), np.asarray(found)):
        assert deviation(value, expected.numpy()).l2 <= 8 * UNIT_ROUNDOFF["float32"]


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((4, 5), np.zeros(1, np.int32), "(4, 5), the labels (1,); they must be (n, k)"),
        ((2, 2, 1, 5), np.zeros(2, np.int32), "the logits have shape (2, 2, 1, 5)"),
        ((4,), np.zeros(4, np.int32), "the logits have shape (4,)"),
        ((4, 5), np.zeros(4, np.float32), "float32; they must be integers"),
    ],
)
def test_logits_and_labels_that_do_not_fit_are_refused_by_both(
    shape: tuple[int, ...], labels: np.ndarray, message: str
):
    x = np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match=re.escape(message)):
        resnet_torch.optim.cross_entropy(torch.from_numpy(x), torch.from_numpy(labels))
    with pytest.raises(ValueError, match=re.escape(message)):
        resnet_flax.optim.cross_entropy(jnp.asarray(x), jnp.asarray(labels))


@pytest.mark.parametrize("label", [-100, -1, 11])
def test_a_label_that_is_no_class_never_passes_unseen(label: int):
    x, labels = logits_and_labels()
    labels[2] = label
    with pytest.raises(IndexError, match="out of bounds"):
        resnet_torch.optim.cross_entropy(torch.from_numpy(x), torch.from_numpy(labels))
    loss = resnet_flax.optim.cross_entropy(
        jnp.asarray(x.astype(np.float32)), jnp.asarray(labels.astype(np.int32))
    )
    assert jnp.isnan(loss)


@pytest.mark.parametrize(
    ("config", "pure"),
    [
        (sgd(schedule=WAVE, momentum=0.9, weight_decay=1e-2, nesterov=True), False),
        (adamw(schedule=STAIRS, weight_decay=0.1), True),
    ],
)
def test_five_training_steps_are_equal_in_float64(config: OptimizerConfig, pure: bool):
    model = random_torch(TINY).double().train()
    labels = np.arange(20).reshape(5, 4) * 3 % TINY.num_classes
    with jax.enable_x64(True):
        twin = flax_like(model, "float64")
        twin.train()
        optimizer = resnet_flax.optim.create_optimizer(twin, config)
        graph, state = nnx.split((twin, optimizer))
        jitted = nnx.jit(resnet_flax.optim.train_step)

        @jax.jit
        def step(state: nnx.State, x: jax.Array, y: jax.Array, smoothing: float):
            both = nnx.merge(graph, state)
            train_step = resnet_flax.optim.train_step
            loss = train_step(*both, x, y, label_smoothing=smoothing)
            return loss, nnx.state(both)

        losses = []
        for seed in range(5):
            x = images(TINY, 40, 33, n=4, seed=seed).transpose(0, 2, 3, 1)
            x, y = jnp.asarray(x), jnp.asarray(labels[seed])
            if pure:
                loss, state = step(state, x, y, 0.1)
            else:
                loss = jitted(twin, optimizer, x, y, label_smoothing=0.1)
            losses.append(float(loss))
        if pure:
            nnx.update((twin, optimizer), state)
        after = parity.state_dict(twin)

    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch_optimizer = resnet_torch.optim.create_optimizer(model, config)
    expected = []
    for seed in range(5):
        x = torch.from_numpy(images(TINY, 40, 33, n=4, seed=seed))
        y = torch.from_numpy(labels[seed])
        loss = resnet_torch.optim.train_step(
            model, torch_optimizer, x, y, label_smoothing=0.1
        )
        assert not loss.requires_grad
        expected.append(float(loss))
    assert deviation(np.array(losses), np.array(expected)).max <= G1_FORWARD
    for name, value in parity.state_dict(model).items():
        assert not np.array_equal(value, before[name].numpy()), name
        assert deviation(after[name], value).l2 <= FLOAT64_BUFFERS, name


@pytest.mark.parametrize(
    ("make", "field", "value", "allowed"),
    [
        (CONSTANT, "learning_rate", -0.1, "a number, 0 or more"),
        (CONSTANT, "learning_rate", float("nan"), "a number, 0 or more"),
        (CONSTANT, "learning_rate", "fast", "a number, 0 or more"),
        (CONSTANT, "kind", "linear", "one of 'constant', 'step', 'cosine'"),
        (CONSTANT, "step_size", 3, "None with kind 'constant', which ignores it"),
        (CONSTANT, "warmup_steps", True, "an integer, 0 or more"),
        (CONSTANT, "warmup_factor", 1.5, "a number from 0 to 1"),
        (STAIRS, "step_size", 0, "a positive integer"),
        (STAIRS, "gamma", 2, "a number from 0 to 1"),
        (STAIRS, "total_steps", 9, "None with kind 'step', which ignores it"),
        (WAVE, "total_steps", 3, "an integer above warmup_steps, 3"),
        (WAVE, "total_steps", None, "an integer above warmup_steps, 3"),
        (WAVE, "end_learning_rate", 0.03, "a number from 0 to 0.02"),
        (WAVE, "gamma", 0.5, "0.1 with kind 'cosine', which ignores it"),
        (sgd, "schedule", 0.1, "a Schedule"),
        (sgd, "kind", "lion", "one of 'sgd', 'adam', 'adamw', 'rmsprop'"),
        (sgd, "momentum", 9, "a number from 0 to 1"),
        (sgd, "weight_decay", -1.0, "a number, 0 or more"),
        (sgd, "nesterov", 1, "True or False"),
        (sgd, "nesterov", True, "False without momentum"),
        (sgd, "eps", 1e-6, "1e-08 with kind 'sgd', which ignores it"),
        (adam, "nesterov", True, "False with kind 'adam', which ignores it"),
        (adam, "betas", (0.9, 1.0), "two numbers from 0, below 1"),
        (adam, "betas", 0.9, "two numbers from 0, below 1"),
        (adamw, "momentum", 0.9, "0.0 with kind 'adamw', which ignores it"),
        (rmsprop, "betas", (0.9, 0.9), "(0.9, 0.999) with kind 'rmsprop'"),
        (rmsprop, "centered", "yes", "True or False"),
    ],
)
def test_a_bad_setting_is_refused_naming_field_value_and_what_is_allowed(
    make: Any, field: str, value: object, allowed: str
):
    good = make if isinstance(make, Schedule) else make(schedule=CONSTANT)
    with pytest.raises(ValueError, match=re.escape(f"{field} is {value!r}")) as error:
        dataclasses.replace(good, **{field: value})
    assert str(error.value).startswith(f"{field} is")
    assert allowed in str(error.value)


def test_a_step_before_the_first_has_no_rate():
    with pytest.raises(ValueError, match="step is -1; it must be 0 or more"):
        WAVE.at(-1)


@pytest.mark.parametrize("settings", [*SCHEDULES, *OPTIMIZERS])
def test_settings_survive_json_and_are_a_key(settings: Schedule | OptimizerConfig):
    again = type(settings).from_json(settings.to_json())
    assert again == settings
    assert {settings: 1}[again] == 1


@pytest.mark.parametrize("text", ["[]", '{"speed": 1}', "{}", "1", "{"])
def test_other_json_is_refused(text: str):
    for settings in (Schedule, OptimizerConfig):
        with pytest.raises(ValueError, match=r"not a|Expecting|schedule"):
            settings.from_json(text)


@pytest.mark.parametrize(
    ("config", "theirs"),
    [
        (sgd, torch.optim.SGD),
        (adam, torch.optim.Adam),
        (adamw, torch.optim.AdamW),
        (rmsprop, torch.optim.RMSprop),
    ],
)
def test_what_is_not_set_is_torchs_default(config: Any, theirs: Any):
    parameters = inspect.signature(theirs).parameters
    for name, value in config(schedule=CONSTANT).settings.items():
        assert value == parameters[name].default, name


# Of a label that is no class: what each framework does with it.
UNLIKE = (
    "raises IndexError on a CPU and stops the program on a GPU",
    "makes the loss NaN: compiled code cannot raise",
)


def test_both_files_have_the_same_functions_with_the_same_documentation():
    mirrored = []
    for module in (resnet_torch.optim, resnet_flax.optim):
        functions = [
            (name, function)
            for name, function in vars(module).items()
            if inspect.isfunction(function)
            and function.__module__ == module.__name__
            and not name.startswith("_")
        ]
        texts = []
        for name, function in functions:
            text = " ".join((inspect.getdoc(function) or "").split())
            for phrase in UNLIKE:
                text = text.replace(phrase, "")
            parameters = inspect.signature(function).parameters.values()
            arguments = [(p.name, p.kind, p.default) for p in parameters]
            texts.append((name, arguments, text))
        mirrored.append(texts)
    assert mirrored[0] == mirrored[1]
    names = [name for name, *_ in mirrored[0]]
    assert names == ["cross_entropy", "create_optimizer", "train_step"]
