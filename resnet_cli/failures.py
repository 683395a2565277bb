"""What goes wrong, in one line and as an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import typer

BAD_INPUT, BAD_OUTPUT, BUG, INTERRUPTED = 2, 3, 70, 130


def run(app: typer.Typer, name: str, arguments: Sequence[str]) -> None:
    """Runs a command; exits with its code, or with one line about what went wrong.

    Args:
        app: the command.
        name: that it is called by.
        arguments: behind the name; ``--debug`` anywhere shows tracebacks.
    """
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        code = app(arguments, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(INTERRUPTED)
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(f"error: {one_line(error)}", file=sys.stderr)
        if type(error).__module__ == "builtins" and isinstance(error, OSError):
            # What is still in standard output's buffer would fail again at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(exit_code(error))


_EXTRAS = {
    "torch": "torch",
    **dict.fromkeys(("jax", "jaxlib", "flax", "optax"), "flax"),
    "matplotlib": "plot",
    **dict.fromkeys(("psutil", "scipy"), "bench"),
}
"""What has a module that is not installed."""


def one_line(error: Exception) -> str:
    """Says what went wrong, and what to do about it."""
    from parity.errors import DownloadError, OutputError

    if _is_usage(error):
        return f"{error.format_message().rstrip('.')}. See --help"  # type: ignore
    text = " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError):
        extra = _EXTRAS.get((error.name or "").partition(".")[0], "torch,flax")
        return f"{text}: install it with `pip install 'resnet-twins[{extra}]'`"
    if isinstance(error, ValueError | OutputError | DownloadError):
        return text
    if isinstance(error, OSError):
        return f"the output cannot be written ({error.strerror or error})"
    if isinstance(error, MemoryError):
        return f"not enough memory ({text}). Use a smaller --size or --batch"
    return f"{type(error).__name__}: {text}. This is a bug; --debug shows where"


def exit_code(error: Exception) -> int:
    """Chooses the code that tells a script whose fault it was."""
    from parity.errors import DownloadError

    bad_input = ValueError | DownloadError | ModuleNotFoundError | MemoryError
    if _is_usage(error) or isinstance(error, bad_input):
        return BAD_INPUT
    return BAD_OUTPUT if isinstance(error, OSError) else BUG


def _is_usage(error: Exception) -> bool:
    # click's own class, wherever this version of typer keeps it.
    return hasattr(error, "format_message")
