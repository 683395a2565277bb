"""What a file may take the place of, on which file systems, and what is refused."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import parity
from parity.errors import OutputError
from parity.files.atomic import replacing
from parity.weights.digest import differing_bits

STATE = {"fc.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def _device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")


@pytest.mark.parametrize("make", [_fifo, _socket, _device])
@pytest.mark.parametrize("link", [False, True])
def test_what_is_no_regular_file_is_never_replaced(
    tmp_path: Path, make: Callable[[Path], None], link: bool
):
    path = odd = tmp_path / "w.pth"
    make(odd)
    if link:
        path = tmp_path / "link.pth"
        path.symlink_to(odd)
    kind = stat.S_IFMT(odd.stat().st_mode)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=f"{path}: is no regular file"):
            parity.save(path, STATE, overwrite=overwrite)
    assert stat.S_IFMT(odd.stat().st_mode) == kind
    assert len(list(tmp_path.iterdir())) == 1 + link


def test_what_appears_meanwhile_and_is_no_regular_file_stays(tmp_path: Path):
    path = tmp_path / "w"

    def write() -> None:
        with replacing(path, overwrite=True) as temporary:
            temporary.write_text("new")
            os.mkfifo(path)

    with pytest.raises(OutputError, match="is no regular file"):
        write()
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert list(tmp_path.iterdir()) == [path]


# --- a killed process, other file systems -------------------------------------------


@pytest.mark.parametrize("error", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_hard_links_is_written_to(
    tmp_path: Path, error: int, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*arguments: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "w.safetensors"
    parity.save(path, STATE)
    assert differing_bits(parity.load(path), STATE) == {}
    with pytest.raises(OutputError, match=r"exists\. Use --force"):
        parity.save(path, STATE)
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OutputError, match="cannot be written"):
        parity.save(tmp_path / "other.safetensors", STATE)
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_synced_is_said_and_the_file_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, fsync = tmp_path / "w.safetensors", os.fsync

    def refuse(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EIO, "bad disk")
        fsync(file)

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.warns(UserWarning, match=r"w\.safetensors: is written; .*bad disk"):
        parity.save(path, STATE)
    assert differing_bits(parity.load(path), STATE) == {}


def test_what_is_called_as_a_temporary_file_and_is_none_stays(tmp_path: Path):
    fifo = tmp_path / ".resnet-twins-0123456789abcdef.tmp"
    os.mkfifo(fifo)
    parity.save(tmp_path / "a.safetensors", STATE)
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def test_what_a_killed_process_left_goes_at_the_next_write(tmp_path: Path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from parity.files.atomic import replacing\n"
        "with replacing(Path(sys.argv[1]), False) as temporary:\n"
        "    print(temporary.name, flush=True); time.sleep(60)"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "theirs")]
    others = [tmp_path / ".other.tmp", tmp_path / ".resnet-twins-notes"]
    for other in others:
        other.touch()
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        left = tmp_path / process.stdout.readline().strip()
        parity.save(tmp_path / "a.safetensors", STATE)
        assert left.exists()  # its process lives
        process.kill()
    assert left.exists()
    parity.save(tmp_path / "b.safetensors", STATE)
    names = {"a.safetensors", "b.safetensors", *(other.name for other in others)}
    assert {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.parametrize("format", ["pth", "pth-legacy", "safetensors"])
@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"a": np.array([np.nan], np.float32)}, "a has 1 NaN and 0 Inf"),
        ({"a": np.array([3])}, "integers where weights should be: a"),
        ({"": np.ones(1)}, "names that are no text"),
        ({"a\udc80": np.ones(1)}, "names that are no text"),
        ({"bn1.running_var": -np.ones(1)}, "negative variances"),
        ({"bn1.num_batches_tracked": np.array(-1)}, "bad batch counts"),
        ({"a": np.ones((0, 3))}, r"a is of the shape \(0, 3\)"),
        ({"a": np.ones((1,) * 9)}, "a is of the shape"),
    ],
)
def test_what_load_would_refuse_is_not_written(
    tmp_path: Path, format: Any, state: dict[str, np.ndarray], said: str
):
    path = tmp_path / "w.bin"
    with pytest.raises(parity.CheckpointError, match=f"w.bin: .*{said}"):
        parity.save(path, state, format=format)
    assert list(tmp_path.iterdir()) == []


def test_nan_is_written_on_request_and_read_on_request(tmp_path: Path):
    state = {"a": np.array([np.nan, np.inf], np.float32)}
    source, target = tmp_path / "w.pth", tmp_path / "x.safetensors"
    for path in (source, target):
        parity.save(path, state, allow_nonfinite=True)
        found = parity.load(path, allow_nonfinite=True)
        assert differing_bits(found, state) == {}


@pytest.mark.parametrize("name", ["W.PTH", "w.SafeTensors"])
def test_an_extension_in_capitals_is_one(tmp_path: Path, name: str):
    parity.save(tmp_path / name, STATE)
    assert parity.load(tmp_path / name).notes == []
