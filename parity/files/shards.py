"""Weights in several files, as the Hub has large ones: an index says where all lie."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from parity.errors import CheckpointError
from parity.files.content import MAX_BYTES, MAX_INDEX, Content, Hear
from parity.files.safetensors_format import no_repeats
from parity.inputs import open_regular
from resnet_spec.printable import plain

_MOST_PARTS = 1000

Reader = Callable[[BinaryIO, int], Callable[[BinaryIO, int, Hear], Content]]
"""Recognises a file by its beginning."""


def parts_of(index: Path) -> list[str]:
    """Returns the names of the files that an index names, in its order.

    Raises:
        CheckpointError: it is no index, or names files elsewhere.
    """
    return [*dict.fromkeys(_places(index).values())]


def read_shards(index: Path, recognise: Reader, hear: Hear) -> Content:
    """Reads all the files that an index names.

    Args:
        index: its path.
        recognise: says how a file is to be read.
        hear: told the bytes of all of them, one after the other.

    Raises:
        CheckpointError: a file is missing or damaged, or index and files disagree.
    """
    places = _places(index)
    content = Content("safetensors", {}, checked=True)
    for part in dict.fromkeys(places.values()):
        path = index.parent / part
        if not path.exists():
            raise CheckpointError(
                f"names {part}, which is not beside it", advice="Get that file, too"
            )
        found = _read(path, recognise, hear, content)
        promised = {name for name, where in places.items() if where == part}
        for problem, names in {
            f"{part} lacks": promised - found.keys(),
            f"{part} has, and the index puts elsewhere": found.keys()
            & (places.keys() - promised),
            f"{part} has, and the index has not": found.keys() - places.keys(),
        }.items():
            if names:
                raise CheckpointError(
                    {problem: sorted(map(str, names))},
                    advice="Get the index and all of its files again",
                )
        content.value.update(found)
    return content


def _read(
    path: Path, recognise: Reader, hear: Hear, content: Content
) -> Mapping[str, Any]:
    """Returns the entries of one file, and adds up what is said of all of them."""
    with open_regular(path, MAX_BYTES, CheckpointError) as file:
        size = os.fstat(file.fileno()).st_size
        content.size += size
        if content.size > MAX_BYTES:
            raise CheckpointError(
                f"its files are larger than {MAX_BYTES} bytes",
                advice="Check that it is the right one",
            )
        found = recognise(file, size)(file, size, hear)
    if not isinstance(found.value, Mapping):
        raise CheckpointError(f"{path.name} holds a {type(found.value).__name__}")
    content.kind, content.checked = found.kind, content.checked and found.checked
    return found.value


def _places(index: Path) -> dict[str, str]:
    """Returns in which file each entry lies."""
    try:
        with open_regular(index, MAX_INDEX, CheckpointError) as file:
            told = json.loads(file.read(), object_pairs_hook=no_repeats)
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"is no index: no JSON ({error})") from error
    found = told.get("weight_map") if isinstance(told, dict) else None
    if not isinstance(found, dict) or not found:
        raise CheckpointError("is no index: it has no weight_map")
    for part in found.values():
        if not isinstance(part, str) or not _is_plain(part):
            raise CheckpointError(
                f"names {plain(repr(part), most=80)}, which is no file beside it",
                advice="Do not use it: no library writes that",
            )
    if len(set(found.values())) > _MOST_PARTS:
        raise CheckpointError(f"names more than {_MOST_PARTS} files")
    return found


def _is_plain(name: str) -> bool:
    """Whether this is the name of a file of weights in the same folder."""
    beside = Path(name).name == name and not {*name} & {"/", "\\", ":", "\0"}
    return beside and name.endswith((".safetensors", ".bin")) and name.isprintable()
