"""Weights from the Hugging Face Hub: fetched by its library, verified at every use.

``huggingface_hub`` has the cache, the tokens, proxies, mirrors and the offline mode;
what it leaves out is done here: which files of a repository are wanted at all, that
their hashes are those that the Hub promised, and one sentence about what went wrong.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from parity.errors import DownloadError
from parity.files.download import Progress
from parity.files.hub_config import BESIDE, WEIGHTS, is_index
from parity.files.shards import parts_of
from parity.weights.digest import sha256_of
from resnet_spec import get_timm_weights, is_timm

PREFIX = "hf://"

_EXAMPLE = "hf://owner/name, hf://owner/name@revision or hf://owner/name/file"
_TIMEOUT = 30.0  # seconds that the Hub may be silent


@dataclass(frozen=True)
class Address:
    """What of the Hub is meant.

    Args:
        repository: owner and name.
        revision: a branch, a tag or a commit.
        file: in the repository; ``None`` for its weights, whatever they are called.
    """

    repository: str
    revision: str = "main"
    file: str | None = None

    def __str__(self) -> str:
        """As it is written."""
        at = "" if self.revision == "main" else f"@{self.revision}"
        return f"{PREFIX}{self.repository}{at}" + (f"/{self.file}" if self.file else "")


def is_remote(weights: str | os.PathLike[str]) -> bool:
    """Whether this names weights on the Hub, and no file here."""
    return isinstance(weights, str) and (weights.startswith(PREFIX) or is_timm(weights))


def parse(weights: str) -> Address:
    """Reads ``hf://owner/name[@revision][/file]``, or a name of timm's.

    Raises:
        ValueError: it is neither.
    """
    if is_timm(weights):
        return Address(get_timm_weights(weights).repository)
    owner, _, rest = weights.removeprefix(PREFIX).partition("/")
    name, slash, file = rest.partition("/")
    name, at, revision = name.partition("@")
    if revision == "refs":  # the only revisions with slashes that the Hub itself makes
        kind, _, file = file.partition("/")
        number, slash, file = file.partition("/")
        revision = f"refs/{kind}/{number}"
    revision = unquote(revision) if at else "main"
    parts = [owner, name, *revision.split("/"), *(file.split("/") if slash else [])]
    if any(part in ("", ".", "..") or not part.isprintable() for part in parts):
        raise ValueError(f"{weights}: is no address on the Hub; write {_EXAMPLE}")
    return Address(f"{owner}/{name}", revision, file or None)


def located(
    weights: str | os.PathLike[str], progress: Progress = lambda done, total: None
) -> Path:
    """Returns the path of weights: of a file as it is, of the Hub's once fetched.

    Args:
        weights: a path, ``hf://owner/name[@revision][/file]`` or a name of timm's.
        progress: told the bytes of a download, done and in all.

    Raises:
        DownloadError: they cannot be had, or are not what the Hub promised.
        ValueError: there is no such name.
    """
    if not is_remote(weights):
        return Path(weights)
    return fetch(parse(os.fspath(weights)), progress=progress)


def fetch(address: Address, *, progress: Progress = lambda done, total: None) -> Path:
    """Returns the path of a repository's weights, beside what describes them.

    Of all that is in the repository only these are fetched, into the cache that every
    library of the Hub's shares, and nothing of it is run.

    Args:
        address: what is meant.
        progress: told the bytes of a download, done and in all.

    Raises:
        DownloadError: the repository, the revision or the file is not there or not for
            everybody, the network or the Hub is not, what came is something else, or
            ``huggingface_hub`` is not installed.
    """
    repository = _Repository(address, progress)
    name = address.file or next((n for n in WEIGHTS if n in repository.names), None)
    if name is None or name not in repository.names:
        raise repository.lacks("no such file" if address.file else "no weights")
    repository.get_beside()
    path = repository.get(name)
    if is_index(name):
        for part in parts_of(path):
            if not repository.has(repository.beside(part)):
                raise repository.lacks(f"no {part}, which its index names,")
            repository.get(repository.beside(part))
    return path


def fetch_beside(address: Address) -> Path | None:
    """Returns the folder of what describes weights, without these; if there is any.

    Raises:
        DownloadError: as for :func:`fetch`.
    """
    paths = _Repository(address, lambda done, total: None).get_beside()
    return paths[0].parent if paths else None


class _UnreachableError(Exception):
    """The Hub could not be asked; what is in the cache may do."""


class _Repository:
    """One revision of a repository, whose files are fetched one by one.

    Args:
        address: what of it is meant.
        progress: told the bytes of a download, done and in all.

    Attributes:
        names: of its files; without the Hub of those in the cache that may be meant.
    """

    def __init__(self, address: Address, progress: Progress) -> None:
        _require_library(address)
        from huggingface_hub import HfApi

        # The library reads it once, when it is imported.
        self._endpoint = os.environ.get("HF_ENDPOINT") or None
        self._address, self._progress = address, progress
        self._revision, self._offline = address.revision, False
        try:
            with _explained(address):
                found = HfApi(endpoint=self._endpoint).model_info(
                    address.repository, revision=address.revision, timeout=_TIMEOUT
                )
            self.names = [sibling.rfilename for sibling in found.siblings or []]
        except _UnreachableError as error:
            self._offline = True
            self.names = [*filter(self._is_cached, self._likely())]
            if not self.names:
                raise DownloadError(f"{address}: {error}") from error

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return name in self.names or (self._offline and self._is_cached(name))

    def beside(self, name: str) -> str:
        """Returns the name of a file in the folder of the one that is meant."""
        folder = (self._address.file or "").rpartition("/")[0]
        return f"{folder}/{name}" if folder else name

    def get_beside(self) -> list[Path]:
        """Returns the paths of what describes weights."""
        names = map(self.beside, BESIDE)
        return [self.get(name) for name in names if name in self.names]

    def get(self, name: str) -> Path:
        """Returns the path of a file, fetched if need be, as the Hub promised it.

        Raises:
            DownloadError: it cannot be had, or is something else.
        """
        from huggingface_hub import hf_hub_download

        address = replace(self._address, file=name)
        try:
            with _explained(address), _quiet():
                found = hf_hub_download(
                    self._address.repository,
                    name,
                    revision=self._revision,
                    endpoint=self._endpoint,
                    local_files_only=self._offline,
                    tqdm_class=_bar(self._progress),
                )
        except _UnreachableError as error:
            raise DownloadError(f"{address}: {error}") from error
        path = Path(found)
        if not self._offline:  # so that the rest is of this commit, if the branch moves
            self._revision = path.parents[name.count("/")].name
        _verify(path, address)
        return path

    def lacks(self, what: str) -> DownloadError:
        """Says that the repository has not what is wanted."""
        if self._offline:
            return DownloadError(
                f"{self._address}: has {what} in the cache, and the Hub cannot be "
                "asked. Fetch it once with the network"
            )
        more = f" and {len(self.names) - 5} more" if len(self.names) > 5 else ""
        there = ", ".join(self.names[:5]) or "nothing"
        return DownloadError(
            f"{self._address}: has {what} but {there}{more}. Name another file, as "
            f"{PREFIX}{self._address.repository}/FILE, or another repository"
        )

    def _likely(self) -> Iterator[str]:
        """Yields the names of files that may be in the cache and be of use."""
        if self._address.file:
            yield self._address.file
        yield from map(self.beside, (*WEIGHTS, *BESIDE))

    def _is_cached(self, name: str) -> bool:
        from huggingface_hub import try_to_load_from_cache

        repository, revision = self._address.repository, self._address.revision
        found = try_to_load_from_cache(repository, name, revision=revision)
        return isinstance(found, str)


def _require_library(address: Address) -> None:
    try:
        import huggingface_hub  # noqa: F401  is it there?
    except ModuleNotFoundError as error:
        raise _refused(
            address,
            "lies on the Hub, and huggingface_hub is not installed",
            "Install it with `pip install 'resnet-twins[hub]'`",
        ) from error


def _verify(path: Path, address: Address) -> None:
    """Compares a file with the hash that the Hub gave for it, its name in the cache.

    Raises:
        DownloadError: it is another file. It is removed, so that a new one can come.
    """
    if not path.is_symlink():  # the file system has none: the name is not kept
        return
    blob = path.parent / os.readlink(path)
    promised = blob.name
    with open(path, "rb") as file:
        if len(promised) == 64:  # of large files the Hub names the content's sha256
            found = sha256_of(file)
        elif len(promised) == 40:  # and of others git's own hash
            content = file.read()
            head = b"blob %d\0" % len(content)
            found = hashlib.sha1(head + content, usedforsecurity=False).hexdigest()
        else:
            return
    if found == promised:
        return
    path.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)
    raise DownloadError(
        f"{address}: came with the hash {found[:8]}, the Hub promises {promised[:8]}: "
        "it is damaged, and removed. Fetch it again"
    )


@contextmanager
def _explained(address: Address) -> Iterator[None]:
    """Says in a sentence what the Hub's library found.

    Raises:
        DownloadError: the Hub answered, and it is no.
        _UnreachableError: it did not.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        page = f"https://huggingface.co/{address.repository}"
        raise _refused(
            address, "is gated", f"Ask for access at {page}, then `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise _refused(
            address,
            f"there is no repository {address.repository}, or it is private",
            "Check the name, or log in with `hf auth login`",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise _refused(
            address,
            f"{address.repository} has no revision {address.revision!r}",
            "Check the name of the branch, tag or commit",
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        raise _refused(
            address, "there is no such file", "Check its name and the revision"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise _UnreachableError(
            "is not in the cache, and HF_HUB_OFFLINE is set. Fetch it once without"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        reason = _line(error.__cause__ or error)
        raise _UnreachableError(
            f"is not in the cache, and the Hub cannot be asked ({reason}). Check the "
            "network"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status >= 500 or status in (408, 429):
            raise _UnreachableError(
                f"the Hub answered {status}. Try again later"
            ) from error
        advice = "Check the name"
        if status in (401, 403):
            advice = "Log in with `hf auth login`, with a token that may read it"
        raise _refused(address, f"the Hub answered {status}", advice) from error
    except errors.HFValidationError as error:
        raise _refused(address, "is no name on the Hub", "Check it") from error
    except OSError as error:  # its own, too, about a file that came incomplete
        if error.filename is None and error.errno is None:
            raise _UnreachableError(_cut(error)) from error
        raise _refused(
            address,
            f"cannot be stored ({error.strerror or error})",
            "Check the space and permissions of the cache, or set HF_HOME",
        ) from error
    except Exception as error:
        # Of the library below it, which is one in some versions and another in others.
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests")):
            raise
        raise _UnreachableError(_cut(error)) from error


def _refused(address: Address, problem: str, advice: str) -> DownloadError:
    return DownloadError(f"{address}: {problem}. {advice}")


def _cut(error: Exception) -> str:
    return f"did not come ({_line(error)}). Check the network, and call again"


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the Hub's library from writing to standard error: errors say it all."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _bar(progress: Progress) -> type:
    """Makes what the Hub's library takes for a progress bar, and tells ours instead."""
    from tqdm import tqdm  # the library's own

    class Bar(tqdm):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings | {"disable": True})  # it draws nothing

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            progress(int(self.n), None if self.total is None else int(self.total))

        # What has come from Xet and is in no file yet; else there would be two bars.
        def update_transfer(self, n: float) -> None:
            pass

        def set_transfer_postfix_str(self, *_: Any, **__: Any) -> None:
            pass

    return Bar
