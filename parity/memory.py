"""Memory that freed arrays leave behind."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any


def give_back() -> None:
    """Returns freed memory to the system.

    glibc keeps what lies between arrays that still live: gigabytes, after thousands of
    maps of many sizes have come and gone. Does nothing where the C library is another.
    """
    if (trim := _malloc_trim()) is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
