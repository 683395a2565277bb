"""Files that are read: regular ones only, and opened once."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from parity.errors import InputError


def open_regular(
    path: str | os.PathLike[str], most: int, error: type[InputError] = InputError
) -> BinaryIO:
    """Opens a regular file; a FIFO or a device could hold us for ever.

    Whatever is checked and read on what this returns is one file, even if another one
    takes its name meanwhile.

    Args:
        path: the file.
        most: the largest size that makes sense, in bytes.
        error: what to raise.

    Raises:
        InputError: no such file, no regular one, an empty one, or a larger one.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except (FileNotFoundError, NotADirectoryError) as missing:
        raise error("no such file", path=path, advice="Check the path") from missing
    except (OSError, ValueError) as refused:  # ValueError: a name with a zero byte
        raise error(
            f"cannot be read ({getattr(refused, 'strerror', refused)})",
            path=path,
            advice="Check the path and its permissions",
        ) from refused
    found = os.fstat(descriptor)
    problem = advice = None
    if stat.S_ISDIR(found.st_mode):
        problem, advice = "is a directory", "Name a file in it"
    elif not stat.S_ISREG(found.st_mode):
        problem, advice = "is no regular file", "Copy its content to one first"
    elif found.st_size == 0:
        problem, advice = "is empty", "Get the file again"
    elif found.st_size > most:
        problem = f"is larger than {most} bytes"
        advice = "Check that it is the right file"
    if problem is not None:
        os.close(descriptor)
        raise error(problem, path=path, advice=advice)
    return open(descriptor, "rb")


def read_text(path: str | os.PathLike[str], most: int) -> str:
    """Reads a regular file of UTF-8.

    Raises:
        InputError: it cannot be opened, is too large, or no text.
    """
    try:
        with open_regular(path, most) as file:
            return file.read(most).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8"
        raise InputError(f"cannot be read ({reason})", path=Path(path)) from error
