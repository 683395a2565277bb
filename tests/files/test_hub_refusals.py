"""What goes wrong between here and a Hub: one line, and nothing is kept."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import parity
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
