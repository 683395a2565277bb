"""Modules that drop at random in training mode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def dropping(
    modules: Iterable[tuple[str, Any]], classes: Mapping[str, str]
) -> Iterator[tuple[str, Any, str]]:
    """Yields what drops something: its path, itself, and the attribute with the share.

    Args:
        modules: by path, of either framework.
        classes: class → that attribute.
    """
    for path, module in modules:
        kinds = {cls.__name__ for cls in type(module).__mro__}
        for name in kinds & classes.keys():
            rate = getattr(module, classes[name], None)
            if isinstance(rate, float | int) and rate:
                yield path, module, classes[name]
