"""Weights from a Hub on this machine, with all that goes wrong, and back to it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import parity
import resnet_spec
from parity.files import hub as remote
from parity.files.hub_address import Address, parse
from parity.files.preprocessing import preprocessing_of
from parity.images import prepare
from parity.judging.distance import deviation
from parity.judging.tolerances import CEILINGS
from parity.weights.digest import differing_bits
from parity.weights.names import COUNTER
from resnet_spec import Preprocessing
from tests.conftest import torchvision  # noqa: F401  before timm
from tests.support.command import Called
from tests.support.hub_server import Hub, commit_of, serving
from tests.support.networks import TINY, random_torch

pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")

import huggingface_hub
from huggingface_hub import HfApi, constants

REPO = "owner/tiny"
HF = f"hf://{REPO}"
HOW = Preprocessing(resize=40, crop=36, interpolation="bicubic", mean=(0.5, 0.4, 0.3))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture(scope="session")
def state() -> dict[str, np.ndarray]:
    return parity.state_dict(random_torch(TINY))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the Hub has it: transformers' names, and what is done to photographs."""
    path = tmp_path_factory.mktemp("hub") / "tiny"
    model = random_torch(TINY)
    parity.save(path, model, format="huggingface", preprocessing=HOW)
    return path


@pytest.fixture(scope="session")
def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _error(address: str = HF) -> str:
    with pytest.raises(parity.DownloadError) as error:
        parity.load(address)
    said = str(error.value)
    assert said.isprintable()
    assert said.startswith(address)
    assert re.search(r"\. [A-Z][\w ]", said), said
    return said


def _cached(tmp_path: Path) -> list[str]:
    """Names of the files that are in the cache, whole or not."""
    blobs = tmp_path / "cache" / "models--owner--tiny" / "blobs"
    return sorted(path.name for path in blobs.iterdir()) if blobs.exists() else []


# --- all goes well -------------------------------------------------------------------


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
    assert "no weights but README.md" in _error()


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
        tqdm_class=remote._bar(lambda *n: told.append(n)),
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


# --- several files -------------------------------------------------------------------


def _in_shards(state: Mapping[str, np.ndarray], parts: int = 3) -> dict[str, bytes]:
    """As ``save_pretrained(max_shard_size=…)`` leaves it."""
    from safetensors.numpy import save

    names = list(state)
    files, places = {}, {}
    for index in range(parts):
        part = f"model-{index + 1:05}-of-{parts:05}.safetensors"
        mine = {name: np.array(state[name], order="C") for name in names[index::parts]}
        files[part] = save(mine, {"format": "pt"})
        places |= dict.fromkeys(mine, part)
    told = {"metadata": {"total_size": 1}, "weight_map": places}
    return files | {"model.safetensors.index.json": json.dumps(told).encode()}


