"""torch's files, zip and legacy, read without running what is in them."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from parity.errors import CheckpointError
from parity.files.archive import END, Member, members, require_end
from parity.files.content import MAX_INDEX, Content, Hear, own_metadata, whole
from parity.files.stages import stage

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

_MAX_READS = 2**23  # of a legacy pickle: about a hundred for a tensor


def read_zip(file: BinaryIO, size: int, hear: Hear) -> Content:
    """Reads what torch has written since 1.6, from the very bytes that are checked."""
    file.seek(-min(size, END.size), io.SEEK_END)
    require_end(file.read(), size)
    data = whole(file, size, hear)
    with stage("validation"):
        checked = _check(members(data))
    content = _unpickle(io.BytesIO(data), ".pth")
    content.checked = checked
    return content


def _check(found: list[Member]) -> bool:
    """Checks sizes and checksums; says whether there are any of these."""
    checked = any(member.crc for member in found)
    for member in found:
        if checked and zlib.crc32(member.data) != member.crc:
            raise CheckpointError(
                f"the archive is damaged (bad CRC-32 of {member.name!r})"
            )
        if member.name.endswith("/data.pkl") and len(member.data) > MAX_INDEX:
            raise CheckpointError(
                f"its pickle has {len(member.data)} bytes, more than any network's"
            )
    return checked


def read_legacy(file: BinaryIO, size: int, hear: Hear) -> Content:
    """Reads what torch wrote before 1.6."""
    data = _Bounded(whole(file, size, hear))
    content = _unpickle(data, "legacy .pth")
    if data.tell() != size:
        raise CheckpointError(
            f"{size - data.tell()} bytes follow the end of the data at {data.tell()}"
        )
    return content


class _Bounded(io.BytesIO):
    """A pickle whose length nothing tells is given up at some point."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > _MAX_READS:
            raise CheckpointError("its pickle is longer than any network's")
        return super().read(size)


def _unpickle(file: BinaryIO, kind: str) -> Content:
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(
            "is a .pth, and reading one needs torch",
            advice="Install it with `pip install 'resnet-twins[torch]'`, or convert "
            "the file to .safetensors",
        ) from error
    try:
        with torch.serialization.safe_globals(_inert()):
            value = torch.load(file, map_location="cpu", weights_only=True)
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:
        # torch's own message tells people to load unsafely: it must not be passed on.
        raise _what_pickle_said(error) from None
    return Content(kind, value, own_metadata(getattr(value, "_metadata", None)))


class _Skipped:
    """Stands for what people save beside weights; whatever it is given is dropped."""

    def __new__(cls, *_: object) -> _Skipped:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


_BESIDE = (
    "argparse.Namespace",
    *(f"builtins.{name}" for name in ("bool", "dict", "float", "int")),
    *(f"builtins.{name}" for name in ("list", "str", "tuple")),
    *(
        f"datetime.{name}"
        for name in ("date", "datetime", "time", "timedelta", "timezone")
    ),
    *(
        f"{module}.{name}"
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath")
    ),
    "numpy.dtype",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray.scalar",
    *(f"numpy.dtypes.{name}" for name in np.dtypes.__all__),
)
"""What is skipped: none of these is itself made, called or filled."""


def _inert() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Returns what torch may make in place of what people save beside weights.

    It is never looked at: the state is chosen, the rest goes.
    """
    stand_ins = [
        (type(name.rpartition(".")[2], (_Skipped,), {}), name) for name in _BESIDE
    ]
    return [
        *stand_ins,
        (_plain_dict, "collections.defaultdict"),
        (_plain_list, "collections.deque"),
    ]


def _plain_dict(*_: object) -> dict[Any, Any]:
    return {}  # torch fills no other kind


def _plain_list(*_: object) -> list[Any]:
    return []


def _what_pickle_said(error: Exception) -> CheckpointError:
    found = re.search(r"GLOBAL (\S+)|(?:class|global) `?(\w+(?:\.\w+)+)", str(error))
    name = next((group for group in found.groups() if group), "") if found else ""
    if name and not name.startswith("torch.load"):
        return CheckpointError(
            f"holds more than tensors: it would run or build {name}, and was not "
            "loaded",
            advice="Ask its author for torch.save(model.state_dict(), path)",
        )
    return CheckpointError(
        f"the pickle in it is damaged or holds more than tensors "
        f"({type(error).__name__}), and was not loaded",
        advice="Get the file again, or ask its author for "
        "torch.save(model.state_dict(), path)",
    )
