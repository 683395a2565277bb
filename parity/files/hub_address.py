"""How weights on the Hub are named."""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import unquote

from resnet_spec import get_timm_weights, is_timm

PREFIX = "hf://"

_EXAMPLE = "hf://owner/name, hf://owner/name@revision or hf://owner/name/file"


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