def _put(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_shards_are_one_state_from_the_hub_and_from_a_folder(
    hub: Hub, tmp_path: Path, state: dict[str, np.ndarray]
):
    files = _in_shards(state)
    hub.add(REPO, {**files, "unnamed.safetensors": b"x"})
    assert differing_bits(parity.load(HF), state) == {}
    assert not any("unnamed" in path for path in hub.asked())
    hub.add("owner/deep", {f"a/b/{name}": content for name, content in files.items()})
    deep = parity.load("hf://owner/deep/a/b/model.safetensors.index.json")
    assert differing_bits(deep, state) == {}
    local = _put(tmp_path / "here", files)
    for path in (local, local / "model.safetensors.index.json"):
        assert differing_bits(parity.load(path), state) == {}


def test_shards_of_torch_are_read_too(tmp_path: Path):
    tensors = random_torch(TINY).state_dict()
    names, places = list(tensors), {}
    for index in range(2):
        part = f"pytorch_model-0000{index + 1}-of-00002.bin"
        mine = {name: tensors[name] for name in names[index::2]}
        torch.save(mine, tmp_path / part)
        places |= dict.fromkeys(mine, part)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    found = parity.load(tmp_path)
    expected = {name: tensor.numpy() for name, tensor in tensors.items()}
    assert differing_bits(found, expected) == {}


def test_what_transformers_saves_in_shards_is_read(hub: Hub, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic"
    )
    theirs = transformers.ResNetForImageClassification(config)
    for parameter in theirs.parameters():
        parameter.data.normal_()
    folder = tmp_path / "theirs"
    theirs.save_pretrained(folder, max_shard_size="20KB")
    transformers.ConvNextImageProcessor(size={"shortest_edge": 64}).save_pretrained(
        folder
    )
    assert len([*folder.glob("model-*.safetensors")]) > 1
    hub.add(REPO, folder)
    state = parity.load(HF)
    assert state.dialect == "huggingface"
    assert differing_bits(state, parity.load(folder)) == {}
    head = theirs.classifier[1].weight.detach().numpy()
    assert differing_bits({"": state["fc.weight"]}, {"": head}) == {}
    assert preprocessing_of(HF) == preprocessing_of(folder)
    assert preprocessing_of(HF).crop == 64  # type: ignore[union-attr]


def test_what_timm_saves_for_the_hub_is_read(hub: Hub, tmp_path: Path):
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("resnet18", num_classes=3)
    folder = tmp_path / "theirs"
    labels = {"label_names": ["cat", "dog", "eel"]}
    timm.models.save_for_hf(theirs, folder, model_config=labels)
    hub.add(REPO, folder)
    state = parity.load(HF)
    expected = {name: t.numpy() for name, t in theirs.state_dict().items()}
    assert differing_bits(state, expected) == {}
    assert state.labels == ("cat", "dog", "eel")
    said = timm.data.resolve_data_config({}, model=theirs, use_test_size=True)
    found = preprocessing_of(HF)
    assert found is not None
    assert found.crop == said["input_size"][1]
    assert found.resize == int(found.crop / said["crop_pct"])
    assert (found.mean, found.std) == (said["mean"], said["std"])
    model = parity.create_model("resnet18", weights=HF)
    assert model.config.num_classes == 3


FIRST = "model-00001-of-00003.safetensors"
INDEX = "model.safetensors.index.json"


def _broken(files: dict[str, bytes], how: str) -> None:
    from safetensors.numpy import load, save

    told = json.loads(files[INDEX])
    places = told["weight_map"]
    name = next(iter(places))
    if how == "missing":
        del files[FIRST]
    elif how == "cut":
        files[FIRST] = files[FIRST][:-10]
    elif how == "lacks":
        places["layer9.weight"] = FIRST
    elif how == "twice":
        second = "model-00002-of-00003.safetensors"
        both = load(files[second]) | {name: load(files[FIRST])[name]}
        files[second] = save(both)
    elif how == "unlisted":
        del places[name]
    elif how == "empty":
        told = {"weight_map": {}}
    elif how == "text":
        told = []
    else:
        places[name] = how
    files[INDEX] = json.dumps(told).encode()
    if how == "repeated":
        files[INDEX] = b'{"weight_map": {"a": "x.bin", "a": "y.bin"}}'


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing", f"names {FIRST}, which is not beside it. Get that file, too"),
        ("cut", "was cut short"),
        ("lacks", f"{FIRST} lacks: layer9.weight. Get the index and all of"),
        ("twice", "00002-of-00003.safetensors has, and the index puts elsewhere: "),
        ("unlisted", f"{FIRST} has, and the index has not: "),
        ("empty", "it has no weight_map"),
        ("text", "it has no weight_map"),
        ("repeated", "it has 'a' twice"),
        ("../secret.safetensors", "names '../secret.safetensors', which is no file be"),
        ("/etc/passwd", "names '/etc/passwd', which is no file beside it"),
        ("..\\x.safetensors", "which is no file beside it"),
        ("sub/x.safetensors", "which is no file beside it"),
        ("code.py", "which is no file beside it"),
        ("\u202ex.safetensors", "which is no file beside it"),
    ],
)
def test_an_index_that_is_wrong_is_one_line(
    tmp_path: Path, state: dict[str, np.ndarray], how: str, said: str
):
    files = _in_shards(state)
    (tmp_path / "secret.safetensors").write_bytes(files[FIRST])
    _broken(files, how)
    with pytest.raises(parity.CheckpointError) as error:
        parity.load(_put(tmp_path / "here", files))
    assert said in str(error.value)
    assert str(error.value).isprintable()
    assert re.search(r"\. [A-Z]", str(error.value))


