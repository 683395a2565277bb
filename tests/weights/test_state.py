"""Weights go from twin to twin bit for bit, or not at all."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import parity
import resnet_flax
import resnet_spec
import resnet_torch
from parity.errors import CheckpointError
from parity.weights.digest import as_bits, differing_bits
from parity.weights.state import DTYPES
from parity.weights.twins import abstract_flax, abstract_torch, entries_of
from resnet_spec import ResNetConfig, get_config
from tests.support.examples import examples
from tests.support.networks import (
    TINY,
    TINY_BOTTLENECK,
    configs,
    few_of_timms,
    flax_like,
    random_torch,
)

DTYPE_NAMES = ("float32", "float64", "bfloat16", "float16")


def _random_bits(model, seed: int) -> dict[str, np.ndarray]:
    """Draws any bits at all: NaN payloads, -0.0, subnormals, counts up to 2⁶³."""
    rng = np.random.default_rng(seed)
    state = {}
    for name, entry in parity.entries(model).items():
        dtype = DTYPES[entry.dtype]
        size = int(np.prod(entry.shape)) * dtype.itemsize
        state[name] = (
            np.frombuffer(rng.bytes(size), np.uint8)
            .copy()
            .view(dtype)
            .reshape(entry.shape)
        )
    return state


def _twins(config: ResNetConfig, dtype: str) -> tuple:
    model = resnet_torch.create_model(config).to(getattr(torch, dtype))
    twin = resnet_flax.create_model(
        config, rngs=nnx.Rngs(0), param_dtype=jnp.dtype(dtype)
    )
    return model, twin


def _mode(dtype: str):
    return jax.enable_x64(True) if dtype == "float64" else nullcontext()


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
@pytest.mark.parametrize("config", [TINY, TINY_BOTTLENECK])
def test_any_bits_survive_both_ways_round(config: ResNetConfig, dtype: str):
    with _mode(dtype):
        model, twin = _twins(config, dtype)
        state = _random_bits(model, seed=1)
        parity.load_state_dict(model, state)
        assert differing_bits(state, parity.state_dict(model)) == {}
        parity.load_state_dict(twin, parity.state_dict(model))
        assert differing_bits(state, parity.state_dict(twin)) == {}
        back, _ = _twins(config, dtype)
        parity.load_state_dict(back, parity.state_dict(twin))
        assert differing_bits(state, parity.state_dict(back)) == {}


@settings(max_examples=examples(10))
@given(configs(), st.integers(0, 2**32))
def test_any_network_survives_without_data_beforehand(config: ResNetConfig, seed: int):
    model, twin = abstract_torch(config), abstract_flax(config)
    state = _random_bits(model, seed)
    for other in (model, twin):
        parity.load_state_dict(other, state)
        assert differing_bits(state, parity.state_dict(other)) == {}


@pytest.mark.parametrize("name", few_of_timms(resnet_spec.list_models()))
def test_every_named_network_survives_both_ways(name: str):
    model, twin = abstract_torch(get_config(name)), abstract_flax(get_config(name))
    state = _random_bits(model, seed=5)
    parity.load_state_dict(twin, state)
    parity.load_state_dict(model, parity.state_dict(twin))
    assert differing_bits(state, parity.state_dict(model)) == {}


def test_a_flax_twin_has_torchs_names_in_torchs_order():
    model, twin = _twins(TINY_BOTTLENECK, "float32")
    assert list(parity.state_dict(twin)) == list(model.state_dict())


def test_a_flax_twin_that_has_been_through_merge_keeps_torchs_order():
    model, twin = _twins(TINY, "float32")
    for other in (nnx.merge(*nnx.split(twin)), abstract_flax(TINY)):
        assert list(parity.entries(other)) == list(model.state_dict())


@pytest.mark.parametrize("name", few_of_timms(resnet_spec.list_models()))
def test_every_network_without_data_has_torchs_names_in_torchs_order(name: str):
    config = get_config(name)
    names = [list(parity.entries(of(config))) for of in (abstract_torch, abstract_flax)]
    assert names[0] == names[1]


def test_what_is_listed_of_a_network_is_whoever_asks_own():
    expected = parity.entries(abstract_torch(TINY))
    entries_of(TINY).clear()
    assert entries_of(TINY) == expected
    assert entries_of(TINY.replace(num_classes=9))["fc.bias"].shape == (9,)


def test_state_dict_gives_copies():
    for model in _twins(TINY, "float32"):
        before = parity.digest_of(model)
        for array in parity.state_dict(model).values():
            array[...] = 7
        assert parity.digest_of(model) == before


def test_loading_copies_and_leaves_its_source_alone():
    for model in _twins(TINY, "float32"):
        state = _random_bits(model, seed=2)
        copy = {name: array.copy() for name, array in state.items()}
        parity.load_state_dict(model, state)
        assert differing_bits(state, copy) == {}
        for array in state.values():
            array[...] = 7
        assert differing_bits(parity.state_dict(model), copy) == {}


def test_loading_keeps_the_tensors_that_an_optimiser_holds():
    model, _ = _twins(TINY, "float32")
    held = model.conv1.weight
    parity.load_state_dict(model, _random_bits(model, seed=2))
    assert model.conv1.weight is held
    assert held.requires_grad


def test_a_meta_model_has_parameters_that_learn_afterwards():
    model = abstract_torch(TINY)
    parity.load_state_dict(model, parity.random_state(parity.entries(model), seed=0))
    assert all(p.requires_grad and not p.is_meta for p in model.parameters())


def test_tensors_and_arrays_of_both_frameworks_are_taken():
    model, twin = _twins(TINY, "float32")
    parity.load_state_dict(twin, model.state_dict())
    assert parity.digest_of(twin) == parity.digest_of(model)
    of_jax = {k: jnp.asarray(v) for k, v in parity.state_dict(twin).items() if v.ndim}
    counts = {k: v for k, v in parity.state_dict(twin).items() if not v.ndim}
    parity.load_state_dict(model, of_jax | counts)
    assert parity.digest_of(twin) == parity.digest_of(model)


@pytest.mark.parametrize("which", [0, 1])
def test_every_problem_is_reported_in_one_error_and_nothing_is_loaded(which: int):
    model = _twins(TINY, "float32")[which]
    before = parity.digest_of(model)
    state = parity.state_dict(model)
    del state["bn1.bias"]
    state["fc.extra"] = np.zeros(3, np.float32)
    state["conv1.weight"] = state["conv1.weight"][:, :1]
    state["fc.bias"] = state["fc.bias"].astype(np.float64)
    state["bn1.num_batches_tracked"] = np.array(3, np.int32)
    with pytest.raises(CheckpointError) as error:
        parity.load_state_dict(model, state)
    for part in (
        "missing: bn1.bias",
        "unexpected: fc.extra",
        "conv1.weight (8, 1, 7, 7), expected (8, 3, 7, 7)",
        "fc.bias float64, expected float32",
        "bn1.num_batches_tracked int32, expected int64",
        "in_channels=1",
    ):
        assert part in str(error.value)
    assert len(error.value.problems) == 5
    assert "\n" not in str(error.value)
    assert parity.digest_of(model) == before


@pytest.mark.parametrize("which", [0, 1])
def test_values_that_are_no_weights_are_reported_with_all_the_rest(which: int):
    model = _twins(TINY, "float32")[which]
    before = parity.digest_of(model)
    state: dict = dict(parity.state_dict(model))
    del state["bn1.bias"]
    state |= {
        "bn1.weight": None,
        "conv1.weight": torch.zeros(8, 3, 7, 7, device="meta"),
        "fc.weight": torch.zeros(7, 16).to_sparse(),
        "fc.bias": np.float32(1.0),
        "layer1.0.bn1.bias": torch.zeros(8, dtype=torch.float8_e4m3fn),
        "layer1.0.bn1.weight": "text",
        3: np.zeros(3),
    }
    with pytest.raises(CheckpointError) as error:
        parity.load_state_dict(model, state)
    for problem in (
        "missing: bn1.bias",
        "no weights: bn1.weight is a NoneType",
        "no weights: conv1.weight is a tensor without data",
        "no weights: fc.weight is a tensor torch.sparse_coo",
        "no weights: layer1.0.bn1.bias is a tensor of torch.float8_e4m3fn",
        "no weights: layer1.0.bn1.weight is a str",
        "no weights: 3 is a name that is no text",
        "wrong shape: fc.bias (), expected (7,)",
    ):
        assert problem in error.value.problems
    assert len(error.value.problems) == 8
    assert parity.digest_of(model) == before


def test_arrays_of_the_other_byte_order_are_read_by_value():
    for model in _twins(TINY, "float32"):
        state = parity.state_dict(model)
        state["bn1.num_batches_tracked"] = np.array(5)
        swapped = {n: a.astype(a.dtype.newbyteorder(">")) for n, a in state.items()}
        parity.load_state_dict(model, swapped)
        assert differing_bits(parity.state_dict(model), state) == {}


def test_a_float64_twin_is_filled_bit_for_bit_outside_x64_mode_too():
    with jax.enable_x64(True):
        model, twin = _twins(TINY, "float64")
    state = _random_bits(model, seed=4)
    parity.load_state_dict(twin, state)
    assert differing_bits(parity.state_dict(twin), state) == {}


def test_a_broadcastable_bias_is_refused():
    model, twin = _twins(TINY, "float32")
    for other in (model, twin):
        state = parity.state_dict(other)
        state["fc.bias"] = np.zeros(1, np.float32)
        with pytest.raises(CheckpointError, match=r"fc.bias \(1,\), expected \(7,\)"):
            parity.load_state_dict(other, state)


def test_another_network_is_recognised():
    state = parity.state_dict(random_torch("resnet34"))
    with pytest.raises(CheckpointError, match="looks like resnet34, not resnet50") as e:
        parity.load_state_dict(abstract_torch(get_config("resnet50")), state)
    assert len(str(e.value)) < 1500  # some of hundreds of problems
    assert len(e.value.problems) > 100


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match=r"torch.nn.Module or a flax.nnx.Module"):
        parity.state_dict({"conv1.weight": 1})


@pytest.mark.parametrize("wrong", ["weights.pth", [1], None, torch.nn.Linear(2, 2)])
def test_what_is_no_mapping_is_refused_with_what_makes_one(wrong: Any):
    said = rf"got a {type(wrong).__name__}; .*parity.load\(path\) reads one"
    model = random_torch(TINY)
    for use in (
        lambda: parity.load_state_dict(model, wrong),
        lambda: parity.cast(wrong, "float16"),
        lambda: parity.adapt_in_channels(wrong, 1),
    ):
        with pytest.raises(TypeError, match=said):
            use()


def test_a_nested_state_of_flax_is_told_from_a_flat_one():
    twin = flax_like(random_torch(TINY))
    before = parity.digest_of(twin)
    said = r"is a State, with entries of its own; parity.state_dict\(model\) has flat"
    with pytest.raises(CheckpointError, match=said):
        parity.load_state_dict(twin, nnx.state(twin))
    assert parity.digest_of(twin) == before


def test_a_cast_to_what_is_no_dtype_is_refused():
    for dtype in ("int3", "int64"):
        with pytest.raises(ValueError, match=f"dtype is '{dtype}'; it must be one of"):
            parity.cast({"a": np.ones(1, np.float32)}, dtype)


@pytest.mark.filterwarnings("ignore")  # torch moves its quantisation elsewhere
def test_a_quantised_model_is_refused_in_a_sentence(tmp_path: Path):
    plain = torch.nn.Sequential(torch.nn.Linear(3, 2))
    model = torch.ao.quantization.quantize_dynamic(plain, {torch.nn.Linear})
    for use in (
        lambda: parity.state_dict(model),
        lambda: parity.entries(model),
        lambda: parity.load_state_dict(model, parity.state_dict(plain)),
        lambda: parity.save(tmp_path / "w.pth", model),
    ):
        with pytest.raises(
            TypeError, match="no plain tensor; a quantised model has no"
        ):
            use()
    with pytest.raises(CheckpointError, match="is a tuple"):
        parity.save(tmp_path / "w.pth", model.state_dict())


def test_a_flax_leaf_without_a_name_in_torch_is_refused():
    class Odd(nnx.Module):
        def __init__(self):
            self.gamma = nnx.Param(jnp.ones(3))

    with pytest.raises(ValueError, match=r"gamma has no name in torch"):
        parity.state_dict(Odd())


def test_cast_to_float64_and_back_is_exact():
    state = parity.state_dict(random_torch(TINY))
    there = parity.cast(state, "float64")
    assert {a.dtype.name for a in there.values()} == {"float64", "int64"}
    assert differing_bits(parity.cast(there, "float32"), state) == {}


def test_the_comparison_of_bits_sees_every_bit():
    a = {"w": np.array([0.0, np.nan, 1.0], np.float32)}
    for place, bit in ((0, 31), (1, 0), (2, 0)):
        b = {"w": a["w"].copy()}
        as_bits_view = b["w"].view(np.uint32)
        as_bits_view[place] ^= np.uint32(1 << bit)
        assert differing_bits(a, b) == {"w": "1 of 3 values differ"}
    assert differing_bits(a, {"w": a["w"].copy()}) == {}
    assert as_bits(a["w"])[0] == 0
    assert differing_bits(a, {}) == {"w": "only in one"}
    assert "float64" in differing_bits(a, {"w": a["w"].astype(np.float64)})["w"]
    assert "(3, 1)" in differing_bits(a, {"w": a["w"][:, None]})["w"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own
@pytest.mark.parametrize(
    "around",
    [torch.nn.DataParallel, torch.compile, torch.optim.swa_utils.AveragedModel],
)
def test_what_only_runs_a_model_is_looked_through(around: Any):
    model, other = random_torch(TINY), resnet_torch.create_model(TINY)
    wrapped = around(model)
    state = parity.state_dict(model)
    assert not differing_bits(parity.state_dict(wrapped), state)
    assert parity.entries(wrapped) == parity.entries(model)
    wrapped = around(other)
    parity.load_state_dict(wrapped, state)
    assert parity.digest_of(wrapped) == parity.digest_of(model)


@pytest.mark.parametrize("prefix", ["module.", "teacher.backbone."])
@pytest.mark.parametrize("framework", ["torch", "flax"])
def test_a_prefix_of_all_names_and_missing_counts_are_seen_to(
    prefix: str, framework: str
):
    state = parity.state_dict(random_torch(TINY))
    given = {
        prefix + name: value
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }
    make = {"torch": resnet_torch.create_model, "flax": flax_like}[framework]
    model = make(TINY) if framework == "torch" else make(random_torch(TINY))
    loaded = parity.load_state_dict(model, given)
    assert loaded.notes == (
        f"took the prefix {prefix!r} off every name",
        "it has no num_batches_tracked: set to 0",
    )
    found = parity.state_dict(model)
    assert all(
        np.array_equal(found[n], 0 if n.endswith("tracked") else state[n])
        for n in state
    )


def test_a_prefix_that_some_names_lack_is_none():
    state = parity.state_dict(random_torch(TINY))
    given = {f"module.{name}": value for name, value in state.items()}
    given["fc.weight"] = given.pop("module.fc.weight")
    with pytest.raises(CheckpointError, match=r"unexpected: module\.conv1"):
        parity.load_state_dict(resnet_torch.create_model(TINY), given)


def test_what_is_ignored_needs_no_prefix_and_has_no_say_in_it():
    model = random_torch(TINY)
    state = parity.state_dict(model)
    given: dict[str, Any] = {f"module.{name}": value for name, value in state.items()}
    given |= {"queue": np.ones(3), "epoch": "ten", "module.head.weight": np.ones(2)}
    del given["module.conv1.weight"]
    other = resnet_torch.create_model(TINY)
    before = parity.state_dict(other)
    ignore = ("queue", "epoch", "head.*", "module.fc.bias", "conv1.*", "fc.bias")
    loaded = parity.load_state_dict(other, given, ignore=ignore)
    assert loaded.notes == ("took the prefix 'module.' off every name",)
    assert set(loaded.left_out) == {"queue", "epoch", "head.weight", "module.fc.bias"}
    assert loaded.kept == ("conv1.weight", "fc.bias")
    found = parity.state_dict(other)
    for name in found:
        source = before if name in loaded.kept else state
        assert np.array_equal(found[name], source[name]), name


@pytest.mark.parametrize("ignore", ["*.num_batches_tracked", "*num_batches*"])
def test_counts_that_are_ignored_are_neither_filled_in_nor_left_out(ignore: str):
    state = parity.state_dict(random_torch(TINY))
    given = {n: v for n, v in state.items() if not n.endswith("tracked")}
    other: Any = resnet_torch.create_model(TINY)
    other.bn1.num_batches_tracked += 5
    loaded = parity.load_state_dict(other, given, ignore=ignore)
    assert loaded.left_out == loaded.notes == ()
    assert len(loaded.kept) == len(state) - len(given)
    assert other.bn1.num_batches_tracked == 5


def test_a_count_that_is_no_number_is_said_and_no_other_filled_in():
    state: dict[str, Any] = parity.state_dict(random_torch(TINY))
    given = {n: v for n, v in state.items() if not n.endswith("tracked")}
    given["bn1.num_batches_tracked"] = "many"
    with pytest.raises(CheckpointError, match=r"missing: layer1.*bn1\.num_batches_tra"):
        parity.load_state_dict(resnet_torch.create_model(TINY), given)
