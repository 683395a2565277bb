"""How thorough this run of the tests is: fully, in what ``make test-all`` adds."""

from __future__ import annotations

import os

THOROUGH = os.environ.get("RESNET_TWINS_TESTS") == "all"
"""Whether to draw all examples, and to compile as users do."""


def examples(count: int) -> int:
    """Returns how many of so many examples this run draws: all, or a quarter."""
    return count if THOROUGH else -(-count // 4)