def test_an_index_of_the_hub_fetches_nothing_from_elsewhere(
    hub: Hub, state: dict[str, np.ndarray]
):
    files = _in_shards(state)
    _broken(files, "../../api/secret.safetensors")
    hub.add(REPO, files)
    with pytest.raises(parity.CheckpointError, match="which is no file beside it"):
        parity.load(HF)
    assert not any("secret" in path for path in hub.requests)
    files = _in_shards(state)
    _broken(files, "missing")
    hub.add("owner/other", files)
    assert f"no {FIRST}, which its index names" in _error("hf://owner/other")


# --- what goes wrong -----------------------------------------------------------------


def test_a_cut_download_is_gone_on_with(hub: Hub, files: Mapping[str, bytes]):
    hub.add(REPO, files)
    hub.cut_after = 5000
    assert len(parity.load(HF)) > 10
    assert sum("model.safetensors" in path for path in hub.asked()) == 2


def test_a_download_that_is_always_cut_short_is_one_line(
    hub: Hub, files: Mapping[str, bytes], tmp_path: Path
):
    hub.add(REPO, {"model.safetensors": files["model.safetensors"]})
    hub.cut_after, hub.always_cut = 0, True
    assert "/model.safetensors: did not come (" in _error()
    assert _cached(tmp_path) == []
    hub.cut_after = None
    assert len(parity.load(HF)) > 10


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_with_another_hash_is_refused_and_not_kept(
    hub: Hub, files: Mapping[str, bytes], tmp_path: Path, name: str
):
    hub.add(REPO, files)
    right = files[name]
    hub.instead[name] = right[:-2] + bytes([right[-2] ^ 1]) + right[-1:]
    said = _error()
    assert f"{HF}/{name}: came with the hash" in said
    assert "and removed. Fetch it again" in said
    hub.instead.clear()
    assert len(parity.load(HF)) > 10


def test_a_file_that_changed_in_the_cache_is_fetched_again(
    hub: Hub, files: Mapping[str, bytes], tmp_path: Path
):
    hub.add(REPO, files)
    parity.load(HF)
    sizes = {p.stat().st_size: p for p in (tmp_path / "cache").rglob("blobs/*")}
    blob = sizes[len(files["model.safetensors"])]
    blob.write_bytes(blob.read_bytes()[:-1] + b"\1")
    assert "came with the hash" in _error()
    assert len(parity.load(HF)) > 10


def test_a_file_of_another_size_is_refused(
    hub: Hub, files: Mapping[str, bytes], tmp_path: Path
):
    hub.add(REPO, {"model.safetensors": files["model.safetensors"]})
    hub.instead["model.safetensors"] = b"<html>please log in</html>"
    assert "did not come (Consistency check failed" in _error()
    assert _cached(tmp_path) == []


def test_a_repository_that_is_not_there_or_private_is_one_line(hub: Hub):
    assert "there is no repository owner/tiny, or it is private. Check" in _error()


def test_a_gated_repository_asks_for_a_token(
    hub: Hub, files: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch
):
    hub.add(REPO, files).gated = True
    assert "is gated. Ask for access at https://huggingface.co/owner/tiny" in _error()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    said = _error()
    assert "is gated" in said
    assert "hf_wrong" not in said
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert len(parity.load(HF)) > 10


def test_a_revision_or_a_file_that_is_not_there_is_one_line(
    hub: Hub, files: Mapping[str, bytes]
):
    hub.add(REPO, files)
    assert "owner/tiny has no revision 'v9'. Check" in _error(f"{HF}@v9")
    assert "has no such file but " in _error(f"{HF}/other.bin")
    hub.add("owner/empty", {})
    assert "has no weights but nothing. Name" in _error("hf://owner/empty")
    hub.add("owner/onnx", {f"{n}.onnx": b"" for n in range(9)})
    assert "4.onnx and 4 more. Name" in _error("hf://owner/onnx")


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (500, "the Hub answered 500. Try again later"),
        (429, "the Hub answered 429. Try again later"),
        (403, "the Hub answered 403. Log in with `hf auth login`"),
        (418, "the Hub answered 418. Check the name"),
    ],
)
def test_other_refusals_are_passed_on(hub: Hub, status: int, said: str):
    hub.add(REPO, {})
    hub.status = status
    assert said in _error()


