"""A file is there whole and verified, or not at all, whatever happens meanwhile."""

from __future__ import annotations

import errno
import io
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import parity
from parity.errors import OutputError
from parity.files import writing
from parity.weights.digest import differing_bits
from resnet_cli.failures import exit_code, one_line

STATE = {"fc.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
FORMATS = pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@FORMATS
def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path: Path, name: str):
    with _umask(0o027):
        parity.save(tmp_path / name, STATE)
    assert _mode(tmp_path / name) == 0o640


@FORMATS
def test_a_replaced_file_keeps_its_mode(tmp_path: Path, name: str):
    path = tmp_path / name
    parity.save(path, STATE)
    path.chmod(0o604)
    parity.save(path, STATE, overwrite=True)
    assert _mode(path) == 0o604


@FORMATS
def test_an_existing_file_is_replaced_on_request_only(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_text("precious")
    with pytest.raises(OutputError, match=r"exists\. Use --force"):
        parity.save(path, STATE)
    assert path.read_text() == "precious"
    parity.save(path, STATE, overwrite=True)
    assert differing_bits(parity.load(path), STATE) == {}
    assert list(tmp_path.iterdir()) == [path]


@FORMATS
def test_through_a_link_its_target_is_written(tmp_path: Path, name: str):
    target, link = tmp_path / f"target-{name}", tmp_path / name
    target.write_text("old")
    link.symlink_to(target)
    parity.save(link, STATE, overwrite=True)
    assert link.is_symlink()
    assert differing_bits(parity.load(target), STATE) == {}


def test_a_file_that_appears_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "w.safetensors"
    write = writing._WRITERS["safetensors"]

    def slow(temporary: Path, arrays: dict[str, np.ndarray], metadata: Any) -> None:
        write(temporary, arrays, metadata)
        path.write_text("precious")

    monkeypatch.setitem(writing._WRITERS, "safetensors", slow)
    with pytest.raises(OutputError, match=r"exists\. Use --force"):
        parity.save(path, STATE)
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


def test_an_unknown_format_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="format is 'onnx'; it must be one of"):
        parity.save(tmp_path / "w.pth", STATE, format="onnx")  # type: ignore[arg-type]


def test_a_folder_or_a_path_without_one_is_refused(tmp_path: Path):
    (tmp_path / "a.pth").mkdir()
    with pytest.raises(OutputError, match="is a directory"):
        parity.save(tmp_path / "a.pth", STATE)
    with pytest.raises(OutputError, match="there is no folder"):
        parity.save(tmp_path / "b" / "a.pth", STATE)
    with pytest.raises(OutputError, match=r"'\.ckpt' names no format.*\.safetensors"):
        parity.save(tmp_path / "a.ckpt", STATE)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only_is_refused(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        parity.save(tmp_path / "a.pth", STATE)


@pytest.mark.parametrize("name", ["a\0.pth", "a\ud800.pth", "a/b/\0/c.pth"])
def test_a_name_that_no_file_can_have_is_said(tmp_path: Path, name: str):
    with pytest.raises(OutputError, match=r"there is no folder for it \("):
        parity.save(tmp_path / name, STATE)
    with pytest.raises(parity.CheckpointError, match="cannot be read"):
        parity.load(tmp_path / name)


def test_a_name_of_255_bytes_works_and_a_longer_one_is_refused(tmp_path: Path):
    parity.save(tmp_path / ("a" * 251 + ".pth"), STATE)
    with pytest.raises(OutputError):
        parity.save(tmp_path / ("a" * 252 + ".pth"), STATE)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("same", ["path", "link", "hard link"])
def test_the_source_is_never_the_target(tmp_path: Path, same: str):
    source, target = tmp_path / "a.pth", tmp_path / "b.pth"
    parity.save(source, STATE)
    before = source.read_bytes()
    if same == "link":
        target.symlink_to(source)
    elif same == "hard link":
        target.hardlink_to(source)
    else:
        target = tmp_path / "." / "a.pth"
    with pytest.raises(OutputError, match="is the source itself"):
        parity.convert(source, target, overwrite=True)
    assert source.read_bytes() == before


@FORMATS
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, name: str):
    # A limit on the size of files: the kernel refuses the write, as a full disk does.
    path = tmp_path / name
    parity.save(path, STATE)
    before = path.read_bytes()
    big = {"fc.weight": np.zeros((1000, 1000), np.float32)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OutputError):
            parity.save(path, big, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "bad disk"), KeyboardInterrupt()])
