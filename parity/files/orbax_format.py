"""The folders that Orbax makes: read from memory, where nothing leads out of them.

All files of a folder are read once, and what is hashed is what tensorstore is given. So
no name in them, no link and no later change reaches another file; and each array says
its size, before it is read, to the very reader that will read it.
"""

from __future__ import annotations

import json
import logging
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from parity.errors import CheckpointError, OutputError
from parity.files.atomic import sync
from parity.files.content import MAX_BYTES, MAX_INDEX, Content, Hear, require_room
from parity.files.safetensors_format import no_repeats
from parity.files.trees import nested
from parity.files.values import is_number

_INDEX = "_METADATA"
_DATABASE = "manifest.ocdbt"
_UNFINISHED = ".orbax-checkpoint-tmp"
_MAX_FILES = 2**16
_MAX_DEPTH = 16
_MAX_NAME = 2**14  # letters: the database takes keys of 64 KiB
_INSTALL = "Install it with `pip install 'resnet-twins[flax]'`"


def is_folder(path: Path) -> bool:
    """Whether a path is a folder's, Orbax's or not."""
    return os.path.isdir(path)


def read_orbax(path: Path, hear: Hear) -> Content:
    """Reads the arrays of a folder, or of the one in it that Orbax made.

    Args:
        path: the folder itself, or one with ``default/`` or a step such as
            ``1000/default/`` in it.
        hear: told all files, each after its name and size, in the order of the names.

    Raises:
        CheckpointError: no such folder, several of them, a damaged one, or one with
            links in it.
    """
    folder = _folder_in(path)
    files = dict(_files(folder))
    for name, data in files.items():
        hear(f"{name}\0{len(data)}\0".encode("utf-8", "surrogateescape"))
        hear(data)
    size = sum(map(len, files.values()))
    try:
        index = _index(files)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"its {_INDEX} is malformed ({type(error).__name__}: {error!s:.100})"
        ) from error
    named, left = index
    value = _read(files, named, size)
    content = Content("Orbax", value, size=size)
    if left:
        content.notes.append(f"left out what is no array: {', '.join(left)}")
    return content


def write_orbax(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str] | None
) -> None:
    """Fills an empty folder as ``StandardCheckpointer.save`` does, without metadata."""
    try:
        import orbax.checkpoint as orbax
    except ImportError as error:
        raise CheckpointError(
            "is to be a folder of Orbax's, which is not installed", advice=_INSTALL
        ) from error
    if out := [
        name for name in arrays if ".." in name.split("/") or len(name) > _MAX_NAME
    ]:
        raise CheckpointError(
            {"names that no folder of Orbax's can hold": [*map(repr, out)]},
            advice="Call them otherwise, or write .safetensors",
        )
    tree = nested(arrays)
    places = Counter(name.replace("/", ".") for name in arrays)
    if twice := [name for name in arrays if places[name.replace("/", ".")] > 1]:
        raise CheckpointError(
            f"has {' and '.join(twice[:2])}, which are one name in a folder of Orbax's",
            advice="Call one of them otherwise, or write another format",
        )
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with orbax.StandardCheckpointer() as checkpointer:
            checkpointer.save(path.resolve() / "state", tree)
            checkpointer.wait_until_finished()
    except (OSError, MemoryError):
        raise
    except Exception as error:  # tensorstore's tell a full disk, among others
        raise OSError(" ".join(f"{error!s:.300}".split())) from error
    finally:
        logger.setLevel(before)
    for found in (path / "state").iterdir():
        found.rename(path / found.name)
    (path / "state").rmdir()
    for folder, _, names in os.walk(path):
        for name in ("", *names):
            sync(Path(folder, name))


def require_orbax(path: Path) -> None:
    """Checks that a folder that is to be replaced is one of Orbax's.

    Raises:
        OutputError: it is another one.
    """
    if not (path / _INDEX).is_file():
        raise OutputError(
            path, "is a directory that Orbax did not make", "Name another one"
        )


def _folder_in(path: Path) -> Path:
    """Returns the one folder of Orbax's that a path leads to."""
    level = [path]
    for _ in range(3):
        found = [folder for folder in level if (folder / _INDEX).is_file()]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(str(folder.relative_to(path)) for folder in found[-5:])
            raise CheckpointError(
                f"has {len(found)} steps or items of Orbax's, as {names}",
                advice="Name one of these folders",
            )
        inner = [child for folder in level for child in sorted(folder.iterdir())]
        made = [c.parent for c in inner if c.name == _DATABASE or _is_array(c)]
        if made:
            raise CheckpointError(
                "is a folder of Orbax's without "
                f"{made[0].relative_to(path) / _INDEX}: it is not complete",
                advice="Copy all of it, or use another step",
            )
        level = [child for child in inner if child.is_dir()]
        if any(_UNFINISHED in child.name for child in level):
            raise CheckpointError(
                "was not completed by Orbax",
                advice="Use another step, or save it again",
            )
    raise CheckpointError(
        "is a directory", advice="Name a file in it, or a folder of Orbax's"
    )


