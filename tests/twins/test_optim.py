"""Both twins' optimisers walk torch's path, and go on where they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from timm.loss.binary_cross_entropy import BinaryCrossEntropy
from timm.optim._param_groups import param_groups_weight_decay
from timm.optim.lamb import Lamb
from torch import nn

import resnet_flax.optim
import resnet_spec
import resnet_torch.optim
from parity.judging.distance import deviation
from parity.judging.tolerances import G1_FORWARD
from parity.weights.names import torch_name
from parity.weights.twins import abstract_flax, abstract_torch
from resnet_spec import OptimizerConfig, Schedule
from resnet_spec.optim import NO_DECAY
from tests.support.optimizers import (
    CONSTANT,
    OPTIMIZERS,
    STAIRS,
    WAVE,
    adam,
    adamw,
    lamb,
    rmsprop,
    sgd,
)

STEPS = 20


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


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        *((name, NO_DECAY) for name in (
            "resnet18", "resnet50_gn", "seresnet50", "ecaresnet26t", "resnest14d",
            "resnetrs50", "senet154", "resnetblur18", "resnet18_1d",
        )),
        *(("resnet50_gn", (kind,)) for kind in NO_DECAY),
    ],
)  # fmt: skip
def test_the_same_does_not_decay_in_both_and_in_timm(name: str, kinds: tuple[str, ...]):
    config = resnet_spec.get_config(name)
    model = abstract_torch(config)
    rule = sgd(schedule=CONSTANT, weight_decay=0.1, no_decay=kinds)
    found = resnet_torch.optim.undecayed(model, rule)
    theirs = resnet_flax.optim.undecayed(abstract_flax(config), rule)
    assert {torch_name(own, {}) for own in theirs} == found
    assert found
    if kinds == NO_DECAY:
        few, _ = param_groups_weight_decay(model, 0.1)
        assert few["weight_decay"] == 0
        kept = {id(parameter) for parameter in few["params"]}
        assert {n for n, p in model.named_parameters() if id(p) in kept} == found


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_lamb_is_timms(decay: float):
    config = lamb(schedule=CONSTANT, betas=(0.8, 0.99), weight_decay=decay, eps=1e-6)
    arrays = values(0)
    model = nn.ParameterDict(
        {name: nn.Parameter(torch.from_numpy(v)) for name, v in arrays.items()}
    )
    optimizer = Lamb(
        model.parameters(),
        lr=CONSTANT.at(0),
        betas=(0.8, 0.99),
        eps=1e-6,
        weight_decay=decay,
        max_grad_norm=None,
    )
    for step in range(STEPS):
        for name, gradient in values(1 + step).items():
            model[name].grad = torch.from_numpy(gradient)
        optimizer.step()
    found = torch_path(config)
    for name, parameter in model.items():
        expected = parameter.detach().numpy()
        assert deviation(found[name][-1], expected).l2 <= G1_FORWARD, name


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("loss", ["cross-entropy", "bce"])
def test_losses_and_their_gradients_are_torchs_and_timms(
    loss: str, shares: bool, smoothing: float
):
    rng = np.random.default_rng(0)
    logits = 3 * rng.standard_normal((5, 7))
    labels = rng.dirichlet(np.ones(7), 5) if shares else rng.integers(0, 7, 5)
    scores = torch.from_numpy(logits).requires_grad_()
    target = torch.from_numpy(labels)
    if loss == "cross-entropy":
        theirs: Any = nn.CrossEntropyLoss(label_smoothing=smoothing)
    else:  # timm smooths labels alone, and shares beforehand
        theirs = BinaryCrossEntropy(smoothing=0.0 if shares else smoothing)
        target = (1 - smoothing) * target + smoothing / 7 if shares else target
    expected = theirs(scores, target)
    (gradient,) = torch.autograd.grad(expected, scores)
    ours = resnet_torch.optim.LOSSES[loss]
    y = torch.from_numpy(logits).requires_grad_()
    value = ours(y, torch.from_numpy(labels), label_smoothing=smoothing)
    (slope,) = torch.autograd.grad(value, y)
    with jax.enable_x64(True):
        flax, flax_slope = jax.value_and_grad(resnet_flax.optim.LOSSES[loss])(
            jnp.asarray(logits), jnp.asarray(labels), label_smoothing=smoothing
        )
    for found in (value.item(), float(flax)):
        assert abs(found - expected.item()) <= G1_FORWARD * expected.item()
    for found in (slope.numpy(), np.asarray(flax_slope)):
        assert deviation(found, gradient.numpy()).l2 <= G1_FORWARD
