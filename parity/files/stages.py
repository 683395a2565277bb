"""Where the time of a conversion goes, for whoever measures it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_seconds: ContextVar[dict[str, float] | None] = ContextVar("seconds", default=None)


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Yields what the stages within take, in seconds by name."""
    found: dict[str, float] = {}
    token = _seconds.set(found)
    try:
        yield found
    finally:
        _seconds.reset(token)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Adds to a stage what happens within; a stage within another counts as that."""
    found = _seconds.get()
    token = _seconds.set(None)
    start = time.perf_counter()
    try:
        yield
    finally:
        _seconds.reset(token)
        if found is not None:
            found[name] = found.get(name, 0.0) + time.perf_counter() - start