def _is_array(path: Path) -> bool:
    return (path / ".zarray").is_file()


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yields all files of a folder, by their names within it."""
    found: list[str] = []
    size, folders = 0, [""]
    while folders:
        inside = folders.pop()
        with os.scandir(folder / inside) as entries:
            for entry in entries:
                name = f"{inside}/{entry.name}".removeprefix("/")
                if entry.is_dir(follow_symlinks=False):
                    folders.append(name)
                elif entry.is_file(follow_symlinks=False):
                    found.append(name)
                    size += entry.stat(follow_symlinks=False).st_size
                else:
                    raise CheckpointError(
                        f"{name} in it is a link or no regular file",
                        advice="Copy the folder with what it points to (cp -rL)",
                    )
                if len(found) + len(folders) > _MAX_FILES or size > MAX_BYTES:
                    raise CheckpointError(
                        f"has more than {_MAX_FILES} files or {MAX_BYTES} bytes"
                    )
                if name.count("/") > _MAX_DEPTH:
                    raise CheckpointError("has more folders in folders than any")
    for name in sorted(found):
        yield name, _bytes(folder / name)


def _bytes(path: Path) -> bytes:
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with open(os.open(path, flags | getattr(os, "O_BINARY", 0)), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise CheckpointError(f"{path.name} in it is no regular file")
        if path.name == _INDEX and found.st_size > MAX_INDEX:
            raise CheckpointError(
                f"its {_INDEX} has {found.st_size} bytes, more than any network's"
            )
        return file.read(found.st_size)


def _index(
    files: Mapping[str, bytes],
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Returns where each array stands, by flat name, and which entries are none."""
    index = json.loads(files[_INDEX], object_pairs_hook=no_repeats)
    named: dict[tuple[str, ...], list[int] | None] = {}
    left = []
    for entry in index["tree_metadata"].values():
        parts = tuple(str(part["key"]) for part in entry["key_metadata"])
        about = entry["value_metadata"]
        if about.get("value_type") == "string":
            left.append("/".join(parts))
        elif not about.get("skip_deserialize"):
            if parts in named:
                raise ValueError(f"it has {'/'.join(parts)!r} twice")
            named[parts] = about.get("write_shape")
    for parts in named:
        steps = "/".join(parts).split("/")
        if not all(parts) or ".." in steps or not all(steps):
            raise ValueError(f"it has the name {'/'.join(parts)!r}, of another folder")
    # What nnx.state has as variables stands one level below their names.
    inner = all(len(parts) > 1 and parts[-1] == "value" for parts in named)
    ocdbt = index.get("use_ocdbt", _DATABASE in files)
    driver = "zarr3" if index.get("use_zarr3") else "zarr"
    found: dict[str, dict[str, Any]] = {}
    for parts, shape in named.items():
        memory: dict[str, Any] = {"driver": "memory"}
        store = {"driver": "ocdbt", "base": memory} if ocdbt else memory
        name = "/".join(parts[:-1] if inner else parts)
        if name in found:
            raise ValueError(f"it has {name!r} twice")
        found[name] = {
            "driver": driver,
            "kvstore": {**store, "path": ".".join(parts) + "/"},
            "written": shape,
        }
    return found, left


def _read(
    files: dict[str, bytes], named: Mapping[str, dict[str, Any]], size: int
) -> dict[str, np.ndarray]:
    try:
        import tensorstore
    except ImportError as error:
        raise CheckpointError(
            "is a folder of Orbax's, and reading one needs tensorstore", advice=_INSTALL
        ) from error
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}})
    memory = tensorstore.KvStore.open({"driver": "memory"}, context=context).result()
    for name in [*files]:  # nothing stays here twice
        stored = name.encode("utf-8", "surrogateescape")
        memory.write(stored, files.pop(name)).result()
    stores: dict[str, Any] = {}
    claimed: dict[str, int] = {}
    for name, place in named.items():
        spec = {key: place[key] for key in ("driver", "kvstore")}
        spec["fill_missing_data_reads"] = False  # or what is missing would be zeros
        try:
            store = tensorstore.open(spec, context=context, open=True).result()
            shape, dtype = store.shape, store.dtype.numpy_dtype
            packed = str(store.codec and store.codec.to_json())
            part = [n or 1 for n in store.chunk_layout.read_chunk.shape or ()]
        except Exception as error:
            raise _unreadable(name, error) from error
        if not is_number(dtype):
            raise CheckpointError(f"{name} holds {dtype}, not numbers")
        if "blosc" in packed:  # unpacks as much as its parts claim
            raise CheckpointError(
                f"{name} is packed by blosc, which Orbax does not use"
            )
        written = place["written"]
        if written is not None and (
            not isinstance(written, list)
            or len(written) != len(shape)
            or any(
                type(a) is not int or not 0 <= a <= b
                for a, b in zip(written, shape, strict=True)
            )
        ):
            raise CheckpointError(
                f"{name} has shape {shape}, and {written!s:.100} in {_INDEX}"
            )
        claimed[name] = max(prod(shape), prod(part)) * dtype.itemsize
        require_room(claimed, size)
        stores[name] = store
    value = {}
    for name, store in stores.items():
        try:
            array = np.asarray(store.read().result())
        except Exception as error:
            raise _unreadable(name, error) from error
        value[name] = array.astype(array.dtype.newbyteorder("="), copy=False)
    return value


def _unreadable(name: str, error: Exception) -> CheckpointError:
    what = " ".join(str(error).partition(" [tensorstore_spec")[0].split())
    return CheckpointError(f"{name} is missing in it, or damaged ({what:.200})")
