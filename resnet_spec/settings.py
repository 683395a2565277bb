"""What the descriptions of a training run share: refusals in one sentence, and JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from resnet_spec.spelling import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A frozen value of named fields, which goes through JSON unchanged."""

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
                problem = f"no field {unknown[0]!r};{likely} "
                problem += f"there are {', '.join(fields)}"
            elif lacking:
                problem = f"the field {lacking[0]!r} is missing"
        else:
            problem = f"{settings!r} is no object of fields"
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
    return ValueError(f"{field} is {value!r}; it must be {allowed}")
