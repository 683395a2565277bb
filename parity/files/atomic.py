"""Files that are complete, or as they were."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from parity.errors import OutputError
from parity.files.stages import stage

_PREFIX, _SUFFIX = ".resnet-twins-", ".tmp"
_OLD, _DIGITS = ".old-", 8  # behind a folder's name, while it is replaced


@contextmanager
def replacing(path: Path, overwrite: bool) -> Iterator[Path]:
    """Yields a temporary file beside the target that becomes it if all goes well.

    Only a regular file is ever replaced; links are followed to what they lead to. A
    temporary file that a killed process has left in the folder is removed.

    Raises:
        OutputError: the target cannot be written; what stood there stands there still.
    """
    target = _target(path)
    temporary = _temporary(target)
    file, claimed = None, False
    try:
        _require_free(target, path, overwrite)
        _sweep(target.parent)
        file = _locked(temporary)
        yield temporary
        mode = _require_free(target, path, overwrite)
        if mode is not None:
            temporary.chmod(mode)
        if not overwrite:  # unlike a rename, both of these fail if something is there
            try:
                os.link(temporary, target)
            except FileExistsError:
                raise
            except OSError:  # not every file system has links
                os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                claimed = True
        os.replace(temporary, target)
        with suppress(FileNotFoundError):  # a rename between two links leaves both
            temporary.unlink()
    except BaseException as error:
        for path_of_ours in (temporary, target)[: 1 + claimed]:
            with suppress(OSError):
                path_of_ours.unlink()
        if isinstance(error, FileExistsError):
            raise OutputError(path, "exists", "Use --force to replace it") from error
        if isinstance(error, OSError) and not isinstance(error, OutputError):
            raise _unwritten(path, error) from error
        raise
    finally:
        if file is not None:
            os.close(file)
    _sync_folder_of(target, path)


@contextmanager
def replacing_folder(
    path: Path, overwrite: bool, require: Callable[[Path], None]
) -> Iterator[Path]:
    """Yields a temporary folder beside the target that becomes it if all goes well.

    A folder that a killed process has moved away is put back, or removed if another one
    has its place.

    Args:
        path: the target.
        overwrite: replace a folder that is there.
        require: refuses a folder that is not one to be replaced.

    Raises:
        OutputError: the target cannot be written; what stood there stands there still.
    """
    target, files = _target(path), []
    temporary = _temporary(target)
    # Not named as temporary: what a process that is killed in between has moved away
    # must not be swept, but put back.
    old = target.with_name(f"{target.name}{_OLD}{secrets.token_hex(_DIGITS // 2)}")
    try:
        _settle(target, path, require)
        _require_free_folder(target, path, overwrite, require)
        _sweep(target.parent)
        temporary.mkdir()
        files.append(_locked_folder(temporary))
        yield temporary
        if _require_free_folder(target, path, overwrite, require):
            files.append(_locked_folder(target))
            target.rename(old)  # no folder can be renamed to one that has files
        try:
            temporary.rename(target)
        except BaseException:
            with suppress(FileNotFoundError):
                old.rename(target)
            raise
        _discard(old)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise _unwritten(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for file in files:
            os.close(file)
    _sync_folder_of(target, path)


def _settle(target: Path, path: Path, require: Callable[[Path], None]) -> None:
    """Puts back the folder that a killed process has moved away, or removes it."""
    left = []
    for one in target.parent.glob(f"{glob.escape(target.name)}{_OLD}*"):
        digits = one.name.removeprefix(f"{target.name}{_OLD}")
        if len(digits) == _DIGITS and set(digits) <= set("0123456789abcdef"):
            with suppress(OSError):
                left.append((one.lstat().st_ctime_ns, one))
    for _, one in sorted(left, reverse=True):
        with suppress(OSError):  # gone meanwhile, or none of ours
            require(one)
            file = os.open(one, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
            try:
                if not lock(file, wait=False):  # its process lives
                    continue
                if os.path.lexists(target):
                    _discard(one)
                else:
                    one.rename(target)
                    warnings.warn(
                        f"{path}: is put back; a process that was replacing it has "
                        "been killed",
                        stacklevel=5,
                    )
            finally:
                os.close(file)


def _discard(folder: Path) -> None:
    """Removes a folder; if that is not ended, the next write does."""
    with suppress(OSError):
        shutil.rmtree(folder.rename(_temporary(folder)), ignore_errors=True)


def _temporary(target: Path) -> Path:
    return target.with_name(f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}")


def _locked_folder(path: Path) -> int:
    file = os.open(path, os.O_RDONLY)
    lock(file, wait=True)
    return file


def _sync_folder_of(target: Path, path: Path) -> None:
    try:
        sync(target.parent)
    except OSError as error:
        warnings.warn(
            f"{path}: is written; whether its folder is on the disk yet cannot be told "
            f"({error.strerror})",
            stacklevel=4,
        )


def require_place(
    path: Path, overwrite: bool, require: Callable[[Path], None] | None = None
) -> None:
    """Checks, before anything is fetched or computed for it, that a target can be.

    Args:
        path: the target.
        overwrite: replace what is there.
        require: of a folder: refuses one that is not to be replaced.

    Raises:
        OutputError: it cannot be written.
    """
    target = _target(path)
    try:
        if require is None:
            _require_free(target, path, overwrite)
        else:
            _require_free_folder(target, path, overwrite, require)
        with TemporaryFile(dir=target.parent):  # os.access() tells less
            pass
    except OutputError:
        raise
    except OSError as error:
        raise _unwritten(path, error) from error


def _unwritten(path: Path, error: OSError) -> OutputError:
    return OutputError(
        path,
        f"cannot be written ({error.strerror or error})",
        "Check the name, and the folder's space and permissions",
    )


def _target(path: Path) -> Path:
    """Returns what a path leads to, which need not be there; its folder must."""
    try:
        target = Path(os.path.realpath(path))
        os.lstat(target.parent)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        what = f"there is no folder for it ({reason})"
        raise OutputError(path, what, "Make it first, or use another name") from error
    return target


def _require_free_folder(
    target: Path, path: Path, overwrite: bool, require: Callable[[Path], None]
) -> bool:
    """Returns whether there is a folder that is to be replaced."""
    if not os.path.lexists(target):
        return False
    if not target.is_dir():
        raise OutputError(path, "is no directory", "Name another one")
    if not overwrite:
        raise OutputError(path, "exists", "Use --force to replace it")
    require(target)
    return True


def _require_free(target: Path, path: Path, overwrite: bool) -> int | None:
    """Returns the mode of the file that would be replaced, if there is one."""
    try:
        found = target.lstat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found.st_mode):
        raise OutputError(path, "is a directory", "Name a file in it")
    if not stat.S_ISREG(found.st_mode):
        raise OutputError(path, "is no regular file", "Name another one")
    if not overwrite:
        raise OutputError(path, "exists", "Use --force to replace it")
    return found.st_mode & 0o7777


def _locked(path: Path) -> int | None:
    """Makes a new file, locked for as long as it is open; ``None`` without locks."""
    while True:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)  # less umask
        if not lock(file, wait=True):
            os.close(file)
            return None
        if path.exists():  # nobody took it for a dead process's before it was locked
            return file
        os.close(file)


def _sweep(parent: Path) -> None:
    """Removes the temporary files of processes that are gone: nobody locks those."""
    for path in parent.glob(f"{_PREFIX}*{_SUFFIX}"):
        with suppress(OSError):
            is_folder = path.is_dir()
            flags = os.O_RDONLY if is_folder else os.O_WRONLY
            for flag in ("O_NOFOLLOW", "O_NONBLOCK"):  # a FIFO could hold us for ever
                flags |= getattr(os, flag, 0)
            file = os.open(path, flags)
            try:
                if lock(file, wait=False):
                    shutil.rmtree(path) if is_folder else path.unlink()
            finally:
                os.close(file)


def lock(file: int, *, wait: bool) -> bool:
    """Locks an open file for this process alone; says whether it has the lock."""
    try:
        import fcntl
    except ImportError:  # Windows has none
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # another's, or the file system has none
        return False
    return True


@stage("fsync")
def sync(path: Path) -> None:
    """Waits until what was written to a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
