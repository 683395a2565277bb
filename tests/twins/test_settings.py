"""Settings of training: schedules against torch's own, and what is refused."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    SequentialLR,
    StepLR,
)

import resnet_flax.optim
from parity.judging.distance import deviation
from parity.judging.tolerances import G1_FORWARD, UNIT_ROUNDOFF
from resnet_spec import OptimizerConfig, Schedule
from tests.support.optimizers import (
    CONSTANT,
    OPTIMIZERS,
    SCHEDULES,
    STAIRS,
    WAVE,
    adam,
    adamw,
    rmsprop,
    sgd,
)


def torch_rates(schedule: Schedule, steps: int) -> np.ndarray:
    """The rates of torch's own schedulers."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], schedule.learning_rate)
    warmup = schedule.warmup_steps
    if schedule.kind == "step":
        later: Any = StepLR(optimizer, schedule.step_size or 0, schedule.gamma)
    elif schedule.kind == "cosine":
        period = (schedule.total_steps or 0) - warmup
        later = CosineAnnealingLR(optimizer, period, schedule.end_learning_rate)
    elif schedule.kind == "linear":
        period = (schedule.total_steps or 0) - warmup
        end = schedule.end_learning_rate / schedule.learning_rate
        later = LinearLR(optimizer, 1.0, end, period)
    elif schedule.kind == "multistep":
        milestones = [milestone - warmup for milestone in schedule.milestones]
        later = MultiStepLR(optimizer, milestones, schedule.gamma)
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


@pytest.mark.parametrize(
    ("make", "field", "value", "allowed"),
    [
        (CONSTANT, "learning_rate", -0.1, "a number, 0 or more"),
        (CONSTANT, "learning_rate", float("nan"), "a number, 0 or more"),
        (CONSTANT, "learning_rate", "fast", "a number, 0 or more"),
        (
            CONSTANT,
            "kind",
            "square",
            "one of 'constant', 'step', 'multistep', 'linear'",
        ),
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
