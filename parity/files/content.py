"""What is in a file of weights, whatever its container."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

METADATA_KEY = "resnet_twins"
"""Where a file of this project carries its metadata, one JSON object."""


@dataclass
class Content:
    """What a file says.

    Args:
        kind: the format, in words.
        value: whatever is on top: for safetensors a dict of arrays.
        metadata: this project's own, if the file carries it.
        notes: what the user should know.
        size: of the file, in bytes.
        sha256: of the file, if it was asked for.
    """

    kind: str
    value: Any
    metadata: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    size: int = 0
    sha256: str = ""


def own_metadata(text: object) -> dict[str, Any] | None:
    """Returns what this project wrote beside the weights; ``None`` if nothing."""
    if not isinstance(text, str):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
