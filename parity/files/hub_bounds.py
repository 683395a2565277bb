"""What the Hub's library does, within bounds: of bytes, of tries and of time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from parity.errors import DownloadError
from parity.files.download import Progress
from parity.files.hub_errors import UnreachableError

_T = TypeVar("_T")

BUSY = (429, 502, 503, 504)
"""What a server answers that may be asked again."""

_TRIES = 3
_WAIT, _LONGEST_WAIT = 1.0, 30.0  # seconds; the first is doubled from try to try
_CLEARING = 1.0  # seconds that what was interrupted may take to clear up


def patiently(
    ask: Callable[[], _T],
    *,
    seconds: float,
    busy: Collection[int] = BUSY,
    ended: threading.Event | None = None,
) -> _T:
    """Calls the Hub's library, again where the Hub is busy, and only for so long.

    Args:
        ask: the call. It may go on in its thread when nobody waits for it any more.
        seconds: that all of it may take.
        busy: the answers after which it is called again; some the library tries itself.
        ended: is set when nobody waits any more.

    Raises:
        UnreachableError: it took longer.
    """
    from huggingface_hub.errors import HfHubHTTPError

    end = time.monotonic() + seconds
    for count in range(1, _TRIES):
        try:
            return _within(ask, end, seconds, ended)
        except HfHubHTTPError as error:
            if error.response.status_code not in busy:
                raise
            asked = error.response.headers.get("Retry-After") or ""
            number = asked.isascii() and asked.isdigit() and len(asked) < 16
            wait = float(asked) if number else _WAIT * 2 ** (count - 1)
            time.sleep(max(0.0, min(wait, _LONGEST_WAIT, end - time.monotonic())))
    return _within(ask, end, seconds, ended)


def _within(
    ask: Callable[[], _T], end: float, seconds: float, ended: threading.Event | None
) -> _T:
    """Calls it in a thread that need not be waited for.

    A server that sends a byte now and then keeps every single wait short.
    """
    found: list[_T] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            found.append(ask())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        thread.join(max(0.0, end - time.monotonic()))
    except BaseException:
        if ended is not None:
            ended.set()
        thread.join(_CLEARING)
        raise
    if failed:
        raise failed[0]
    if not found:
        if ended is not None:
            ended.set()
        raise UnreachableError(
            f"is not complete after {seconds:.0f} s. Check the network, and call again"
        )
    return found[0]


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the Hub's library from writing to standard error: errors say it all."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def bar(progress: Progress, *, most: int, name: object, ended: threading.Event) -> type:
    """Makes what the Hub's library takes for a progress bar: it tells ours, and stops.

    Args:
        progress: told the bytes, done and in all.
        most: bytes that may come.
        name: of the file.
        ended: whether anybody still waits for it.
    """
    from tqdm import tqdm  # the library's own

    class Bar(tqdm):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings | {"disable": True})  # it draws nothing
            self._require(self.total or 0)

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            self._require(self.n)
            progress(int(self.n), None if self.total is None else int(self.total))

        def _require(self, size: float) -> None:
            if size > most:
                raise DownloadError(
                    f"{name}: sends {size:.0f} bytes, and at most {most} are taken. "
                    "Check that it is the right file"
                )
            if ended.is_set():
                raise InterruptedError

        # What has come from Xet and is in no file yet; else there would be two bars.
        def update_transfer(self, n: float) -> None:
            pass

        def set_transfer_postfix_str(self, *_: Any, **__: Any) -> None:
            pass

    return Bar
