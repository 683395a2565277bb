"""Weights from the Hugging Face Hub: fetched by its library, verified at every use.

``huggingface_hub`` has the cache, the tokens, proxies, mirrors and the offline mode;
what it leaves out is done here: which files of a repository are wanted at all, that
their hashes are those that the Hub promised, and one sentence about what went wrong.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from parity.errors import DownloadError
from parity.files.content import MAX_BYTES
from parity.files.download import Progress
from parity.files.hub_address import PREFIX, Address, is_remote, parse
from parity.files.hub_bounds import BUSY, bar, patiently, quiet
from parity.files.hub_config import BESIDE, MOST_BYTES, WEIGHTS, is_index
from parity.files.hub_errors import UnreachableError, explained, refused
from parity.files.shards import parts_of
from parity.weights.digest import sha256_of

_TIMEOUT = 30.0  # seconds that the Hub may be silent
_ANSWER, _FILE = 120.0, 3600.0  # seconds for all of what describes a repository; a file


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
        self._left = MAX_BYTES  # of all its files
        try:
            with explained(address):
                hub = HfApi(endpoint=self._endpoint)
                found = patiently(
                    lambda: hub.model_info(
                        address.repository, revision=address.revision, timeout=_TIMEOUT
                    ),
                    seconds=_ANSWER,
                )
            self.names = [sibling.rfilename for sibling in found.siblings or []]
        except UnreachableError as error:
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

        address, ended = replace(self._address, file=name), threading.Event()
        small = name.endswith(".json") and not is_index(name)
        most = min(MOST_BYTES if small else MAX_BYTES, self._left)
        shown = bar(self._progress, most=most, name=address, ended=ended)
        try:
            with explained(address), quiet():
                found = patiently(
                    lambda: hf_hub_download(
                        self._address.repository,
                        name,
                        revision=self._revision,
                        endpoint=self._endpoint,
                        local_files_only=self._offline,
                        tqdm_class=shown,
                    ),
                    seconds=_FILE,
                    busy=BUSY[1:],  # it has had all its patience with a 429
                    ended=ended,
                )
        except UnreachableError as error:
            raise DownloadError(f"{address}: {error}") from error
        path = Path(found)
        self._left -= path.stat().st_size
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
        raise refused(
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
