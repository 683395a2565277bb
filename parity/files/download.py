"""torchvision's published weights: fetched once, verified at every use."""

from __future__ import annotations

import base64
import http.client
import os
import stat
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from parity.errors import DownloadError
from parity.files.atomic import lock
from parity.weights.digest import sha256_of
from resnet_spec import PublishedWeights

URL = "https://download.pytorch.org/models"
"""Where torchvision publishes; ``RESNET_TWINS_URL`` names a mirror."""

Progress = Callable[[int, int | None], None]

MAX_BYTES = 2**30
"""Three times the largest published file."""

_CHUNK = 2**18
_TRIES = 3
_SLOWEST = 1000  # bytes a second, over the time that a server may be silent
_BUSY = (429, 502, 503, 504)
_WAIT, _LONGEST_WAIT = 1.0, 30.0  # seconds; the first is doubled from try to try


def download(
    weights: PublishedWeights,
    *,
    folder: str | os.PathLike[str] | None = None,
    url: str | None = None,
    progress: Progress = lambda done, total: None,
    timeout: float = 30.0,
    deadline: float = 3600.0,
) -> Path:
    """Returns the path of a published file, fetching it if it is not there yet.

    The sha256 prefix is checked after the download and at every later use. A download
    that was cut goes on where it stopped; if the parts do not fit, it starts anew.

    Args:
        weights: from ``resnet_spec.get_weights``.
        folder: the cache; by default torch hub's own, which torchvision fills too.
        url: folder of the files on a server.
        progress: told the bytes done and, if the server says, the bytes in all.
        timeout: how long the server may be silent, or send next to nothing, in seconds.
        deadline: how long all of it may take, in seconds.

    Raises:
        DownloadError: the server does not have the file, stops early every time, takes
            too long, or sends another one or more than ``MAX_BYTES``.
    """
    target = Path(folder or cache_folder()) / weights.filename
    url = url or os.environ.get("RESNET_TWINS_URL") or URL
    address, authorization = _located(url, weights.filename)
    end = time.monotonic() + deadline

    def verified(path: Path) -> bool:
        return path.is_file() and _sha256(path).startswith(weights.sha256)

    def fetch(part: Path) -> None:
        fetched = _Fetch(address, authorization, part, progress, timeout)
        fetched.within(max(0.0, end - time.monotonic()))

    try:
        if verified(target):
            return target
        if target.exists() and not target.is_file():
            raise DownloadError(f"{target}: is no regular file. Remove it")
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target.with_name(f"{target.name}.part")) as part:
            if verified(target):  # another process has been faster
                part.unlink()
                return target
            begun = part.stat().st_size > 0
            fetch(part)
            if begun and not verified(part):  # the beginning was another file's
                os.truncate(part, 0)
                fetch(part)
            if not verified(part):
                what = f"{_what_came(part)} with sha256 {_sha256(part)[:8]}"
                part.unlink()
                raise DownloadError(
                    f"{address}: sent {what}, expected {weights.sha256}. Check the "
                    f"address, or get the file by hand and put it at {target}"
                )
            os.replace(part, target)
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(
            f"{address}: cannot be stored at {target} ({error.strerror or error}). "
            "Check the folder's space and permissions"
        ) from error
    return target


