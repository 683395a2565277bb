"""The zip archive that a .pth, an .npz or a .keras is, held to what their makers write.

torch reads archives with a library of its own, and not as others do: it hands out
uninitialised memory for what is marked as a directory, knows no archive but the one at
the file's start, and does not tell small letters from capitals. So nothing is left for
two readers to differ in: every byte of the file belongs to one member, to the one
directory or to its end.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from parity.errors import CheckpointError
from parity.files.content import MAX_INDEX

_MAX_MEMBERS = 2**16

END = struct.Struct("<4s4H2LH")
"""What an archive ends with."""

_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_FULL = 2**32 - 1  # "see the zip64 field"

_ENCRYPTED, _DESCRIBED, _UTF8 = 0x1, 0x8, 0x800
_ARCHIVED, _REGULAR = 0x20, 0o100000
_DEFLATED = 8
_RECORD = re.compile(r"data\.pkl|byteorder|version|data/\d+|\.[a-z_]+(/[a-z_]+)?")


@dataclass(frozen=True)
class Member:
    """One member: its name, its bytes, and what the directory says of them.

    Args:
        name: as the directory has it.
        crc: checksum of the content.
        data: the bytes in the file.
        size: of the content, which is the data unless that is deflated.
    """

    name: str
    crc: int
    data: memoryview
    size: int
    deflated: bool = False

    def content(self) -> bytes | memoryview:
        """Returns the content, inflated no further than to the size that it has.

        Raises:
            CheckpointError: it has another size or another checksum.
        """
        found: bytes | memoryview = self.data
        if self.deflated:
            inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            try:
                found = inflater.decompress(self.data, self.size + 1)
            except zlib.error as error:
                raise _damaged(f"{self.name!r} does not inflate: {error}") from error
            if len(found) != self.size or not inflater.eof or inflater.unused_data:
                raise _damaged(f"{self.name!r} inflates to another size than it says")
        if zlib.crc32(found) != self.crc:
            raise _damaged(f"bad CRC-32 of {self.name!r}")
        return found


def members(
    data: bytes, check: Callable[[list[str]], None] | None = None
) -> list[Member]:
    """Returns the members of an archive, in the directory's order.

    Args:
        data: the whole file.
        check: refuses names that do not belong; by default the archive must be one of
            torch.save, which deflates nothing.

    Raises:
        CheckpointError: it is no such archive, or a damaged one.
    """
    try:
        entries, directory = _directory(data)
        _check_inside(list(entries))
        (check or _check_names)(list(entries))
        found = [
            _member(data, name, entry, methods=(0, _DEFLATED) if check else (0,))
            for name, entry in entries.items()
        ]
    except (struct.error, OverflowError) as error:  # a place beyond any file
        raise _damaged("a header is cut short") from error
    position = 0
    for member, begin, end in sorted(found, key=lambda f: f[1]):
        if begin != position:
            raise _damaged(f"{member.name!r} begins at {begin}, and {position} is free")
        position = end
    if position != directory:
        raise _damaged(f"its directory begins at {directory}, and {position} is free")
    return [member for member, _, _ in found]


def require_members(names: Sequence[str]) -> None:
    """Checks, before anything is written, that these can be an archive's members.

    Raises:
        CheckpointError: one of them leads out, is too long or is there twice.
    """
    twice = Counter(name.lower() for name in names)
    bad = [
        name
        for name in names
        if _leads_out(name)
        or "\0" in name
        or len(name.encode()) >= 2**16
        or twice[name.lower()] > 1
    ]
    if bad:
        raise CheckpointError(
            {
                "names that an archive cannot hold, or not beside one another": [
                    *map(repr, bad)
                ]
            },
            advice="Call them otherwise, or write .safetensors",
        )


def require_end(last: bytes, size: int) -> None:
    """Checks the last bytes of a file, before all of it is read.

    Raises:
        CheckpointError: no archive ends there.
    """
    if not (last.startswith(b"PK\5\6") and last.endswith(b"\0\0")):
        raise CheckpointError(
            f"the archive does not end at the file's end ({size} bytes): it was cut "
            "short, or something was appended"
        )


_Entry = tuple[int, int, int, int, int, int, int, bytes]
"""Method, flags, attributes, checksum, both sizes, local header's place, raw name."""


def _directory(data: bytes) -> tuple[dict[str, _Entry], int]:
    """Returns the directory's entries by name, and where it begins."""
    end = len(data) - END.size
    require_end(data[-END.size :], len(data))
    _, *disks, here, count, size, start, _ = END.unpack_from(data, end)
    locator = end - _LOCATOR.size
    if locator >= 0 and data.startswith(b"PK\6\7", locator):
        _, disk, end, total = _LOCATOR.unpack_from(data, locator)
        whole = _END_64.unpack_from(data, end)
        if whole[:2] != (b"PK\6\6", 44) or (disk, total) != (0, 1):
            raise _damaged("its end is none")
        if end + _END_64.size != locator:
            raise _damaged("something stands before its end")
        disks += whole[4:6]
        for short, long, full in zip(
            (here, count, size, start),
            whole[6:],
            (2**16 - 1,) * 2 + (_FULL,) * 2,
            strict=True,
        ):
            if short not in (long, full):
                raise _damaged("it has two ends that differ")
        here, count, size, start = whole[6:]
    if any(disks) or here != count or start + size != end:
        raise _damaged("its end does not fit its directory")
    if count > _MAX_MEMBERS or size > MAX_INDEX:
        raise CheckpointError(f"the archive has {count} members, more than any network")
    entries: dict[str, _Entry] = {}
    at, folded = start, set()
    for _ in range(count):
        name, entry, at = _entry(data, at)
        if name.lower() in folded:
            raise CheckpointError(f"the archive has {name!r} twice")
        folded.add(name.lower())
        entries[name] = entry
    if at != end:
        raise _damaged("its directory has another length than it says")
    return entries, start


