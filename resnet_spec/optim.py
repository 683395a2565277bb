"""How a network learns: an optimiser and its learning rate, in torch's terms."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from resnet_spec.config import _invalid, _is_count

Decay = Literal["constant", "step", "cosine"]
Rule = Literal["sgd", "adam", "adamw", "rmsprop"]

_OF_DECAY: Mapping[str, tuple[str, ...]] = {
    "constant": (),
    "step": ("step_size", "gamma"),
    "cosine": ("total_steps", "end_learning_rate"),
}

_OF_RULE: Mapping[str, tuple[str, ...]] = {
    "sgd": ("momentum", "nesterov", "weight_decay"),
    "adam": ("betas", "eps", "weight_decay"),
    "adamw": ("betas", "eps", "weight_decay"),
    "rmsprop": ("alpha", "eps", "centered", "momentum", "weight_decay"),
}


_A_SCHEDULE = 'a Schedule, in JSON as {"learning_rate": 0.1}'


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What both configurations share: a kind, refusals in one sentence, and JSON."""

    kind: str

    def to_json(self) -> str:
        """Returns the settings as a JSON object, one key per field."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Returns the settings that :meth:`to_json` wrote.

        Raises:
            ValueError: the text is no JSON object of these settings' fields.
        """
        return cls._of(json.loads(text))

    @classmethod
    def _of(cls, settings: object) -> Self:
        problem = ""
        if isinstance(settings, Mapping):
            fields = {field.name: field for field in dataclasses.fields(cls)}
            unknown = [name for name in settings if name not in fields]
            lacking = [
                name
                for name, field in fields.items()
                if field.default is dataclasses.MISSING and name not in settings
            ]
            if unknown:
                problem = f"no field {unknown[0]!r}; there are {', '.join(fields)}"
            elif lacking:
                problem = f"the field {lacking[0]!r} is missing"
        else:
            problem = f"{settings!r} is no object of fields"
        if problem:
            raise ValueError(f"not a {cls.__name__}: {problem}")
        return cls(**settings)  # type: ignore[arg-type]

    def _check(self, field: str, ok: bool, allowed: str) -> None:
        if not ok:
            raise _invalid(field, getattr(self, field), allowed)

    def _check_kind(self, settings_of: Mapping[str, tuple[str, ...]]) -> None:
        known = isinstance(self.kind, str) and self.kind in settings_of
        self._check("kind", known, f"one of {', '.join(map(repr, settings_of))}")
        theirs = {name for names in settings_of.values() for name in names}
        for field in dataclasses.fields(self):
            if field.name in theirs.difference(settings_of[self.kind]):
                unset = getattr(self, field.name) == field.default
                allowed = f"{field.default!r} with kind {self.kind!r}, which ignores it"
                self._check(field.name, unset, allowed)

    def _check_number(self, field: str, most: float = math.inf) -> None:
        value = getattr(self, field)
        limited = f"a number from 0 to {most:g}"
        allowed = "a number, 0 or more" if most == math.inf else limited
        self._check(field, _is_number(value) and value <= most, allowed)
        object.__setattr__(self, field, float(value))