def test_without_a_network_the_cache_does_and_else_it_is_said(
    hub: Hub, files: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch
):
    hub.add(REPO, files)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "Check the network" in _error()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    first = parity.load(HF)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert differing_bits(parity.load(HF), first) == {}
    assert "the Hub cannot be asked" in _error(f"{HF}/other.bin")
    hub.status = 503  # it is there, and cannot answer
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    assert differing_bits(parity.load(HF), first) == {}


def test_shards_are_found_in_the_cache_too(
    hub: Hub, state: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
):
    hub.add(REPO, _in_shards(state))
    parity.load(HF)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert differing_bits(parity.load(HF), state) == {}


def test_a_cache_that_cannot_be_written_is_said(
    hub: Hub,
    files: Mapping[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    hub.add(REPO, files)
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
    assert "cannot be stored" in _error()


def test_without_the_library_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, call: Called, tmp_path: Path
):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    said = _error()
    assert "huggingface_hub is not installed. Install" in said
    line = call.error("convert", HF, tmp_path / "w.pth")
    assert line.endswith("pip install 'resnet-twins[hub]'`")


@pytest.mark.parametrize(
    "address",
    [
        *("hf://", "hf://owner", "hf://owner/", "hf:///name", "hf://owner/name@"),
        *("hf://owner/name/../x", "hf://owner/../x", "hf://owner/name@../../x/y"),
        *("hf://owner/name@..%2F..%2Fx", "hf://owner/name//x", "hf://o/n\n/x"),
        *("hf://owner/name/", "hf://owner/name@refs/pr"),
    ],
)
def test_an_address_that_is_none_is_one_line(address: str):
    with pytest.raises(ValueError, match=r"is no address on the Hub; write hf://"):
        parity.load(address)


def test_an_address_is_read_as_it_is_written():
    for text, expected in {
        "hf://a/b": Address("a/b"),
        "hf://a/b@v1": Address("a/b", "v1"),
        "hf://a/b@v1/x/y.bin": Address("a/b", "v1", "x/y.bin"),
        "hf://a/b/c.bin": Address("a/b", "main", "c.bin"),
        "hf://a/b@refs/pr/3/c.bin": Address("a/b", "refs/pr/3", "c.bin"),
        "timm:resnet18.a1_in1k": Address("timm/resnet18.a1_in1k"),
    }.items():
        assert parse(text) == expected
        if text.startswith("hf"):
            assert str(expected) == text


# --- the command, in a process of its own: the library reads its settings once --------


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


# --- timm's checkpoints by name, with their preprocessing -----------------------------

TIMM = "timm:resnet18.a1_in1k"


@pytest.fixture(scope="session")
def timms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What timm's own writer for the Hub makes, without what it says about photographs.

    So that these can only come from the table.
    """
    from safetensors.torch import save

    tensors = random_torch("resnet18").state_dict()
    told = {"architecture": "resnet18", "num_classes": 1000}
    weights = save({name: t.contiguous() for name, t in tensors.items()})
    return {"model.safetensors": weights, "config.json": json.dumps(told).encode()}


def test_a_name_of_timms_is_found_on_the_hub(
    hub: Hub, timms: Mapping[str, bytes], photo: Path, call: Called
):
    hub.add("timm/resnet18.a1_in1k", timms)
    model = parity.create_model("resnet18", weights=TIMM)
    images = parity.preprocess(photo, "resnet18", TIMM, framework="torch")
    assert images.shape == (1, 3, 288, 288)
    out, err = call(
        "predict", photo, "--model", "resnet18", "--weights", TIMM, "--json"
    )
    told = json.loads(out)
    assert told["weights"] == TIMM
    assert err.splitlines() == [
        f"note: {TIMM}: config.json beside it says anti_alias='none', stride_on='3x3'"
    ]
    best = resnet_spec.class_names()[int(model(images)[0].argmax())]
    for framework in ("torch", "flax"):
        assert told["top"][framework][0]["class"] == best
    small = parity.preprocess(photo, "resnet18", framework="torch")
    probability = model(small)[0].softmax(0).max().item()
    assert abs(told["top"]["torch"][0]["probability"] - probability) > 1e-4


def test_timms_weights_are_for_their_network_only(hub: Hub, call: Called, photo: Path):
    said = r"is for resnet18, not resnet34"
    for arguments in (
        ("check", "resnet34", "--weights", TIMM),
        ("predict", photo, "--model", "resnet34", "--weights", TIMM),
    ):
        assert re.search(said, call.error(*arguments))
    line = call.error("check", "resnet18", "--weights", "timm:resnet18.a1_in2k")
    assert "did you mean 'timm:resnet18.a1_in1k'" in line
    line = call.error("convert", "timm:ecaresnet50d_pruned.miil_in1k", "x.pth")
    assert "is for ecaresnet50d_pruned, which is none of the networks" in line
    assert hub.requests == []


def test_timms_checkpoint_becomes_a_folder_of_transformers_with_its_preprocessing(
    hub: Hub, timms: Mapping[str, bytes], tmp_path: Path
):
    hub.add("timm/resnet18.a1_in1k", timms)
    parity.convert(TIMM, tmp_path / "hf", to="huggingface")
    told = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    assert told["crop_size"] == {"height": 288, "width": 288}
    assert parity.load(tmp_path / "hf").metadata["source"]["name"] == TIMM


# --- there and back -------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # of theirs
@pytest.mark.parametrize("top", [True, False])
@pytest.mark.parametrize("form", ["huggingface", "timm"])
def test_what_a_card_shows_works_once_it_is_on_the_hub(
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: Any,
    top: bool,
):
    pytest.importorskip("transformers" if form == "huggingface" else "timm")
    model = random_torch(resnet_spec.get_config("resnet18").replace(include_top=top))
    folder = tmp_path / "saved"
    parity.save(folder, model, format=form)
    name = f"me/{form}-{top}"  # transformers remembers a name's commit
    hub.add(name, folder)
    # What the library has read from the environment before.
    theirs = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{repo_id}")[0]
    path = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(theirs)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + path)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    card = (folder / "README.md").read_text()
    shown = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    x = torch.ones(1, 3, 64, 64)
    results = []
    for code in shown:
        names: dict[str, Any] = {}
        exec(code.replace("OWNER/NAME", name), names)
        with torch.no_grad():
            found = names["model"].eval()(x)
        if not isinstance(found, torch.Tensor):
            found = found.logits if top else found.pooler_output
        results.append(_pooled(found))
    assert len(results) == 2
    with torch.no_grad():
        expected = _pooled(model.eval()(x))
    for found in results:
        limit = CEILINGS["float32"].ceiling
        assert deviation(found.numpy(), expected.numpy()).l2 <= limit


def _pooled(found: torch.Tensor) -> torch.Tensor:
    """Logits as they are; maps, which libraries pool or not, as their means."""
    return found if found.ndim == 2 else found.mean((2, 3))


@pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # of theirs
@pytest.mark.parametrize("form", ["huggingface", "timm"])
def test_a_saved_folder_is_uploaded_and_comes_back(
    hub: Hub, tmp_path: Path, photo: Path, form: Any
):
    config = TINY if form == "huggingface" else resnet_spec.get_config("resnet18")
    model = random_torch(config)
    folder = tmp_path / "saved"
    parity.save(folder, model, format=form, preprocessing=HOW)
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo("me/mine")
    huggingface_hub.utils.disable_progress_bars()
    try:
        api.upload_folder(repo_id="me/mine", folder_path=folder)
    finally:
        huggingface_hub.utils.enable_progress_bars()
    assert set(hub.repositories["me/mine"].revisions["main"]) == {
        path.name for path in folder.iterdir()
    }
    again = parity.create_model(config, weights="hf://me/mine")
    assert differing_bits(parity.state_dict(again), parity.state_dict(model)) == {}
    with Image.open(photo) as image:
        found = parity.preprocess(image, config, "hf://me/mine")
        expected = prepare(image.convert("RGB"), **vars(HOW))
    assert differing_bits({"": found}, {"": expected}) == {}
    (text,) = {*hub.cards}
    card = huggingface_hub.ModelCard(text)
    told = card.data.to_dict()
    assert told["library_name"] == {"huggingface": "transformers"}.get(form, form)
    assert told["pipeline_tag"] == "image-classification"
    assert "license" not in told


def test_a_wrong_token_uploads_nothing(hub: Hub, folder: Path):
    api = HfApi(endpoint=hub.url, token="hf_wrong")
    hub.add("me/mine", {})
    with pytest.raises(huggingface_hub.errors.HfHubHTTPError):
        api.upload_folder(repo_id="me/mine", folder_path=folder)
    assert hub.repositories["me/mine"].revisions["main"] == {}
