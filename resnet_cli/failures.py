"""What goes wrong, in one line and as an exit code."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from types import FrameType

import typer

from resnet_spec.printable import plain

BAD_INPUT, BAD_OUTPUT, BUG, INTERRUPTED, UNHEARD = 2, 3, 70, 130, 141


def run(app: typer.Typer, name: str, arguments: Sequence[str]) -> None:
    """Runs a command; exits with its code, or with one line about what went wrong.

    What it prints is held back until it ends: a reader that has seen enough, as in
    ``| head -1``, cuts no verdict short.

    Args:
        app: the command.
        name: that it is called by.
        arguments: behind the name; ``--debug`` anywhere shows tracebacks.
    """
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    # Else the next file that is opened would get the number of a closed stream, and
    # what others print there would go into it.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115  for good
    said = io.StringIO()
    try:
        with _signals_as_exits(), _warnings_as_notes(), redirect_stdout(said):
            code = app(arguments, prog_name=name, standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except SystemExit as error:  # typer's own way out where nobody reads us is a 1
        unheard = isinstance(error.__context__, BrokenPipeError)
        code = UNHEARD if unheard else error.code
    except Exception as error:
        if debug:
            traceback.print_exc()
        code = exit_code(error)
        smaller = _smaller(app, arguments) if isinstance(error, MemoryError) else ()
        tell(f"error: {one_line(error, smaller)}")
    try:
        _print(said.getvalue())
    except OSError as error:
        code = BAD_OUTPUT
        tell(f"error: {one_line(error)}")
    sys.exit(code)


def tell(line: str) -> None:
    """Prints one line on standard error; nobody need be there to read it."""
    with suppress(OSError):
        print(plain(line), file=sys.stderr)


def _print(text: str) -> None:
    """Prints what a command said; raises OSError if that cannot be written."""
    if sys.stdout is None or not text:
        return
    encoding = sys.stdout.encoding or "utf-8"
    text = plain(text, keep="\n").encode(encoding, "backslashreplace").decode(encoding)
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # What is still in the buffer would fail again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise


@contextmanager
def _signals_as_exits() -> Iterator[None]:
    """Lets what ends a process from outside clear up first, as Ctrl-C does."""

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number and signal.getsignal(number) == signal.SIG_DFL:  # not nohup's
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _warnings_as_notes() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: tell(
            f"note: {' '.join(str(message).split())}"
        )
        yield


_EXTRAS = {
    "torch": "torch",
    **dict.fromkeys(("jax", "jaxlib", "flax", "optax"), "flax"),
    "matplotlib": "plot",
    "tensorboardX": "train",
    **dict.fromkeys(("onnx", "onnxruntime"), "export"),
    "openvino": "engines",
    **dict.fromkeys(("psutil", "scipy"), "bench"),
}
"""What has a module that is not installed."""


def _smaller(app: typer.Typer, arguments: Sequence[str]) -> list[str]:
    """Returns the options of a call by which it would need less memory."""
    command = typer.main.get_command(app)
    name = next((one for one in arguments if not one.startswith("-")), "")
    command = getattr(command, "commands", {}).get(name, command)
    has = {option for one in command.params for option in one.opts}
    given = {one.partition("=")[0] for one in arguments}
    for other, left in {
        "--image": (),
        "--verify": (),
        "--self-test": (),
        "--train": ("--batch",),
    }.items():
        if other in given & has:
            has = has.intersection(left)
    return [option for option in ("--size", "--batch") if option in has]


def one_line(error: Exception, smaller: Sequence[str] = ()) -> str:
    """Says what went wrong, and what to do about it.

    Args:
        error: that ended the command.
        smaller: options by which it would need less memory.
    """
    from parity.errors import DownloadError, OutputError

    if _is_usage(error):
        return f"{error.format_message().rstrip('.')}. See --help"  # type: ignore
    text = plain(" ".join(str(error).split()), most=2000)
    if isinstance(error, ModuleNotFoundError):
        extra = _EXTRAS.get((error.name or "").partition(".")[0], "torch,flax")
        return f"{text}: install it with `pip install 'resnet-twins[{extra}]'`"
    if isinstance(error, ValueError | OutputError | DownloadError):
        return text
    if isinstance(error, OSError):
        return f"the output cannot be written ({error.strerror or error})"
    if isinstance(error, MemoryError):
        said = f"not enough memory ({text})" if text else "not enough memory"
        advice = f"Use a smaller {' or '.join(smaller)}"
        return f"{said}. {advice if smaller else 'Free some, or use a larger machine'}"
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
