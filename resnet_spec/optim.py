"""How a network learns: an optimiser and its learning rate, in torch's terms."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from resnet_spec.settings import Settings, invalid, is_count, is_number

Decay = Literal["constant", "step", "multistep", "linear", "cosine"]
Rule = Literal["sgd", "adam", "adamw", "rmsprop", "lamb"]

_OF_DECAY: Mapping[str, tuple[str, ...]] = {
    "constant": (),
    "step": ("step_size", "gamma"),
    "multistep": ("milestones", "gamma"),
    "linear": ("total_steps", "end_learning_rate"),
    "cosine": ("total_steps", "end_learning_rate"),
}

OF_RULE: Mapping[str, tuple[str, ...]] = {
    "sgd": ("momentum", "nesterov", "weight_decay"),
    "adam": ("betas", "eps", "weight_decay"),
    "adamw": ("betas", "eps", "weight_decay"),
    "rmsprop": ("alpha", "eps", "centered", "momentum", "weight_decay"),
    "lamb": ("betas", "eps", "weight_decay"),
}
"""The settings that a kind of optimiser has of its own."""


_MOST_MILESTONES = 64

NO_DECAY = ("norm", "bias")
"""Groups of parameters that may be left out of weight decay."""

_A_SCHEDULE = 'a Schedule, in JSON as {"learning_rate": 0.1}'


@dataclass(frozen=True, kw_only=True)
class _OfKind(Settings):
    """Settings of which a kind decides which fields there are."""

    kind: str

    def _check_kind(self, settings_of: Mapping[str, tuple[str, ...]]) -> None:
        known = isinstance(self.kind, str) and self.kind in settings_of
        self._check("kind", known, f"one of {', '.join(map(repr, settings_of))}")
        theirs = {name for names in settings_of.values() for name in names}
        for field in dataclasses.fields(self):
            if field.name in theirs.difference(settings_of[self.kind]):
                unset = getattr(self, field.name) == field.default
                allowed = f"{field.default!r} with kind {self.kind!r}, which ignores it"
                self._check(field.name, unset, allowed)


@dataclass(frozen=True, kw_only=True)
class Schedule(_OfKind):
    """The learning rate of every step of a training run, in closed form.

    Equal to torch's ``StepLR``, ``MultiStepLR``, ``LinearLR`` or
    ``CosineAnnealingLR``, with a ``LinearLR`` before it in a ``SequentialLR``, where
    every optimiser step is one of the scheduler's.

    Args:
        learning_rate: the rate before any decay, and the one that a warm-up rises to.
        kind: ``"constant"``; ``"step"``: times ``gamma`` after every ``step_size``
            steps; ``"multistep"``: times ``gamma`` at every one of ``milestones``;
            ``"linear"``: in a straight line down to ``end_learning_rate``;
            ``"cosine"``: half a wave down to it (Loshchilov and Hutter 2016, arXiv
            1608.03983, equation 5, without restarts).
        step_size: steps from one decay to the next; the first begin after the warm-up.
        milestones: steps of the run, warm-up included, from which the rate is lower.
        gamma: factor of one decay.
        total_steps: length of the whole run, warm-up included. The step of this index
            would have ``end_learning_rate``; beyond it the cosine rises again, as
            torch's does.
        end_learning_rate: where the cosine or the line ends.
        warmup_steps: for so many steps the rate rises linearly (Goyal et al. 2017,
            arXiv 1706.02677, section 2.2); 0 is no warm-up.
        warmup_factor: the rate of the first of them over ``learning_rate``.

    Raises:
        ValueError: a field has a value that no schedule can have, or its kind has no
            such field. The message names field, value and what is allowed.
    """

    learning_rate: float
    kind: Decay = "constant"
    step_size: int | None = None
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    total_steps: int | None = None
    end_learning_rate: float = 0.0
    warmup_steps: int = 0
    warmup_factor: float = 1 / 3

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_kind(_OF_DECAY)
        self._check_number("learning_rate")
        self._check_number("gamma", 1)
        self._check_number("end_learning_rate", self.learning_rate)
        self._check_number("warmup_factor", 1)
        none = self.warmup_steps == 0 and not isinstance(self.warmup_steps, bool)
        count = none or is_count(self.warmup_steps)
        self._check("warmup_steps", count, "an integer, 0 or more")
        if self.kind == "step":
            self._check("step_size", is_count(self.step_size), "a positive integer")
        if self.kind == "multistep":
            rising = isinstance(self.milestones, tuple) and self.milestones != ()
            rising = rising and all(map(is_count, self.milestones))
            rising = rising and all(a < b for a, b in pairwise(self.milestones))
            rising = rising and self.milestones[0] >= self.warmup_steps
            rising = rising and len(self.milestones) <= _MOST_MILESTONES
            most = f"{_MOST_MILESTONES} at most, the first not below warmup_steps, "
            most += f"{self.warmup_steps}"
            self._check("milestones", rising, f"rising positive integers, {most}")
        if self.kind in ("linear", "cosine"):
            longer = is_count(self.total_steps) and self.decay_steps > 0
            above = f"an integer above warmup_steps, {self.warmup_steps}"
            self._check("total_steps", longer, above)

    @property
    def decay_steps(self) -> int:
        """Steps from the end of the warm-up to the end of the cosine or the line."""
        return (self.total_steps or 0) - self.warmup_steps

    def at(self, step: int) -> float:
        """Returns the learning rate of the step with this index; the first has 0.

        Raises:
            ValueError: the index is negative.
        """
        if step < 0:
            raise invalid("step", step, "0 or more")
        start, end = self.learning_rate, self.end_learning_rate
        if step < self.warmup_steps:
            rise = (1 - self.warmup_factor) * (step / self.warmup_steps)
            return start * (self.warmup_factor + rise)
        since = step - self.warmup_steps
        if self.step_size is not None:
            return start * self.gamma ** (since // self.step_size)
        if self.milestones:
            return start * self.gamma ** sum(step >= m for m in self.milestones)
        if self.total_steps is not None:
            left = (self.total_steps - step) / self.decay_steps
            if self.kind == "linear":
                return end + (start - end) * max(left, 0.0)
            # (1 + cos(π·since/all)) / 2, without its loss of digits near the end.
            return end + (start - end) * math.sin(math.pi / 2 * left) ** 2
        return start


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(_OfKind):
    """One optimiser by the names, rules and defaults of ``torch.optim``.

    Args:
        schedule: the learning rate of every step.
        kind: ``"sgd"``; ``"adam"`` (Kingma and Ba 2014, arXiv 1412.6980); ``"adamw"``
            (Loshchilov and Hutter 2017, arXiv 1711.05101); ``"rmsprop"``; ``"lamb"``
            (You et al. 2019, arXiv 1904.00962), which torch itself does not have:
            adamw's step times the norm of the parameter over the norm of the step, 1
            where one of them is 0 or the parameter does not decay.
        momentum: of sgd and rmsprop: what remains of the sum of the steps before.
        nesterov: of sgd: step from where the momentum leads.
        weight_decay: times the parameter; added to the gradient, with adamw and lamb
            to the step. Every parameter decays, norms and biases too, but for
            ``no_decay``. ``None`` becomes torch's default: 0.01 with adamw and lamb,
            otherwise 0.
        no_decay: what does not decay: ``"norm"``: scales and shifts of normalisation;
            ``"bias"``: biases of all other layers.
        clip_norm: the gradients are scaled down to this 2-norm, all together, where
            theirs is larger (torch's ``clip_grad_norm_``); ``None`` leaves them.
        betas: of adam, adamw and lamb: what remains of the means of gradient and
            square.
        eps: of all but sgd: added behind the root, never under it.
        alpha: of rmsprop: what remains of the mean square.
        centered: of rmsprop: take the root of the variance, not of the mean square.

    Raises:
        ValueError: a field has a value that no optimiser can have, or its kind has no
            such field. The message names field, value and what is allowed.
    """

    schedule: Schedule
    kind: Rule = "sgd"
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float | None = None
    no_decay: tuple[str, ...] = ()
    clip_norm: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    alpha: float = 0.99
    centered: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.schedule, Mapping):  # as JSON has it
            self._set("schedule", Schedule.of(self.schedule))
        self._check("schedule", isinstance(self.schedule, Schedule), _A_SCHEDULE)
        self._check_kind(OF_RULE)
        if self.weight_decay is None:
            default = 1e-2 if self.kind in ("adamw", "lamb") else 0.0
            self._set("weight_decay", default)
        known = isinstance(self.no_decay, tuple) and set(self.no_decay) <= {*NO_DECAY}
        self._check("no_decay", known, f"some of {', '.join(map(repr, NO_DECAY))}")
        if self.clip_norm is not None:
            self._check_number("clip_norm")
            self._check("clip_norm", self.clip_norm > 0, "a number above 0, or None")
        for field in ("weight_decay", "eps"):
            self._check_number(field)
        for field in ("momentum", "alpha"):
            self._check_number(field, 1)
        for field in ("nesterov", "centered"):
            flag = isinstance(getattr(self, field), bool)
            self._check(field, flag, "True or False")
        pair = isinstance(self.betas, tuple) and len(self.betas) == 2
        below = pair and all(is_number(beta) and beta < 1 for beta in self.betas)
        self._check("betas", below, "two numbers from 0, below 1")
        self._set("betas", tuple(map(float, self.betas)))
        led = self.momentum > 0 or not self.nesterov
        self._check("nesterov", led, "False without momentum")

    @property
    def settings(self) -> dict[str, Any]:
        """The fields that this kind has, by torch's names; all but the schedule."""
        return {name: getattr(self, name) for name in OF_RULE[self.kind]}
