"""What is in a file of weights, whatever its container, and what we say beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from parity.errors import CheckpointError

METADATA_KEY = "resnet_twins"
"""Where a file of this project carries its metadata, one JSON object."""

FORMAT_VERSION = 2
"""1 had no digest of the metadata themselves."""

MAX_INDEX = 2**24
"""Bytes that a directory, a pickle or a header may have: many times what any has."""

MAX_BYTES = 16 * 2**30
"""More than any network here has."""

Hear = Callable[[Any], object]
"""Told the bytes of a file as they are read, each once and in order."""

TOOL = "resnet-twins"
LAYOUT = "OIHW"

_KNOWN: dict[str, type | tuple[type, ...]] = {
    "format_version": int,
    "tool": str,
    "layout": str,
    "dtype": str,
    "sha256": str,
    "config": (str, type(None)),
    "guessed": list,
    "source": dict,
    "digest": str,
    "dialect": str,
    "training": dict,
}


@dataclass
class Content:
    """What a file says.

    Args:
        kind: the format, in words.
        value: whatever is on top: for safetensors a dict of arrays.
        metadata: this project's own, if the file carries it.
        checked: whether the container has checksums of its own, and they fit.
        notes: what the user should know.
        told: what a config.json beside it says.
        size: of the file, in bytes.
        sha256: of the file, if it was asked for.
    """

    kind: str
    value: Any
    metadata: dict[str, Any] | None = None
    checked: bool = False
    notes: list[str] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)
    size: int = 0
    sha256: str = ""


def whole(file: BinaryIO, size: int, hear: Hear) -> bytes:
    """Returns a file's bytes: what is checked in them is what is read."""
    file.seek(0)
    data = file.read(size)
    if len(data) != size or file.read(1):
        raise CheckpointError(
            "changed while it was read", advice="Wait until it is complete"
        )
    hear(data)
    return data


def require_room(sizes: Mapping[str, int], size: int) -> None:
    """Checks what arrays claim before room is made for them; zeros compress well.

    Args:
        sizes: bytes of each, by name.
        size: bytes of the file.

    Raises:
        CheckpointError: no such file holds weights of such a size.
    """
    claimed = sum(sizes.values())
    if claimed > min(2 * size + 2**28, MAX_BYTES):
        most = max(sizes, key=sizes.__getitem__)
        raise CheckpointError(
            f"its arrays claim {claimed} bytes, which the file cannot hold ({most} "
            f"alone {sizes[most]})"
        )


def written_metadata(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Returns what goes into a file: one key, so that its order is always the same."""
    own = {"format_version": FORMAT_VERSION, **metadata}
    return {METADATA_KEY: json.dumps(own | {"digest": _digest(own)}, sort_keys=True)}


def own_metadata(beside: object) -> dict[str, Any] | None:
    """Returns what this project wrote beside the weights; ``None`` if nothing.

    Args:
        beside: all that the container has there, by key.

    Raises:
        CheckpointError: they are not as they were written, or a later version's.
    """
    if not isinstance(beside, Mapping):
        return None
    texts = {key: text for key, text in beside.items() if isinstance(text, str)}
    text = texts.pop(METADATA_KEY, None)
    for key, other in texts.items():  # one letter off, and v1 would be read as v1.5
        if f'"{TOOL} ' in other:
            raise _damaged(f"stand under {key!r}")
    if text is None:
        if METADATA_KEY in beside:
            raise _damaged("are no text")
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged("are no JSON") from error
    if not isinstance(found, dict):
        raise _damaged("are no object")
    version = found.get("format_version", 1)
    if type(version) is int and version > FORMAT_VERSION:
        raise CheckpointError(
            f"its metadata are of version {version}, known here is {FORMAT_VERSION}",
            advice=f"Use the version that wrote it: {found.get('tool')!s:.80}",
        )
    for key, value in found.items():
        if key not in _KNOWN or not isinstance(value, _KNOWN[key]):
            raise _damaged(f"have {key!r}, unknown or of another type")
    for key in ("guessed", "classes"):
        texts = {**found.get("training", {}), **found}.get(key, [])
        if not (isinstance(texts, list) and all(isinstance(t, str) for t in texts)):
            raise _damaged(f"have {key!r}, which are no texts")
    if found.get("layout", LAYOUT) != LAYOUT and "dialect" not in found:
        raise CheckpointError(
            f"its kernels are laid out as {found['layout']!r}, read here is {LAYOUT}",
            advice="Transpose them, and write the file again",
        )
    promised = found.get("digest")
    if (version != 1 or promised is not None) and promised != _digest(found):
        raise _damaged("are not those that were written")
    return found


def _digest(metadata: Mapping[str, Any]) -> str:
    others = {key: value for key, value in metadata.items() if key != "digest"}
    text = json.dumps(others, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _damaged(what: str) -> CheckpointError:
    return CheckpointError(f"its metadata {what}: they are damaged")