def test_an_error_at_any_step_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, call: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "w.safetensors"
    parity.save(path, STATE)
    before = path.read_bytes()

    def fail(*args: object, **settings: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(writing.os, call, fail)
        with pytest.raises(
            OutputError if isinstance(error, OSError) else KeyboardInterrupt
        ):
            parity.save(path, {"fc.weight": np.ones(3, np.float32)}, overwrite=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_while_torch_writes_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Interrupted(io.FileIO):
        def write(self, data: Any) -> int:
            if len(data) > 100_000:  # in the middle of an entry
                raise KeyboardInterrupt
            return super().write(data)

    path = tmp_path / "w.pth"
    parity.save(path, STATE)
    before = path.read_bytes()
    monkeypatch.setattr(writing, "open", Interrupted, raising=False)
    big = {"fc.weight": np.zeros((1000, 1000), np.float32)}
    with pytest.raises(KeyboardInterrupt):
        parity.save(path, big, overwrite=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_behind_an_interrupt_that_is_over_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(path: Path, arrays: object, metadata: str) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setitem(writing._WRITERS, "pth", fail)
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        with pytest.raises(OutputError, match="no space left"):
            parity.save(tmp_path / "w.pth", STATE)


def test_what_is_not_read_back_equal_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def corrupt(path: Path, arrays: dict[str, np.ndarray], metadata: Any) -> None:
        safe = {name: array + 1 for name, array in arrays.items()}
        write_safetensors(path, safe, {})

    write_safetensors = writing._WRITERS["safetensors"]
    monkeypatch.setitem(writing._WRITERS, "safetensors", corrupt)
    with pytest.raises(OutputError, match="not read back as written"):
        parity.save(tmp_path / "w.safetensors", STATE)
    assert list(tmp_path.iterdir()) == []


def test_killed_at_any_moment_the_target_is_old_or_new(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    parity.save(path, STATE)
    old = parity.load(path)
    code = (
        "import numpy as np, parity, sys\n"
        "state = {'fc.weight': np.full((1500, 1000), 7, np.float32)}\n"
        "print('ready', flush=True)\n"
        "while True: parity.save(sys.argv[1], state, overwrite=True)\n"
    )
    for delay in np.linspace(0.001, 0.05, 12):
        arguments = [sys.executable, "-c", code, str(path)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(delay)
            process.kill()
        found = parity.load(path)
        new = (
            found["fc.weight"].shape == (1500, 1000) and (found["fc.weight"] == 7).all()
        )
        assert new or differing_bits(found, old) == {}


def test_two_writers_at_once_leave_one_whole_file(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    states = [{"fc.weight": np.full((200, 200), i, np.float32)} for i in range(2)]

    def write(state: dict[str, np.ndarray]) -> None:
        for _ in range(20):
            parity.save(path, state, overwrite=True)

    threads = [threading.Thread(target=write, args=(state,)) for state in states]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = parity.load(path)
    assert any(differing_bits(found, state) == {} for state in states)
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_state_is_refused(tmp_path: Path):
    for state, said in (
        ({}, "holds no weights at all"),
        ({"fc.weight": np.zeros(3, np.int8)}, "fc.weight is int8, not one of"),
        ({"fc.weight": None}, "fc.weight is a NoneType"),
    ):
        with pytest.raises(parity.CheckpointError, match=said):
            parity.save(tmp_path / "w.pth", state)
    assert list(tmp_path.iterdir()) == []


def test_the_same_state_gives_the_same_bytes(tmp_path: Path):
    for suffix in ("pth", "safetensors"):
        for name in "ab":
            parity.save(tmp_path / f"{name}.{suffix}", STATE)
        contents = {(tmp_path / f"{name}.{suffix}").read_bytes() for name in "ab"}
        assert len(contents) == 1


@pytest.mark.parametrize(
    ("module", "extra"),
    [("torch", "torch"), ("flax", "flax"), ("jax.numpy", "flax"), ("scipy", "bench")],
)
def test_what_is_not_installed_is_told_with_its_extra(module: str, extra: str):
    error = ModuleNotFoundError(f"No module named {module!r}", name=module)
    assert one_line(error).endswith(f"`pip install 'resnet-twins[{extra}]'`")
    assert exit_code(error) == 2


def test_without_torch_no_pth_is_written_and_torch_is_named(
    arrays: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModuleNotFoundError) as raised:
        parity.save(tmp_path / "weights.pth", arrays)
    assert raised.value.name == "torch"
    assert list(tmp_path.iterdir()) == []
    parity.save(tmp_path / "weights.safetensors", arrays)


def test_a_full_disk_is_called_one_by_torch_too(tmp_path: Path):
    big = {"fc.weight": np.zeros((1000, 1000), np.float32)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"cannot be written \(File too large\)"):
            parity.save(tmp_path / "w.pth", big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
