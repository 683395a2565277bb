"""How thorough this run of the tests is; the Makefile says which part is run how."""

from __future__ import annotations

import os

_ASKED = os.environ.get("RESNET_TWINS_TESTS", "")

THOROUGH = _ASKED in ("all", "examples")
"""Whether to draw all examples."""

AS_USERS = _ASKED in ("all", "compile")
"""Whether to compile as users do, with all of XLA's optimisations."""


def examples(count: int) -> int:
    """Returns how many of so many examples this run draws: all, or a quarter."""
    return count if THOROUGH else -(-count // 4)