@dataclass(frozen=True, kw_only=True)
class Schedule(_Settings):
    """The learning rate of every step of a training run, in closed form.

    Equal to torch's ``StepLR`` or ``CosineAnnealingLR``, with a ``LinearLR`` before it
    in a ``SequentialLR``, where every optimiser step is one of the scheduler's.

    Args:
        learning_rate: the rate before any decay, and the one that a warm-up rises to.
        kind: ``"constant"``; ``"step"``: times ``gamma`` after every ``step_size``
            steps; ``"cosine"``: half a wave down to ``end_learning_rate`` (Loshchilov
            and Hutter 2016, arXiv 1608.03983, equation 5, without restarts).
        step_size: steps from one decay to the next; the first begin after the warm-up.
        gamma: factor of one decay.
        total_steps: length of the whole run, warm-up included. The step of this index
            would have ``end_learning_rate``; beyond it the rate rises again, as
            torch's does.
        end_learning_rate: where the cosine ends.
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
    gamma: float = 0.1
    total_steps: int | None = None
    end_learning_rate: float = 0.0
    warmup_steps: int = 0
    warmup_factor: float = 1 / 3

    def __post_init__(self) -> None:
        self._check_kind(_OF_DECAY)
        self._check_number("learning_rate")
        self._check_number("gamma", 1)
        self._check_number("end_learning_rate", self.learning_rate)
        self._check_number("warmup_factor", 1)
        none = self.warmup_steps == 0 and not isinstance(self.warmup_steps, bool)
        count = none or _is_count(self.warmup_steps)
        self._check("warmup_steps", count, "an integer, 0 or more")
        if self.kind == "step":
            self._check("step_size", _is_count(self.step_size), "a positive integer")
        if self.kind == "cosine":
            longer = _is_count(self.total_steps) and self.cosine_steps > 0
            above = f"an integer above warmup_steps, {self.warmup_steps}"
            self._check("total_steps", longer, above)

    @property
    def cosine_steps(self) -> int:
        """Steps from the end of the warm-up to the end of the cosine."""
        return (self.total_steps or 0) - self.warmup_steps

    def at(self, step: int) -> float:
        """Returns the learning rate of the step with this index; the first has 0.

        Raises:
            ValueError: the index is negative.
        """
        if step < 0:
            raise _invalid("step", step, "0 or more")
        start, end = self.learning_rate, self.end_learning_rate
        if step < self.warmup_steps:
            rise = (1 - self.warmup_factor) * (step / self.warmup_steps)
            return start * (self.warmup_factor + rise)
        since = step - self.warmup_steps
        if self.step_size is not None:
            return start * self.gamma ** (since // self.step_size)
        if self.total_steps is not None:
            # (1 + cos(π·since/all)) / 2, without its loss of digits near the end.
            left = (self.total_steps - step) / self.cosine_steps
            return end + (start - end) * math.sin(math.pi / 2 * left) ** 2
        return start


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(_Settings):
    """One optimiser by the names, rules and defaults of ``torch.optim``.

    Args:
        schedule: the learning rate of every step.
        kind: ``"sgd"``; ``"adam"`` (Kingma and Ba 2014, arXiv 1412.6980); ``"adamw"``
            (Loshchilov and Hutter 2017, arXiv 1711.05101); ``"rmsprop"``.
        momentum: of sgd and rmsprop: what remains of the sum of the steps before.
        nesterov: of sgd: step from where the momentum leads.
        weight_decay: times the parameter; added to the gradient, with adamw to the
            step. Every parameter decays, norms and biases too. ``None`` becomes
            torch's default: 0.01 with adamw, otherwise 0.
        betas: of adam and adamw: what remains of the means of gradient and square.
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
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    alpha: float = 0.99
    centered: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.schedule, Mapping):  # as JSON has it
            object.__setattr__(self, "schedule", Schedule._of(self.schedule))
        self._check("schedule", isinstance(self.schedule, Schedule), _A_SCHEDULE)
        if isinstance(self.betas, list):
            object.__setattr__(self, "betas", tuple(self.betas))
        self._check_kind(_OF_RULE)
        if self.weight_decay is None:
            default = 1e-2 if self.kind == "adamw" else 0.0
            object.__setattr__(self, "weight_decay", default)
        for field in ("weight_decay", "eps"):
            self._check_number(field)
        for field in ("momentum", "alpha"):
            self._check_number(field, 1)
        for field in ("nesterov", "centered"):
            flag = isinstance(getattr(self, field), bool)
            self._check(field, flag, "True or False")
        pair = isinstance(self.betas, tuple) and len(self.betas) == 2
        below = pair and all(_is_number(beta) and beta < 1 for beta in self.betas)
        self._check("betas", below, "two numbers from 0, below 1")
        object.__setattr__(self, "betas", tuple(map(float, self.betas)))
        led = self.momentum > 0 or not self.nesterov
        self._check("nesterov", led, "False without momentum")

    @property
    def settings(self) -> dict[str, Any]:
        """The fields that this kind has, by torch's names; all but the schedule."""
        return {name: getattr(self, name) for name in _OF_RULE[self.kind]}


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value <= sys.float_info.max  # an integer may be larger
