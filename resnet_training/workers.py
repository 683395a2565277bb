"""The processes of a loader, each held by a thread that waits for it."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from resnet_training.making import Broken, Piece, make
from resnet_training.worker import LENGTH

Promise = Callable[[], Broken]
"""Waits until a piece is made, and says what is broken in it."""

_CLOSED = "the loader is closed; make a new one, from the step that is needed"
_PROGRAM = "from resnet_training.worker import main; main()"
_PIPE_BYTES = 2**20  # Linux' default of 64 KiB holds half an image


class Workers:
    """Makes pieces of batches in other processes; with none, in this one.

    Args:
        count: of processes.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._closed = False
        self._processes: list[_Process] = []
        self._idle: list[_Process] = []
        self._lock = threading.Lock()
        self._threads = None
        if count:
            self._threads = ThreadPoolExecutor(count, "loader")
            try:
                for _ in range(count):
                    self._processes.append(_Process())
            except OSError:  # the system allows no more
                self.close()
                raise
            self._idle += self._processes

    @property
    def ids(self) -> list[int]:
        """The processes' ids."""
        return [process.id for process in self._processes]

    def begin(self, piece: Piece, images: np.ndarray, erased: np.ndarray) -> Promise:
        """Begins to make a piece; the arrays are filled when the promise is kept.

        Args:
            piece: what to make.
            images: uint8 of the piece's shape, contiguous.
            erased: int32 of shape (n, 4), contiguous.
        """
        if self._closed:
            raise RuntimeError(_CLOSED)
        if self._threads is None:
            return lambda: make(piece, images, erased)
        future = self._threads.submit(self._have_made, piece, images, erased)
        return _Waiting(future)

    def _have_made(
        self, piece: Piece, images: np.ndarray, erased: np.ndarray
    ) -> Broken:
        with self._lock:  # as many processes as threads: one is idle
            process = self._idle.pop()
        try:
            said = process.ask(piece, images, erased)
        except (OSError, EOFError, ValueError) as error:
            if self._closed:
                raise RuntimeError(_CLOSED) from None
            raise RuntimeError(
                f"process {process.id} of the loader ended ({process.how()}): "
                "start again, with fewer workers if memory ran out"
            ) from error
        finally:
            with self._lock:
                self._idle.append(process)
        if isinstance(said, str):
            raise RuntimeError(f"a process of the loader failed:\n{said}")
        return said

    def close(self) -> None:
        """Ends all processes, and waits until they have ended."""
        self._closed = True
        for process in self._processes:
            process.kill()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.close()
        self._processes = []


class _Waiting:
    """A promise that another process keeps."""

    def __init__(self, future: Future[Broken]) -> None:
        self._future = future

    def __call__(self) -> Broken:
        try:
            return self._future.result()
        except CancelledError:
            raise RuntimeError(_CLOSED) from None

    def forget(self) -> None:
        """Takes the task back, if nobody has begun it."""
        self._future.cancel()


class Made:
    """Images that are being made, in pieces of about a million pixels.

    Args:
        workers: that make them.
        piece: all of them.

    Attributes:
        images: uint8 of the piece's shape; filled when it is finished.
        erased: int32 of shape (n, 4); likewise.
    """

    def __init__(self, workers: Workers, piece: Piece) -> None:
        self.piece = piece
        self.images = np.empty(piece.shape, np.uint8)
        self.erased = np.empty((len(self.images), 4), np.int32)
        self._promises: list[tuple[int, Promise]] = []
        each = -(-len(self.images) // max(pieces_of(piece.shape), 1)) or 1
        for start in range(0, len(self.images), each):
            here = slice(start, start + each)
            part = piece.part(start, start + each)
            promise = workers.begin(part, self.images[here], self.erased[here])
            self._promises.append((start, promise))

    def finish(self) -> Broken:
        """Waits until all are made, and says what is broken."""
        return {
            start + place: error
            for start, promise in self._promises
            for place, error in promise().items()
        }

    def forget(self) -> None:
        """Takes back what nobody has begun."""
        for _, promise in self._promises:
            if isinstance(promise, _Waiting):
                promise.forget()


def pieces_of(shape: tuple[int, ...]) -> int:
    """Returns into how many pieces images are cut: of about a million pixels each."""
    images, side = shape[:2]
    return -(-images // min(max(2**20 // side**2, 8), 128))


class _Process:
    """One process, and the two pipes to it."""

    def __init__(self) -> None:
        paths = (os.path.abspath(path or ".") for path in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))},
            # Ctrl-C in a terminal is for the program that trains alone.
            process_group=0 if os.name == "posix" else None,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._tasks: Any = self._process.stdin  # raw: it may write less than it is told
        self._answers: Any = self._process.stdout
        if sys.platform == "linux":
            import fcntl

            for pipe in (self._tasks, self._answers):
                # Slower, where the system allows no more.
                with contextlib.suppress(OSError):
                    fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    @property
    def id(self) -> int:
        return self._process.pid

    def ask(self, piece: Piece, images: np.ndarray, erased: np.ndarray) -> Broken | str:
        """Hands over a piece, and reads the answer into the arrays."""
        text = pickle.dumps(piece, pickle.HIGHEST_PROTOCOL)
        for part in (LENGTH.pack(len(text)), text):
            rest = memoryview(part)
            while rest:
                rest = rest[self._tasks.write(rest) :]
        said = pickle.loads(self._read(LENGTH.unpack(self._read(LENGTH.size))[0]))
        if not isinstance(said, str):
            for array in (erased, images):
                self._fill(array.data.cast("B"))
        return said

    def _read(self, count: int) -> bytearray:
        buffer = bytearray(count)
        self._fill(memoryview(buffer))
        return buffer

    def _fill(self, rest: memoryview) -> None:
        while rest:
            count = self._answers.readinto(rest)
            if not count:
                raise EOFError
            rest = rest[count:]

    def how(self) -> str:
        """Says how it ended."""
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "it does not answer"
        return f"signal {-code}" if code < 0 else f"exit status {code}"

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._process.wait()
        self._tasks.close()
        self._answers.close()
