"""How thorough this run of the tests is: all of it in ``make test-all``."""

from __future__ import annotations

import os

THOROUGH = os.environ.get("RESNET_TWINS_TESTS") == "all"
"""Whether to draw all examples, and to compile as users do."""


def examples(count: int) -> int:
    """Returns how many of so many examples this run draws: all, or a quarter."""
    return count if THOROUGH else -(-count // 4)
