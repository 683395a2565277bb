"""Weights from a Hub on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import parity
from parity.files import hub_bounds
from parity.weights.digest import differing_bits
from parity.weights.names import COUNTER
from tests.conftest import torchvision  # noqa: F401  before timm
from tests.support.hub_server import (
    HF,
    REPO,
    Hub,
    commit_of,
    refused,
)
from tests.support.networks import TINY, random_torch

pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")


@pytest.mark.parametrize("framework", ["torch", "flax"])
def test_a_repository_gives_either_twin(
    hub: Hub, files: Mapping[str, bytes], folder: Path, framework: Any
):
    hub.add(REPO, files)
    model = parity.create_model(TINY, framework, weights=HF)
    theirs = parity.load(folder)
    assert differing_bits(parity.state_dict(model), theirs) == {}
    assert parity.load(HF).dialect == "huggingface"


def test_only_weights_and_what_describes_them_are_fetched(
    hub: Hub, files: Mapping[str, bytes]
):
    more = {"code.py": b"1/0", "training.bin": b"x", "pytorch_model.bin": b"y"}
    hub.add(REPO, {**files, **more})
    parity.load(HF)
    names = {path.rpartition("/")[2] for path in hub.asked()}
    assert names == {"config.json", "preprocessor_config.json", "model.safetensors"}
    assert {*names} == {path.rpartition("/")[2] for path in hub.asked("HEAD")}


def test_a_second_call_downloads_nothing(hub: Hub, files: Mapping[str, bytes]):
    hub.add(REPO, files)
    first = parity.load(HF)
    hub.requests.clear()
    assert differing_bits(parity.load(HF), first) == {}
    assert hub.asked() == []
    assert 0 < len(hub.requests) <= 2  # whether the branch has moved
    hub.requests.clear()
    parity.load(f"{HF}@{commit_of(hub.repositories[REPO].revisions['main'])}")
    assert hub.asked() == []


def test_a_branch_that_moves_is_fetched_anew(
    hub: Hub, files: Mapping[str, bytes], tmp_path: Path
):
    hub.add(REPO, files)
    first = parity.load(HF)
    other, model = tmp_path / "other", random_torch(TINY)
    model.fc.bias.data += 1
    parity.save(other, model, format="huggingface")
    hub.add(REPO, other)
    second = parity.load(HF)
    assert differing_bits(first, second) != {}
    assert differing_bits(second, parity.load(other)) == {}
    old = f"{HF}@{commit_of(files)}"
    hub.requests.clear()
    assert differing_bits(parity.load(old), first) == {}
    assert hub.asked() == []


def test_a_branch_that_moves_meanwhile_gives_files_of_one_commit(
    hub: Hub, files: Mapping[str, bytes], tmp_path: Path
):
    hub.add(REPO, files)
    other, model = tmp_path / "other", random_torch(TINY)
    model.fc.bias.data += 1
    parity.save(other, model, format="huggingface")

    def move() -> None:
        hub.then = None
        hub.add(REPO, other)

    hub.then = move  # as soon as the first file has been sent
    first = parity.load(HF)
    (commit,) = {path.split("/")[-2] for path in hub.asked()[1:]}
    assert commit == commit_of(files)
    assert differing_bits(first, parity.load(other)) != {}


@pytest.mark.parametrize("revision", ["v1.0", "refs/pr/3", "a%2Fbranch"])
def test_a_revision_is_another_set_of_files(
    hub: Hub, files: Mapping[str, bytes], revision: str
):
    hub.add(REPO, {"README.md": b"nothing yet"})
    hub.add(REPO, files, revision=revision.replace("%2F", "/"))
    assert len(parity.load(f"{HF}@{revision}")) > 10
    assert len(parity.load(f"{HF}@{revision}/model.safetensors")) > 10
    assert "no weights but README.md" in refused()


def test_a_file_may_be_named_in_any_folder(
    hub: Hub, tmp_path: Path, state: dict[str, np.ndarray]
):
    path = tmp_path / "best.safetensors"
    parity.save(path, state)
    hub.add(REPO, {"runs/1/best.safetensors": path.read_bytes(), "config.json": b"no"})
    found = parity.load(f"{HF}/runs/1/best.safetensors")
    assert differing_bits(found, state) == {}
    assert "config.json" not in str(hub.requests)


def test_the_progress_of_a_download_is_told(hub: Hub, files: Mapping[str, bytes]):
    hub.add(REPO, files)
    told: list[Any] = []
    parity.create_model(TINY, weights=HF, progress=lambda *n: told.append(n))
    size = len(files["model.safetensors"])
    assert told[-1] == (size, size)


def test_the_progress_of_xet_is_told_too():
    """huggingface.co sends by Xet, which no server here does; it asks more of a bar."""
    name = "huggingface_hub.utils._xet_progress_reporting"
    reporting = pytest.importorskip(name)
    told: list[Any] = []
    report = SimpleNamespace(
        total_bytes=100,
        total_bytes_completed=60,
        total_bytes_completion_rate=1.0,
        total_transfer_bytes=90,
        total_transfer_bytes_completed=70,
        total_transfer_bytes_completion_rate=1.0,
    )
    with reporting.XetDownloadProgressReporter(
        reconstruction_desc="file",
        total=100,
        log_level=30,
        tqdm_class=hub_bounds.bar(
            lambda *n: told.append(n), most=100, name="file", ended=threading.Event()
        ),
    ) as progress:
        progress.update_progress(report)
        report.total_bytes_completed = 100
        progress.update_progress(report)
    assert told == [(60, 100), (100, 100)]


def test_what_the_hub_vouched_for_is_not_called_unverified(
    hub: Hub, tmp_path: Path, files: Mapping[str, bytes]
):
    from safetensors.numpy import save_file

    save_file(dict(parity.state_dict(random_torch(TINY))), tmp_path / "w.safetensors")
    hub.add(REPO, {"model.safetensors": (tmp_path / "w.safetensors").read_bytes()})
    local = parity.load(tmp_path / "w.safetensors")
    assert any("no checksums" in note for note in local.notes)
    assert not any("no checksums" in note for note in parity.load(HF).notes)


@pytest.mark.parametrize("kind", ["pytorch_model.bin", "flax_model.msgpack"])
def test_other_containers_are_taken_where_there_is_no_safetensors(
    hub: Hub, folder: Path, tmp_path: Path, kind: str
):
    path = tmp_path / ("w.pth" if kind.endswith("bin") else "w.msgpack")
    in_flax = kind == "flax_model.msgpack"
    parity.convert(folder, path, to="huggingface-flax" if in_flax else "huggingface")
    hub.add(REPO, {kind: path.read_bytes(), "config.json": b'{"model_type": "resnet"}'})
    expected = {
        name: np.zeros_like(array) if in_flax and name.endswith(COUNTER) else array
        for name, array in parity.load(folder).items()
    }
    assert differing_bits(parity.load(HF), expected) == {}


def _run(hub: Hub, tmp_path: Path, *arguments: object, **settings: str) -> Any:
    env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    env |= {"PYTHONPATH": str(Path(parity.__file__).parents[1]), **settings}
    code = "import sys; from resnet_cli.main import main; main(sys.argv[1:])"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=env,
        capture_output=True,
        text=True,
    )


def test_offline_the_command_takes_the_cache_or_says_what_to_do(
    hub: Hub, files: Mapping[str, bytes], tmp_path: Path
):
    hub.add(REPO, files)
    target = tmp_path / "w.safetensors"
    asked = ("convert", HF, target, "--to", "torchvision", "--force")
    done = _run(hub, tmp_path, *asked, HF_HUB_OFFLINE="1")
    assert done.returncode == 2, done.stderr
    assert done.stderr == (
        f"error: {HF}: is not in the cache, and HF_HUB_OFFLINE is set. Fetch it once "
        "without\n"
    )
    assert hub.requests == []
    done = _run(hub, tmp_path, *asked)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{HF} (safetensors) -> {target}\n")
    first = target.read_bytes()
    hub.requests.clear()
    done = _run(hub, tmp_path, *asked, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert hub.requests == []
    assert target.read_bytes() == first