def _entry(data: bytes, at: int) -> tuple[str, _Entry, int]:
    signature, _, _, flags, method, _, _, *numbers = _ENTRY.unpack_from(data, at)
    crc, packed, size, name_length, extra_length, *numbers = numbers
    comment, disk, _, attributes, place = numbers
    at += _ENTRY.size
    raw = data[at : at + name_length]
    name = raw.decode("utf-8", "backslashreplace")
    extra = data[at + name_length : at + name_length + extra_length]
    if signature != b"PK\1\2" or comment or disk:
        raise _damaged("its directory is none")
    size, packed, place = _long(extra, size, packed, place)
    if size != packed and method == 0:
        raise _damaged(f"{name!r} is stored, and has two sizes")
    entry = (method, flags, attributes, crc, size, packed, place, raw)
    return name, entry, at + name_length + extra_length


def _long(extra: bytes, *numbers: int) -> list[int]:
    """Returns sizes and place, those that need 64 bits from the field that has them."""
    fields, at = b"", 0
    while at < len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            fields += extra[at + 4 : at + 4 + length]
        at += 4 + length
    wanted = sum(number == _FULL for number in numbers)
    if at != len(extra) or len(fields) != 8 * wanted:
        raise _damaged("a field of its directory is none")
    longs = iter(struct.unpack(f"<{wanted}Q", fields))
    return [next(longs) if number == _FULL else number for number in numbers]


def _leads_out(name: str) -> bool:
    return name.startswith("/") or ".." in name.split("/") or "\\" in name


def _check_inside(names: list[str]) -> None:
    for name in names:
        if _leads_out(name):
            raise CheckpointError(f"the archive has a member outside of it, {name!r}")


def _check_names(names: list[str]) -> None:
    prefixes = {name.partition("/")[0] for name in names}
    if len(prefixes) != 1 or "\0" in (prefix := prefixes.pop()):
        raise CheckpointError("is a zip archive, but not one of torch.save")
    records = [name.removeprefix(prefix)[1:] for name in names]
    if any(name == "constants.pkl" or name.startswith("code/") for name in records):
        raise CheckpointError(
            "is a TorchScript program, not weights",
            advice="Save module.state_dict() with torch.save",
        )
    if "data.pkl" not in records:
        raise CheckpointError(
            "is a zip archive, but not one of torch.save: no data.pkl"
        )
    for name in records:
        if not _RECORD.fullmatch(name):
            raise CheckpointError(
                f"the archive has a member that torch.save does not write, {name!r}"
            )


def _member(
    data: bytes, name: str, entry: _Entry, methods: tuple[int, ...]
) -> tuple[Member, int, int]:
    """Returns a member, where its local header begins, and where all of it ends."""
    method, flags, attributes, crc, size, packed, place, raw = entry
    if flags & _ENCRYPTED:
        raise CheckpointError(f"the archive's member {name!r} is encrypted")
    if method not in methods:
        raise CheckpointError(
            f"the archive's member {name!r} is compressed, in a way that no library "
            "writes weights",
            advice="Unpack the archive and pack it again without compressing",
        )
    kinds = attributes & 0xFF, attributes >> 16 & 0o170000
    if kinds[0] not in (0, _ARCHIVED) or kinds[1] not in (0, _REGULAR):
        raise CheckpointError(f"the archive's member {name!r} is no plain file")
    if flags & ~(_DESCRIBED | _UTF8):
        raise _damaged(f"{name!r} has flags that torch.save does not set")
    signature, _, flags_here, method_here, _, _, *numbers = _LOCAL.unpack_from(
        data, place
    )
    crc_here, packed_here, size_here, name_length, extra_length = numbers
    begin = place + _LOCAL.size + name_length + extra_length
    end = begin + packed
    if end > len(data):
        raise CheckpointError(f"the archive's member {name!r} is cut short")
    name_here = data[begin - extra_length - name_length : begin - extra_length]
    here = (signature, flags_here, method_here, name_here)
    if here != (b"PK\3\4", flags, method, raw):
        raise _damaged(f"{name!r} has another header than its directory's")
    later = bool(flags & _DESCRIBED)
    for number, there, full in (
        (crc_here, crc, crc),
        (packed_here, packed, _FULL),
        (size_here, size, _FULL),
    ):
        if number not in ((there, full, 0) if later else (there, full)):
            raise _damaged(f"{name!r} has another header than its directory's")
    stop = end
    if later:
        forms = ("<4sL2Q",) if size > _FULL else ("<4s3L", "<4sL2Q")
        footers = [struct.pack(form, b"PK\7\x08", crc, packed, size) for form in forms]
        fits = [footer for footer in footers if data.startswith(footer, end)]
        if not fits:
            raise _damaged(f"{name!r} has another end than its directory's")
        stop += len(fits[0])
    found = memoryview(data)[begin:end]
    return Member(name, crc, found, size, method == _DEFLATED), place, stop


def _damaged(what: str) -> CheckpointError:
    return CheckpointError(f"the archive is damaged ({what})")
