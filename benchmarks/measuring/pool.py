"""Worker processes, seen from the one that asks them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.measuring.worker import Job, one_line, serve

_SPAWN = multiprocessing.get_context("spawn")  # a fork would copy this one's threads


PATIENCE = 0.3
"""Seconds that a process is given to put away what it shares with others."""


class WorkerError(Exception):
    """A worker that could not do what it was told, in one line."""


class Worker:
    """A process that holds one mode.

    Args:
        job: what it is to hold.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.at_start = 0
        self._ended = False
        self.turns: list[tuple[float, float]] = []
        self._connection, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=serve, args=(job, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def ready(self) -> None:
        """Waits until its frameworks are imported."""
        _, self.at_start = self._receive()

    def build(self) -> tuple[list[float], Path, dict[str, Any]]:
        """Makes its network; returns times of two calls, their results, and facts."""
        first, second, path, facts = self._ask("build")
        return [first[1], second[1]], path, facts

    def time(self, *, wake: int = 0) -> float:
        """Does one repetition and returns its seconds.

        Args:
            wake: repetitions before it that are not timed: caches and threads are
                another mode's when its turn comes.
        """
        start, seconds = self._ask("time", wake)
        self.turns.append((start, seconds))
        return seconds

    def memory(self) -> dict[str, int]:
        """Returns its memory in bytes: behind imports, at its peak, and while timed."""
        return {"start": self.at_start, **self._ask("memory")}

    def leave(self) -> None:
        """Lets the process end by itself, and waits for nothing."""
        self._connection.close()

    def close(self) -> None:
        """Ends the process, if it has not been ended."""
        if self._ended:
            return
        self._ended = True
        self.leave()
        self._process.join(PATIENCE)
        self._process.kill()  # taking a framework down takes a second; nothing is lost
        self._process.join()
        self._process.close()

    def _ask(self, question: str, argument: Any = None) -> Any:
        with suppress(OSError):  # what it said before it ended is still to be read
            self._connection.send((question, argument))
        return self._receive()[1]

    def _receive(self) -> tuple[str, Any]:
        try:
            kind, answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(5)
            code = self._process.exitcode
            what = "was killed, perhaps for memory" if code == -9 else f"ended ({code})"
            raise WorkerError(f"its process {what}") from None
        if kind == "error":
            raise WorkerError(answer)
        return kind, answer


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a process of its own and returns what it returns.

    Raises:
        WorkerError: it raised, or its process ended.
    """
    receiving, sending = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(
        target=_call, args=(sending, function, *arguments), daemon=True
    )
    process.start()
    sending.close()
    try:
        ok, answer = receiving.recv()
    except EOFError:
        process.join()
        ok, answer = False, f"its process ended ({process.exitcode})"
    finally:
        receiving.close()
    process.join()
    if not ok:
        raise WorkerError(answer)
    return answer


def _call(connection: Any, function: Callable[..., Any], *arguments: Any) -> None:
    try:
        connection.send((True, function(*arguments)))
    except Exception as error:
        connection.send((False, one_line(error)))