def cache_folder() -> Path:
    """Returns torch hub's folder of checkpoints, found as torch finds it."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("TORCH_HOME") or f"{cache}/torch"
    return Path(home).expanduser() / "hub" / "checkpoints"


@dataclass
class _Fetch:
    """One file on its way here; ``ended`` stops a thread that is not waited for."""

    address: str
    authorization: str | None
    part: Path
    progress: Progress
    timeout: float
    ended: threading.Event = field(default_factory=threading.Event)

    def within(self, seconds: float) -> None:
        """Completes the partial file, or gives up.

        A server that sends a byte now and then keeps every single wait short, so all
        of it happens in a thread that need not be waited for.
        """
        outcome: list[BaseException | None] = []

        def work() -> None:
            try:
                self._try()
                outcome.append(None)
            except BaseException as error:
                outcome.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            thread.join(seconds)
        finally:
            self.ended.set()
        if not outcome:
            raise self._failed(f"it is not complete after {seconds:.0f} s")
        if outcome[0] is not None:
            raise outcome[0]

    def _try(self) -> None:
        problem = ""
        for count in range(_TRIES):
            wait = 0.0
            try:
                if self._once():
                    return
                problem = "the connection ended early"
            except urllib.error.HTTPError as error:
                error.close()
                problem = f"the server answered {error.code} {error.reason}"
                if error.code == 416:  # asked for bytes behind the end: start anew
                    os.truncate(self.part, 0)
                elif error.code in _BUSY:
                    asked = error.headers.get("Retry-After") or ""
                    wait = float(asked) if _is_number(asked) else _WAIT * 2**count
                else:
                    raise DownloadError(
                        f"{self.address}: {' '.join(problem.split())}. Check the name, "
                        "or set RESNET_TWINS_URL to a mirror"
                    ) from error
            except http.client.HTTPException as error:
                problem = str(error) or type(error).__name__
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                problem = str(getattr(error, "reason", error))
            except ValueError as error:
                raise DownloadError(
                    f"{self.address}: is no address ({error}). Check RESNET_TWINS_URL"
                ) from error
            if count + 1 < _TRIES and self.ended.wait(min(wait, _LONGEST_WAIT)):
                return
        raise self._failed(f"{' '.join(problem.split())} ({_TRIES} tries)")

    def _once(self) -> bool:
        """Fetches what is missing; returns whether all has come that was announced."""
        have = self.part.stat().st_size
        request = urllib.request.Request(self.address)
        if self.authorization is not None:  # for nobody that we are sent on to
            request.add_unredirected_header("Authorization", self.authorization)
        if have:
            request.add_header("Range", f"bytes={have}-")
        with urllib.request.urlopen(request, timeout=self.timeout) as answer:
            resumed = answer.status == 206
            done = have if resumed else 0
            length = answer.headers.get("Content-Length") or ""
            total = done + int(length) if _is_number(length) else None
            self._require_size(total or 0)
            since, then = time.monotonic(), done
            with open(self.part, "ab" if resumed else "wb") as file:
                while chunk := answer.read1(_CHUNK):
                    done += len(chunk)
                    if (seconds := time.monotonic() - since) > self.timeout:
                        if done - then < _SLOWEST * seconds:
                            raise TimeoutError(f"under {_SLOWEST} bytes a second came")
                        since, then = time.monotonic(), done
                    self._require_size(done)
                    if self.ended.is_set():
                        return False
                    file.write(chunk)
                    self.progress(done, total)
                file.flush()
                os.fsync(file.fileno())
        return total is None or done == total

    def _require_size(self, size: int) -> None:
        if size > MAX_BYTES:
            self.part.unlink(missing_ok=True)
            raise DownloadError(
                f"{self.address}: sends {size} bytes, and no published file has over "
                f"{MAX_BYTES}. Check the address"
            )

    def _failed(self, problem: str) -> DownloadError:
        return DownloadError(
            f"{self.address}: {problem}. Call again to continue, or get the file by "
            f"hand and put it at {self.part.with_suffix('')}"
        )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 16


def _located(url: str, filename: str) -> tuple[str, str | None]:
    """Returns a file's address, and what proves to the server who asks.

    A name and a password in the address are for the server alone, and in no message.
    """
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise DownloadError(
            f"the mirror's address is none ({error}). Check RESNET_TWINS_URL"
        ) from error
    user, at, host = parts.netloc.rpartition("@")
    address = f"{parts._replace(netloc=host).geturl().rstrip('/')}/{filename}"
    if not at:
        return address, None
    secret = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
    return address, f"Basic {secret}"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return sha256_of(file)


def _what_came(part: Path) -> str:
    with open(part, "rb") as file:
        head = file.read(64)
    return "a web page" if head.lstrip().startswith(b"<") else "another file"


@contextmanager
def _alone(part: Path) -> Iterator[Path]:
    """Keeps two processes from writing one partial file."""
    # Without blocking: what is no file could hold us for ever.
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NONBLOCK", 0)
    file = os.open(part, flags, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise DownloadError(f"{part}: is no regular file. Remove it")
        lock(file, wait=True)
        part.touch()  # the one who held the lock may have made it the target
        yield part
    finally:
        os.close(file)
