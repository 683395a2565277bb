"""What frozen descriptions share: plain values, refusals in one sentence, and JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from resnet_spec.printable import plain
from resnet_spec.spelling import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A frozen value of named fields, which goes through JSON unchanged."""

    def __post_init__(self) -> None:
        """Takes lists and other libraries' numbers as Python's own; no other objects.

        Raises:
            ValueError: a field has what is no plain value.
        """
        for field in dataclasses.fields(self):
            self._set(field.name, plain_value(field.name, getattr(self, field.name)))

    def to_json(self) -> str:
        """Returns the settings as a JSON object, one key per field."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Returns the settings that :meth:`to_json` wrote.

        Raises:
            ValueError: the text is no JSON object of these settings' fields.
        """
        return cls.of(json.loads(text))

    @classmethod
    def of(cls, settings: object) -> Self:
        """Returns the settings of an object that JSON had.

        Raises:
            ValueError: it is no object of these settings' fields.
        """
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
                likely = did_you_mean(str(unknown[0]), fields, {})
                problem = f"no field {shown(unknown[0])};{likely} "
                problem += f"there are {', '.join(fields)}"
            elif lacking:
                problem = f"the field {lacking[0]!r} is missing"
        else:
            problem = f"{shown(settings)} is no object of fields"
        if problem:
            raise ValueError(f"not a {cls.__name__}: {problem}")
        return cls(**settings)  # type: ignore[arg-type]

    def _check(self, field: str, ok: bool, allowed: str) -> None:
        if not ok:
            raise invalid(field, getattr(self, field), allowed)

    def _check_number(self, field: str, most: float = math.inf) -> None:
        value = getattr(self, field)
        limited = f"a number from 0 to {most:g}"
        allowed = "a number, 0 or more" if most == math.inf else limited
        self._check(field, is_number(value) and value <= most, allowed)
        self._set(field, float(value))

    def _set(self, field: str, value: object) -> None:
        object.__setattr__(self, field, value)


def is_number(value: object) -> bool:
    """Says whether a value is a finite number, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value <= sys.float_info.max  # an integer may be larger


MOST = 2**31
"""No setting that counts has this, or more."""


def is_count(value: object) -> bool:
    """Says whether a value is a positive integer that anything here may have."""
    return type(value) is int and 0 < value < MOST


def invalid(field: str, value: object, allowed: str) -> ValueError:
    """Returns an error that names a field, its value and what is allowed."""
    return ValueError(f"{field} is {shown(value)}; it must be {allowed}")


def shown(value: object) -> str:
    """Returns a value as Python writes it, in a line of 200 characters at most."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        text = f"a number of more than {sys.get_int_max_str_digits()} digits"
    return plain(text, most=200)


def plain_value(field: str, value: object) -> Any:
    """Returns what :func:`as_plain` makes of a field's value.

    Raises:
        ValueError: that is no plain value.
    """
    value = as_plain(value)
    if not is_plain(value):
        raise invalid(field, value, "a plain value, or a tuple of some")
    return value


def as_plain(value: Any) -> Any:
    """Returns lists as tuples, other libraries' numbers as Python's; else as it is."""
    if isinstance(value, tuple | list):
        return tuple(map(as_plain, value))
    if isinstance(value, int | float | str):
        return value
    scalar = getattr(value, "shape", None) == ()  # of numpy, torch or JAX
    number = getattr(value, "item" if scalar else "__index__", None)
    try:
        return value if number is None else number()
    except (TypeError, ValueError, RuntimeError):  # of several, traced, of no device
        return value


def is_plain(value: object) -> bool:
    """Says whether a value is one of numbers, texts and what holds such."""
    if isinstance(value, tuple | list):
        return all(map(is_plain, value))
    if isinstance(value, Mapping):
        return all(map(is_plain, (*value, *value.values())))
    return value is None or isinstance(value, int | float | str | Settings)
