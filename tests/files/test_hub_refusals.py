"""What goes wrong between here and a Hub: one line, and nothing is kept."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import parity
from parity.files import hub_bounds, hub_errors
from parity.files.hub_address import Address, parse
from parity.weights.digest import differing_bits
from tests.conftest import torchvision  # noqa: F401  before timm
from tests.support.command import Called
from tests.support.hub_server import (
    HF,
    REPO,
    Hub,
    cached,
    refused,
)

pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")

from huggingface_hub import constants


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
    assert "/model.safetensors: did not come (" in refused()
    assert cached(tmp_path) == []
    hub.cut_after = None
    assert len(parity.load(HF)) > 10


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_with_another_hash_is_refused_and_not_kept(
    hub: Hub, files: Mapping[str, bytes], tmp_path: Path, name: str
):
    hub.add(REPO, files)
    right = files[name]
    hub.instead[name] = right[:-2] + bytes([right[-2] ^ 1]) + right[-1:]
    said = refused()
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
    assert "came with the hash" in refused()
    assert len(parity.load(HF)) > 10


def test_a_file_of_another_size_is_refused(
    hub: Hub, files: Mapping[str, bytes], tmp_path: Path
):
    hub.add(REPO, {"model.safetensors": files["model.safetensors"]})
    hub.instead["model.safetensors"] = b"<html>please log in</html>"
    assert "did not come (Consistency check failed" in refused()
    assert cached(tmp_path) == []


def test_a_repository_that_is_not_there_or_private_is_one_line(hub: Hub):
    assert "there is no repository owner/tiny, or it is private. Check" in refused()


def test_a_gated_repository_asks_for_a_token(
    hub: Hub, files: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch
):
    hub.add(REPO, files).gated = True
    assert "is gated. Ask for access at https://huggingface.co/owner/tiny" in refused()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    said = refused()
    assert "is gated" in said
    assert "hf_wrong" not in said
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert len(parity.load(HF)) > 10


def test_a_revision_or_a_file_that_is_not_there_is_one_line(
    hub: Hub, files: Mapping[str, bytes]
):
    hub.add(REPO, files)
    assert "owner/tiny has no revision 'v9'. Check" in refused(f"{HF}@v9")
    assert "has no such file but " in refused(f"{HF}/other.bin")
    hub.add("owner/empty", {})
    assert "has no weights but nothing. Name" in refused("hf://owner/empty")
    hub.add("owner/onnx", {f"{n}.onnx": b"" for n in range(9)})
    assert "4.onnx and 4 more. Name" in refused("hf://owner/onnx")


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
    assert said in refused()


@pytest.mark.parametrize("kind", ["description", "GET"])
@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_hub_is_asked_again(
    hub: Hub, files: Mapping[str, bytes], kind: str, status: int
):
    hub.add(REPO, {"model.safetensors": files["model.safetensors"]})
    hub.busy[kind] = [status, status]
    assert len(parity.load(HF)) > 10
    assert hub.busy == {kind: []}


@pytest.mark.parametrize("kind", ["description", "GET"])
def test_a_hub_that_stays_busy_is_given_up(
    hub: Hub, files: Mapping[str, bytes], tmp_path: Path, kind: str
):
    hub.add(REPO, {"model.safetensors": files["model.safetensors"]})
    hub.busy[kind] = [503] * 9
    assert "the Hub answered 503. Try again later" in refused()
    assert len(hub.busy[kind]) == 6
    assert cached(tmp_path) == []


@pytest.mark.parametrize("after", ["0", "7", "600", "soon"])
def test_it_is_asked_again_when_it_says(
    hub: Hub,
    files: Mapping[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    after: str,
):
    slept = []
    monkeypatch.setattr(hub_bounds.time, "sleep", slept.append)
    hub.add(REPO, {"model.safetensors": files["model.safetensors"]})
    hub.busy["description"], hub.retry_after = [503, 503], after
    assert len(parity.load(HF)) > 10
    expected = {"0": [0, 0], "7": [7, 7], "600": [30, 30], "soon": [1, 2]}
    assert slept == expected[after]


@pytest.mark.parametrize("told", [True, False])
def test_more_than_there_can_be_is_not_taken(
    hub: Hub,
    files: Mapping[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    told: bool,
):
    hub.add(REPO, {"model.safetensors": files["model.safetensors"]})
    size = len(files["model.safetensors"])
    hub.unending = 0 if told else 2**27
    most = size - 1 if told else 2**24
    monkeypatch.setattr("parity.files.hub.MAX_BYTES", most)
    assert f"bytes, and at most {most} are taken. Check that it" in refused()
    assert cached(tmp_path) == []
    assert hub.sent < 2**26


def test_a_description_is_bounded_by_less(
    hub: Hub, files: Mapping[str, bytes], tmp_path: Path
):
    large = b'{"a": "' + bytes(2**22) + b'"}'
    hub.add(REPO, {**files, "config.json": large})
    assert "config.json: sends 4194" in refused()
    assert cached(tmp_path) == []


def test_all_parts_together_are_bounded(
    hub: Hub, files: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch
):
    index = b'{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}'
    weights = files["model.safetensors"]
    parts = {"1.safetensors": weights, "2.safetensors": weights + b" "}
    hub.add(REPO, {"model.safetensors.index.json": index, **parts})
    monkeypatch.setattr("parity.files.hub.MAX_BYTES", 2 * len(weights))
    assert "/2.safetensors: sends " in refused()


@pytest.mark.parametrize("what", ["_FILE", "_ANSWER"])
def test_a_hub_that_only_drips_is_given_up(
    hub: Hub,
    files: Mapping[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
):
    hub.add(REPO, {"model.safetensors": files["model.safetensors"]})
    hub.drips = True
    hub.described_slowly = what == "_ANSWER"
    monkeypatch.setattr(f"parity.files.hub.{what}", 0.6)
    assert "is not complete after 1 s. Check the network, and call again" in refused()


SECRET = "s3cr3t%2Fw"


@pytest.mark.parametrize("state", ["no commit", "nobody", "busy", "no address", "cut"])
def test_a_password_of_a_mirror_is_in_no_message(
    hub: Hub,
    files: Mapping[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    state: str,
):
    hub.add(REPO, {"model.safetensors": files["model.safetensors"]})
    host = hub.url.partition("//")[2]
    place = {"nobody": "127.0.0.1:9", "no address": "127.0.0.1:x"}.get(state, host)
    monkeypatch.setenv("HF_ENDPOINT", f"http://user:{SECRET}@{place}")
    hub.without_commit = state == "no commit"
    hub.status = 503 if state == "busy" else 200
    hub.cut_after, hub.always_cut = (0 if state == "cut" else None), True
    said = refused()
    assert "s3cr3t" not in said
    assert "user:" not in said


@pytest.mark.parametrize(
    "text",
    [
        f"no answer from http://user:{SECRET}@host:1/x in time",
        "no answer from http://user:s3cr3t/w@host:1/x in time",
        "no answer from http://another:n0ne@host:1/x in time",
        "no answer from http://host:1/x in time",
    ],
)
def test_what_the_library_says_is_passed_on_without_passwords(
    monkeypatch: pytest.MonkeyPatch, text: str
):
    monkeypatch.setenv("HF_ENDPOINT", f"http://user:{SECRET}@host:1")

    def fail() -> None:
        with hub_errors.explained(parse(HF)):
            raise OSError(text)

    with pytest.raises(hub_errors.UnreachableError) as error:
        fail()
    assert "(no answer from http://host:1/x in time)" in str(error.value)


def test_without_a_network_the_cache_does_and_else_it_is_said(
    hub: Hub, files: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch
):
    hub.add(REPO, files)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "Check the network" in refused()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    first = parity.load(HF)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert differing_bits(parity.load(HF), first) == {}
    assert "the Hub cannot be asked" in refused(f"{HF}/other.bin")
    hub.status = 503  # it is there, and cannot answer
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    assert differing_bits(parity.load(HF), first) == {}


def test_a_cache_that_cannot_be_written_is_said(
    hub: Hub,
    files: Mapping[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    hub.add(REPO, files)
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
    assert "cannot be stored" in refused()


def test_without_the_library_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, call: Called, tmp_path: Path
):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    said = refused()
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
