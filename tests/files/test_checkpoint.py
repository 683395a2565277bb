"""States in files: tensors, values, names, shapes; and the files of this project."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

import parity
from parity.errors import CheckpointError
from parity.weights.digest import differing_bits
from parity.weights.twins import abstract_flax, abstract_torch
from resnet_spec import get_config
from tests.support.corpus import refused
from tests.support.networks import TINY, random_torch


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_rows_58_and_59_other_floats_are_kept(tmp_path: Path, tensors, dtype, suffix):
    path = tmp_path / f"weights{suffix}"
    model = random_torch(TINY).to(getattr(torch, dtype))
    expected = parity.state_dict(model)
    if suffix == ".pth":
        torch.save(model.state_dict(), path)
    else:
        safetensors.torch.save_file(model.state_dict(), path)
    state = parity.load(path)
    assert differing_bits(state, expected) == {}
    fresh = abstract_torch(TINY).to(getattr(torch, dtype))
    parity.load_state_dict(fresh, state)
    assert differing_bits(parity.state_dict(fresh), expected) == {}
    with pytest.raises(CheckpointError, match=f"{dtype}, expected float32"):
        parity.load_state_dict(abstract_flax(TINY), state)


@pytest.mark.parametrize(
    ("leaf", "said"),
    [
        (torch.zeros(2, 2).to_sparse(), "sparse"),
        (torch.zeros(3, dtype=torch.complex64), "complex64"),
        (torch.zeros(3, dtype=torch.int8), "int8"),
        (torch.zeros(3, dtype=torch.bool), "bool"),
        (torch.zeros(3, dtype=torch.float8_e4m3fn), "float8_e4m3fn"),
        (torch.zeros(3, device="meta"), "meta"),
        ("text", "a str"),
        (3, "a int"),
    ],
)
def test_what_is_no_plain_tensor_is_refused(path: Path, tensors, leaf: Any, said: str):
    torch.save({**tensors, "fc.extra": leaf}, path)
    refused(path, "fc.extra", said)


def test_row_50_a_giant_that_the_file_cannot_hold(path: Path, tensors):
    torch.save({**tensors, "fc.extra": torch.zeros(1).expand(10**6, 10**6)}, path)
    refused(path, "which the file cannot hold")


def test_rows_51_65_to_68_views_are_read_by_value(path: Path, tensors, arrays):
    odd = dict(tensors)
    odd["fc.bias"] = torch.ones(1).expand(7)
    weight = tensors["layer1.0.conv1.weight"]
    odd["layer1.0.conv1.weight"] = weight.contiguous(memory_format=torch.channels_last)
    odd["fc.weight"] = tensors["fc.weight"].t().contiguous().t().requires_grad_()
    giant = torch.randn(10**6)
    giant[:16] = tensors["layer2.0.bn1.weight"]
    odd["layer2.0.bn1.weight"] = giant[:16]
    torch.save(odd, path)
    expected = arrays | {"fc.bias": np.ones(7, np.float32)}
    state = parity.load(path)
    assert differing_bits(state, expected) == {}
    target = path.with_name("small.pth")
    parity.save(target, state)
    assert target.stat().st_size < 200_000


def test_rows_61_and_62_values_that_are_not_finite(path: Path, tensors):
    bad = {name: tensor.clone() for name, tensor in tensors.items()}
    bad["fc.weight"][0, :3] = float("nan")
    bad["fc.bias"][:2] = float("-inf")
    torch.save(bad, path)
    refused(
        path,
        "fc.weight has 3 NaN and 0 Inf",
        "fc.bias has 0 NaN and 2 Inf",
        "--allow-nonfinite",
    )
    state = parity.load(path, allow_nonfinite=True)
    assert differing_bits(state, {k: v.numpy() for k, v in bad.items()}) == {}


def test_row_63_a_negative_variance(path: Path, tensors):
    bad = {**tensors, "bn1.running_var": -tensors["bn1.running_var"]}
    torch.save(bad, path)
    refused(path, "negative variances: bn1.running_var has 8")


@pytest.mark.parametrize(
    "count",
    [torch.tensor(-1), torch.tensor([1]), torch.tensor(1.0), torch.tensor(1).float()],
)
def test_row_64_a_bad_batch_count(path: Path, tensors, count: torch.Tensor):
    torch.save({**tensors, "bn1.num_batches_tracked": count}, path)
    refused(path, "bn1.num_batches_tracked", "expected one int64 from 0")


def test_row_70_every_bit_of_a_float_survives(path: Path, tensors):
    odd = tensors["fc.bias"].clone()
    bits = [0x80000000, 1, 0x7FC00001, 0xFFFFFFFF, 0x7F800001, 0x007FFFFF, 0x3F800001]
    odd.view(torch.int32)[:] = torch.from_numpy(
        np.array(bits, np.uint32).view(np.int32)
    )
    torch.save({**tensors, "fc.bias": odd}, path)
    state = parity.load(path, allow_nonfinite=True)
    assert state["fc.bias"].view(np.uint32).tolist() == bits


# --- names and shapes --------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_row_71_prefixes_are_taken_off_and_said(path: Path, tensors, arrays, prefix):
    torch.save({prefix + name: tensor for name, tensor in tensors.items()}, path)
    state = parity.load(path)
    assert differing_bits(state, arrays) == {}
    assert state.notes == [f"took the prefix {prefix!r} off every name"]


def test_row_72_a_prefix_on_half_of_the_names_stays(path: Path, tensors):
    names = list(tensors)
    half = {("module." if i % 2 else "") + n: tensors[n] for i, n in enumerate(names)}
    torch.save(half, path)
    state = parity.load(path)
    with pytest.raises(CheckpointError, match=r"missing: .*unexpected: module\."):
        parity.load_state_dict(abstract_torch(TINY), state)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict", "ema"])
def test_row_74_a_wrapper_is_taken_off_and_said(path: Path, tensors, arrays, wrapper):
    torch.save({"epoch": 3, wrapper: tensors, "loss": 0.5}, path)
    state = parity.load(path)
    assert differing_bits(state, arrays) == {}
    assert state.notes == [f"took the state from the entry {wrapper!r}"]


def test_row_75_of_several_wrappers_one_must_be_chosen(path: Path, tensors, arrays):
    other = {name: tensor + 1 for name, tensor in tensors.items()}
    torch.save({"model": other, "ema": tensors}, path)
    refused(path, "has several states: model (as it is it is", "ema (", "--key")
    assert differing_bits(parity.load(path, key="ema"), arrays) == {}
    refused(path, "no state under the key 'best'", key="best")


def test_rows_76_77_and_81_missing_and_unexpected_entries(tmp_path: Path, tensors):
    path = tmp_path / "weights.pth"
    bad = {name: tensor for name, tensor in tensors.items() if name != "fc.bias"}
    torch.save({**bad, "fc.extra": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError) as error:
        parity.convert(path, tmp_path / "out.safetensors")
    text = str(error.value)
    assert text.startswith(f"{path}: missing: fc.bias; unexpected: fc.extra")
    assert sorted(tmp_path.iterdir()) == [path]


def test_row_78_without_any_batch_counts(path: Path, tensors):
    old = {n: t for n, t in tensors.items() if not n.endswith("num_batches_tracked")}
    torch.save(old, path)
    state = parity.load(path)
    assert "no num_batches_tracked" in state.notes[0]
    assert list(state) == list(tensors)
    counts = [v for n, v in state.items() if n.endswith("num_batches_tracked")]
    assert counts
    assert all(c.dtype == np.int64 and c.shape == () and c == 0 for c in counts)


def test_row_78_without_some_batch_counts_they_are_missing(path: Path, tensors):
    torch.save(
        {n: t for n, t in tensors.items() if n != "bn1.num_batches_tracked"}, path
    )
    with pytest.raises(CheckpointError, match=r"missing: bn1\.num_batches_tracked"):
        parity.load_state_dict(abstract_torch(TINY), parity.load(path))


def _convert_as(path: Path, name: str) -> str:
    with pytest.raises(CheckpointError) as error:
        parity.convert(path, path.with_name("out.safetensors"), config=get_config(name))
    assert not path.with_name("out.safetensors").exists()
    return str(error.value)


def test_row_79_resnet34_offered_as_resnet50(path: Path):
    torch.save(random_torch("resnet34").state_dict(), path)
    assert "looks like resnet34, not resnet50" in _convert_as(path, "resnet50")


def test_rows_80_82_and_86_say_what_would_fit(path: Path):
    state = random_torch("resnet18").state_dict()
    ten = {**state, "fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}
    torch.save(ten, path)
    assert "num_classes=10" in _convert_as(path, "resnet18")
    hwio = {**state}
    hwio["layer1.0.conv1.weight"] = state["layer1.0.conv1.weight"].permute(2, 3, 1, 0)
    torch.save(hwio, path)
    assert "HWIO" in _convert_as(path, "resnet18")
    gray = {**state, "conv1.weight": state["conv1.weight"][:, :1]}
    torch.save(gray, path)
    assert "in_channels=1" in _convert_as(path, "resnet18")


def test_rows_87_and_88_another_body_is_refused(path: Path):
    torch.save(random_torch("resnext50_32x4d").state_dict(), path)
    assert "looks like resnext50_32x4d" in _convert_as(path, "resnet50")
    state = random_torch("resnet18").state_dict()
    torch.save({**state, "conv1.weight": torch.zeros(64, 3, 3, 3)}, path)
    assert "conv1.weight (64, 3, 3, 3)" in _convert_as(path, "resnet18")
    torch.save({**state, "conv1.weight": torch.zeros(64, 3, 5, 5)}, path)
    with pytest.raises(CheckpointError, match="state of no network known here"):
        parity.convert(path, path.with_name("out.safetensors"))


def test_what_a_conversion_had_to_guess_is_not_held_against_anyone(tmp_path: Path):
    for name, looks_like in (("plain18", "A"), ("resnet50_v1", "3x3")):
        source, target = tmp_path / f"{name}.pth", tmp_path / f"{name}.safetensors"
        torch.save(random_torch(name).state_dict(), source)
        parity.convert(source, target)
        state = parity.load(target)
        assert state.config is not None
        assert looks_like in (state.config.shortcut, state.config.stride_on)
        again = tmp_path / f"{name}-again.pth"
        parity.convert(target, again, config=get_config(name))
        assert parity.load(again).config == get_config(name)
        assert parity.load(again).guessed == ()


@pytest.mark.parametrize(
    "settings",
    [
        {"anti_alias": "blur"},
        {"stem_padding": "same", "pool_padding": "same", "block_padding": "same"},
    ],
)
def test_nor_how_it_guessed_that_maps_are_halved(
    tmp_path: Path, settings: dict[str, Any]
):
    config = TINY.replace(**settings)
    source, target = tmp_path / "a.pth", tmp_path / "b.safetensors"
    torch.save(random_torch(config).state_dict(), source)
    parity.convert(source, target)
    state = parity.load(target)
    assert state.config == TINY
    assert set(settings) < set(state.guessed)
    said = tmp_path / "c.safetensors"
    parity.convert(target, said, config=config)
    assert parity.load(said).config == config
    with pytest.raises(CheckpointError, match="belongs to a network of 1-2 basic"):
        parity.convert(said, tmp_path / "d.safetensors", config=TINY)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@pytest.mark.parametrize("stem", ["7x7", "deep"])
def test_a_conversion_keeps_the_dtype_whatever_the_stem(
    tmp_path: Path, stem: str, dtype: str
):
    model = random_torch(TINY.replace(stem=stem)).to(getattr(torch, dtype))
    source, target = tmp_path / "a.pth", tmp_path / "b.safetensors"
    torch.save(model.state_dict(), source)
    parity.convert(source, target)
    assert differing_bits(parity.load(target), parity.state_dict(model)) == {}
    mixed = {**model.state_dict(), "fc.bias": torch.zeros(7)}
    torch.save(mixed, source)
    with pytest.raises(CheckpointError, match=f"fc.bias float32, expected {dtype}"):
        parity.convert(source, tmp_path / "c.safetensors")


@pytest.mark.parametrize("number", [3000, 10**9])
def test_a_number_in_a_name_builds_no_network(path: Path, tensors, number: int):
    extra = {f"layer1.{number}.conv1.weight": torch.zeros(1)}
    torch.save({**tensors, **extra}, path)
    with pytest.raises(CheckpointError, match="state of no network known here"):
        parity.convert(path, path.with_name("out.safetensors"))


def test_metadata_that_is_no_networks_is_refused_by_name(tmp_path: Path, arrays):
    path = tmp_path / "w.safetensors"
    for config, said in (
        ('{"block": "basic", "layers": [1], "new_field": 3}', "does not know"),
        ("[" * 100_000, "does not know"),
        (
            get_config("cifar_resnet1202").to_json(),
            "fewer than cifar_resnet1202 has blocks",
        ),
    ):
        metadata = {"resnet_twins": json.dumps({"config": config})}
        safetensors.numpy.save_file(arrays, path, metadata=metadata)
        with pytest.raises(CheckpointError, match=said) as error:
            parity.convert(path, tmp_path / "out.pth")
        assert str(error.value).startswith(f"{path}: ")


def test_integers_are_no_weights(path: Path, tensors):
    torch.save({**tensors, "fc.bias": torch.zeros(7, dtype=torch.int64)}, path)
    refused(path, "integers where weights should be: fc.bias")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_any_names_are_saved_as_they_are(tmp_path: Path, tensors, suffix: str):
    # Prefixes and missing counts are put right when a file is read, not when written.
    odd = {f"module.{n}": t for n, t in tensors.items() if "num_batches" not in n}
    path = tmp_path / f"w.{suffix}"
    parity.save(path, odd)
    if suffix == "pth":
        assert list(torch.load(path, weights_only=True)) == list(odd)
    assert len(parity.load(path).notes) == 2


def test_row_89_files_of_ours_know_v1_from_v15(tmp_path: Path):
    v1, path = get_config("resnet50_v1"), tmp_path / "weights.pth"
    parity.save(path, random_torch("resnet50_v1"))
    assert parity.load(path).config == v1
    assert "belongs to resnet50_v1" in _convert_as(path, "resnet50")
    found = parity.convert(path, tmp_path / "out.safetensors")
    assert found.network == "resnet50_v1"
    # Others' files do not say; then it is v1.5, as everywhere.
    torch.save(random_torch("resnet50_v1").state_dict(), tmp_path / "other.pth")
    found = parity.convert(tmp_path / "other.pth", tmp_path / "other.safetensors")
    assert found.network == "resnet50"
