"""What a killed process leaves of a folder that it was replacing, and what follows."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import parity
from parity.errors import OutputError
from parity.files import atomic
from parity.files.writing import Format
from parity.weights.digest import differing_bits
from tests.support.networks import TINY, random_torch

FOLDERS: tuple[Format, ...] = ("huggingface", "orbax")
LEFT = "net.old-0123abcd"

State = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def states() -> list[State]:
    """Those of one network, before and after."""
    first = parity.state_dict(random_torch(TINY))
    return [first, {name: value + 1 for name, value in first.items()}]


def write(path: Path, state: State, format: Format, **how: Any) -> None:
    parity.save(path, state, config=TINY, format=format, **how)


def has(path: Path, state: State) -> bool:
    found = parity.load(path)
    return differing_bits(found, {name: state[name] for name in found}) == {}


@pytest.fixture(params=FOLDERS)
def format(request: pytest.FixtureRequest) -> Format:
    if request.param == "orbax":
        pytest.importorskip("orbax.checkpoint")
    return request.param


def test_what_was_moved_away_is_put_back_if_nothing_has_its_place(
    tmp_path: Path, states: list[State], format: Format
):
    path = tmp_path / "net"
    write(tmp_path / LEFT, states[0], format)
    said = "net: is put back; a process that was replacing it has been killed"
    with (
        pytest.warns(UserWarning, match=said),
        pytest.raises(OutputError, match=r"net: exists\. Use --force"),
    ):
        write(path, states[1], format)
    assert os.listdir(tmp_path) == ["net"]
    assert has(path, states[0])
    write(path, states[1], format, overwrite=True)
    assert has(path, states[1])
    assert os.listdir(tmp_path) == ["net"]


def test_the_last_that_was_moved_away_is_put_back(
    tmp_path: Path, states: list[State], format: Format
):
    for name, state in (("net.old-ffffffff", states[0]), (LEFT, states[1])):
        write(tmp_path / name, state, format)
    with (
        pytest.warns(UserWarning, match="is put back"),
        pytest.raises(OutputError, match="exists"),
    ):
        write(tmp_path / "net", states[0], format)
    assert os.listdir(tmp_path) == ["net"]
    assert has(tmp_path / "net", states[1])


def test_what_was_moved_away_goes_if_another_has_its_place(
    tmp_path: Path, states: list[State], format: Format
):
    for name in ("net", LEFT):
        write(tmp_path / name, states[0], format)
    write(tmp_path / "net", states[1], format, overwrite=True)
    assert os.listdir(tmp_path) == ["net"]
    assert has(tmp_path / "net", states[1])


def test_what_only_looks_like_it_stays(
    tmp_path: Path, states: list[State], format: Format
):
    names = ["net.old-0123abc", "net.old-0123ABCD", "net.old-mine", "net.old-1234567g"]
    for name in (*names, "other.old-0123abcd"):
        write(tmp_path / name, states[0], format)
    (tmp_path / LEFT).mkdir()  # of no kind that is written here
    (tmp_path / LEFT / "notes").touch()
    (tmp_path / "net.old-00000000").write_text("a file")
    (tmp_path / "net.old-11111111").symlink_to(tmp_path / "net.old-mine")
    before = sorted(os.listdir(tmp_path))
    write(tmp_path / "net", states[1], format)
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "net"])
    assert has(tmp_path / "net", states[1])


def test_what_a_living_process_has_moved_away_stays(
    tmp_path: Path, states: list[State], format: Format
):
    left = tmp_path / LEFT
    write(left, states[0], format)
    file = os.open(left, os.O_RDONLY)
    try:
        assert atomic.lock(file, wait=False)
        write(tmp_path / "net", states[1], format)
        assert sorted(os.listdir(tmp_path)) == ["net", LEFT]
    finally:
        os.close(file)
    write(tmp_path / "net", states[1], format, overwrite=True)
    assert os.listdir(tmp_path) == ["net"]


CODE = """
import os, signal, sys
from pathlib import Path
from parity.files import atomic
moment = sys.argv[2]
rename, rmtree = Path.rename, atomic.shutil.rmtree
def renamed(self, target):
    if moment == "between" and self.suffix == ".tmp" and Path(target).name == "net":
        os.kill(os.getpid(), signal.SIGKILL)
    if moment == "before it is removed" and ".old-" in self.name:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
def removed(path, *arguments, **settings):
    if moment == "while it is removed":
        next(p for p in Path(path).rglob("*") if p.is_file()).unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return rmtree(path, *arguments, **settings)
Path.rename, atomic.shutil.rmtree = renamed, removed
target = Path(sys.argv[1])
with atomic.replacing_folder(target, True, lambda path: None) as temporary:
    (temporary / "weights").write_text("new")
"""


@pytest.mark.parametrize(
    ("moment", "left", "kept"),
    [
        ("between", 2, "old"),
        ("before it is removed", 2, "new"),
        ("while it is removed", 2, "new"),
    ],
)
def test_a_kill_at_any_moment_leaves_one_of_both_at_the_next_write(
    tmp_path: Path, moment: str, left: int, kept: str
):
    path = tmp_path / "net"
    path.mkdir()
    (path / "weights").write_text("old")
    (path / "more").touch()
    done = subprocess.run([sys.executable, "-c", CODE, str(path), moment])
    assert done.returncode == -9
    assert len(os.listdir(tmp_path)) == left

    def write_again() -> None:
        with atomic.replacing_folder(path, False, lambda path: None):
            raise AssertionError("written")

    assert path.exists() == (kept == "new")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises(OutputError, match="exists"):
            write_again()
    assert [str(one.message).partition(";")[0] for one in said] == (
        [f"{path}: is put back"] if kept == "old" else []
    )
    assert (path / "weights").read_text() == kept
    with atomic.replacing_folder(path, True, lambda path: None) as temporary:
        (temporary / "weights").write_text("newer")
    assert os.listdir(tmp_path) == ["net"]
    assert os.listdir(path) == ["weights"]
    assert (path / "weights").read_text() == "newer"


def test_a_folder_that_cannot_be_synced_is_said_and_the_target_is_there(
    tmp_path: Path,
    states: list[State],
    format: Format,
    monkeypatch: pytest.MonkeyPatch,
):
    path, fsync = tmp_path / "net", os.fsync

    def refuse(file: int) -> None:
        found = os.fstat(file)
        if stat.S_ISDIR(found.st_mode) and found.st_ino == tmp_path.stat().st_ino:
            raise OSError(errno.EIO, "bad disk")
        fsync(file)

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.warns(UserWarning, match=r"net: is written; .*bad disk"):
        write(path, states[0], format)
    assert has(path, states[0])
