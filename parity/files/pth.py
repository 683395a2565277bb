"""torch's files, zip and legacy, read without running what is in them."""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections import Counter
from typing import BinaryIO

from parity.errors import CheckpointError
from parity.files.content import METADATA_KEY, Content, own_metadata

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def read_zip(file: BinaryIO, size: int) -> Content:
    """Reads what torch has written since 1.6."""
    notes = _check_zip(file, size)
    return _unpickle(file, ".pth", notes)


def _check_zip(file: BinaryIO, size: int) -> list[str]:
    damaged = "Get the file again"
    file.seek(-min(size, 22), os.SEEK_END)
    end = file.read(22)
    if not (end.startswith(b"PK\x05\x06") and end.endswith(b"\0\0")):
        raise CheckpointError(
            f"the archive does not end at the file's end ({size} bytes): it was cut "
            "short, or something was appended",
            advice=damaged,
        )
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            _check_members(members, size)
            unchecked = bool(members) and all(member.CRC == 0 for member in members)
            for member in members if not unchecked else ():
                with archive.open(member) as data:
                    while data.read(2**20):  # the last read compares the CRC
                        pass
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(
            f"the archive is damaged ({error})", advice=damaged
        ) from error
    return (
        ["the archive has no checksums; its values are unverified"] if unchecked else []
    )


def _check_members(members: list[zipfile.ZipInfo], size: int) -> None:
    names = [member.filename for member in members]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise CheckpointError(f"the archive has {repeated[0]!r} twice")
    for name in names:
        if name.startswith("/") or ".." in name.split("/") or "\\" in name:
            raise CheckpointError(f"the archive has a member outside of it, {name!r}")
    prefixes = {name.partition("/")[0] for name in names}
    if len(prefixes) != 1:
        raise CheckpointError("is a zip archive, but not one of torch.save")
    prefix = prefixes.pop()
    if f"{prefix}/constants.pkl" in names or f"{prefix}/code/" in names:
        raise CheckpointError(
            "is a TorchScript program, not weights. "
            "Save module.state_dict() with torch.save"
        )
    if f"{prefix}/data.pkl" not in names:
        raise CheckpointError(
            "is a zip archive, but not one of torch.save: no data.pkl"
        )
    for member in members:
        name = member.filename
        if member.flag_bits & 0x1:
            raise CheckpointError(f"the archive's member {name!r} is encrypted")
        if member.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"the archive's member {name!r} is compressed")
        if member.header_offset + member.file_size > size:
            raise CheckpointError(f"the archive's member {name!r} is cut short")


def read_legacy(file: BinaryIO, size: int) -> Content:
    """Reads what torch wrote before 1.6."""
    data = io.BytesIO(file.read())
    content = _unpickle(data, "legacy .pth", [])
    if data.tell() != size:
        raise CheckpointError(
            f"{size - data.tell()} bytes follow the end of the data at {data.tell()}",
            advice="Get the file again",
        )
    content.notes.append("this old format has no checksums; its values are unverified")
    return content


def _unpickle(file: BinaryIO, kind: str, notes: list[str]) -> Content:
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(
            "is a .pth, and reading one needs torch. Install it with "
            "`pip install resnet-twins[torch]`, or convert the file to .safetensors"
        ) from error
    file.seek(0)
    try:
        value = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's own message tells people to load unsafely: it must not be passed on.
        raise CheckpointError(_what_pickle_said(error)) from None
    metadata = getattr(value, "_metadata", None)
    own = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    return Content(kind, value, own_metadata(own), notes)


def _what_pickle_said(error: Exception) -> str:
    found = re.search(r"GLOBAL (\S+)|(?:class|global) `?(\w+(?:\.\w+)+)", str(error))
    name = next((group for group in found.groups() if group), "") if found else ""
    if name and not name.startswith("torch.load"):
        return (
            f"holds more than tensors: it would run or build {name}, and was not loaded"
            ". Ask its author for torch.save(model.state_dict(), path)"
        )
    return (
        f"the pickle in it is damaged or holds more than tensors "
        f"({type(error).__name__}), and was not loaded. Get the file again, or ask its "
        "author for torch.save(model.state_dict(), path)"
    )
