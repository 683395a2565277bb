"""torchvision's published weights: fetched once, verified at every use."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from parity.errors import DownloadError
from parity.weights.digest import sha256_of
from resnet_spec import PublishedWeights

URL = "https://download.pytorch.org/models"
"""Where torchvision publishes; ``RESNET_TWINS_URL`` names a mirror."""

Progress = Callable[[int, int | None], None]

_CHUNK = 2**18
_TRIES = 3


def download(
    weights: PublishedWeights,
    *,
    folder: str | os.PathLike[str] | None = None,
    url: str | None = None,
    progress: Progress = lambda done, total: None,
    timeout: float = 30.0,
) -> Path:
    """Returns the path of a published file, fetching it if it is not there yet.

    The sha256 prefix is checked after the download and at every later use. A download
    that was cut goes on where it stopped; if the parts do not fit, it starts anew.

    Args:
        weights: from ``resnet_spec.get_weights``.
        folder: the cache; by default torch hub's own, which torchvision fills too.
        url: folder of the files on a server.
        progress: told the bytes done and, if the server says, the bytes in all.
        timeout: how long the server may be silent, in seconds.

    Raises:
        DownloadError: the server does not have the file, stops early every time, or
            sends another one.
    """
    target = Path(folder or cache_folder()) / weights.filename
    url = url or os.environ.get("RESNET_TWINS_URL") or URL
    address = f"{url.rstrip('/')}/{weights.filename}"

    def verified(path: Path) -> bool:
        return path.is_file() and _sha256(path).startswith(weights.sha256)

    if verified(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target.with_name(f"{target.name}.part")) as part:
            if verified(target):  # another process has been faster
                part.unlink()
                return target
            begun = part.stat().st_size > 0
            _fetch(address, part, progress, timeout)
            if begun and not verified(part):  # the beginning was another file's
                os.truncate(part, 0)
                _fetch(address, part, progress, timeout)
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


def _fetch(address: str, part: Path, progress: Progress, timeout: float) -> None:
    """Completes the partial file, over several connections if need be."""
    problem = ""
    for _ in range(_TRIES):
        try:
            if _fetch_once(address, part, progress, timeout):
                return
            problem = "the connection ended early"
        except urllib.error.HTTPError as error:
            if error.code != 416:  # asked for bytes behind the end: start anew
                raise DownloadError(
                    f"{address}: the server answered {error.code} {error.reason}. "
                    "Check the name, or set RESNET_TWINS_URL to a mirror"
                ) from error
            os.truncate(part, 0)
            problem = "the server refused to continue"
        except (
            urllib.error.URLError,
            http.client.HTTPException,
            TimeoutError,
        ) as error:
            problem = str(getattr(error, "reason", error))
        except ConnectionError as error:
            problem = str(error)
    raise DownloadError(
        f"{address}: {problem} ({_TRIES} tries). Call again to continue, or get the "
        f"file by hand and put it at {part.with_suffix('')}"
    )


def _fetch_once(address: str, part: Path, progress: Progress, timeout: float) -> bool:
    """Fetches what is missing; returns whether all has come that was announced."""
    have = part.stat().st_size
    request = urllib.request.Request(address)
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        resumed = answer.status == 206
        done = have if resumed else 0
        length = answer.headers.get("Content-Length")
        total = done + int(length) if length is not None else None
        with open(part, "ab" if resumed else "wb") as file:
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                done += len(chunk)
                progress(done, total)
            file.flush()
            os.fsync(file.fileno())
    return total is None or done == total


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
    with open(part, "ab") as file:
        try:
            import fcntl
        except ImportError:  # Windows has none; two downloads at once are rare
            pass
        else:
            fcntl.flock(file, fcntl.LOCK_EX)
        part.touch()  # the one who held the lock may have made it the target
        yield part
