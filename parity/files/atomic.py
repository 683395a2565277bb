"""Files that are complete, or as they were."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from parity.errors import OutputError


@contextmanager
def replacing(path: Path, overwrite: bool) -> Iterator[Path]:
    """Yields a temporary file beside the target that becomes it if all goes well."""
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        if target.is_dir():
            raise OutputError(path, "is a directory", "Name a file in it")
        if not target.parent.is_dir():
            raise OutputError(
                path, f"there is no folder {target.parent}", "Make it first"
            )
        if target.exists() and not overwrite:
            raise OutputError(path, "exists", "Use --force to replace it")
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        os.close(os.open(temporary, flags, 0o666))  # less the umask
        yield temporary
        if overwrite:
            if target.exists():
                temporary.chmod(target.stat().st_mode & 0o7777)
            os.replace(temporary, target)
        else:  # unlike a rename, a link fails where something has appeared meanwhile
            os.link(temporary, target)
            temporary.unlink()
        sync(target.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, FileExistsError):
            raise OutputError(path, "exists", "Use --force to replace it") from error
        if isinstance(error, OSError) and not isinstance(error, OutputError):
            raise OutputError(
                path,
                f"cannot be written ({error.strerror or error})",
                "Check the name, and the folder's space and permissions",
            ) from error
        raise


def sync(path: Path) -> None:
    """Waits until what was written to a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
