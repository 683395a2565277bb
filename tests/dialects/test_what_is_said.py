"""What is said of a file: whose it may be, and what of it is not taken."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import serialization

import parity
from parity.weights.dialects.dialect import write
from parity.weights.digest import differing_bits
from parity.weights.twins import entries_of
from resnet_spec import ResNetConfig

BASIC = ResNetConfig(block="basic", layers=(2, 1, 3), widths=(8, 16, 24), num_classes=7)


def state_of(config: ResNetConfig) -> dict[str, np.ndarray]:
    return parity.random_state(entries_of(config), seed=3)


def weights_of(state: Any) -> dict[str, np.ndarray]:
    return {n: a for n, a in state.items() if not n.endswith("num_batches_tracked")}


def in_words_of(name: str, config: ResNetConfig = BASIC) -> dict[str, np.ndarray]:
    return write(parity.DIALECTS[name], config, state_of(config))


def test_two_dialects_in_one_file_are_an_error_that_names_from(tmp_path: Path):
    path = tmp_path / "weights.pth"
    both = in_words_of("huggingface") | in_words_of("detectron2")
    torch.save({n: torch.from_numpy(a) for n, a in both.items()}, path)
    with pytest.raises(parity.CheckpointError, match="fits several dialects") as error:
        parity.load(path)
    said = str(error.value)
    assert "of huggingface" in said
    assert "of detectron2" in said
    (dialect,) = re.findall(r"as with --from ([\w-]+)", said)
    theirs = in_words_of("detectron2" if dialect == "huggingface" else "huggingface")
    found = parity.load(path, dialect=dialect, ignore=[*theirs])
    assert found.dialect == dialect
    assert differing_bits(found, state_of(BASIC)) == {}


def test_batch_counts_that_a_dialect_has_not_are_said_to_be_left_out(tmp_path: Path):
    path = tmp_path / "weights.pth"
    torch.save({n: torch.from_numpy(a) for n, a in state_of(BASIC).items()}, path)
    done = parity.convert(path, tmp_path / "out.safetensors", to="jaxnn")
    counts = len(state_of(BASIC)) - len(weights_of(state_of(BASIC)))
    assert f"left out {counts} batch counts, which jaxnn has not" in done.notes
    assert done.entries == len(weights_of(state_of(BASIC)))


def test_what_haiku_has_beside_weights_is_listed_as_dropped(tmp_path: Path):
    same = dict.fromkeys(("stem_padding", "block_padding", "pool_padding"), "same")
    config = BASIC.replace(widths=(64, 16, 24), **same)
    arrays = in_words_of("haiku", config)
    average = next(name for name in arrays if name.endswith("average"))
    at = average.removesuffix("average")
    arrays = {n.replace(".", "/"): a for n, a in arrays.items()}
    at = at.replace(".", "/")
    hidden = f"{at}hidden"
    np.savez(
        tmp_path / "w.npz",
        **arrays,  # type: ignore[arg-type]  numpy's stub takes them for allow_pickle
        **{hidden: np.ones(3, np.float32), f"{at}counter": np.int32(4)},
    )
    found = parity.load(tmp_path / "w.npz")
    assert differing_bits(weights_of(found), weights_of(state_of(config))) == {}
    (note,) = [note for note in found.notes if note.startswith("left out")]
    assert hidden.replace("/", ".") in note.replace("/", ".")
    assert "counter" in note


def test_a_training_state_of_flax_is_read_as_its_dialect(tmp_path: Path):
    config = BASIC.replace(block_padding="same", pool_padding="same")
    tree: dict[str, Any] = {"step": 7, "dynamic_scale": None}
    for name, array in in_words_of("flax-example", config).items():
        *parents, leaf = name.split(".")
        place = tree
        for part in parents:
            place = place.setdefault(part, {})
        place[leaf] = array
    tree["opt_state"] = {"0": {"trace": tree["params"]}, "1": {}}
    path = tmp_path / "checkpoint_7"
    path.write_bytes(serialization.msgpack_serialize(tree))
    found = parity.load(path)
    assert (found.dialect, found.config) == ("flax-example", config)
    assert differing_bits(weights_of(found), weights_of(state_of(config))) == {}
    assert any("left out" in note and "opt_state" in note for note in found.notes)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_arrays_of_jax_are_cast_as_numpys_are(dtype: str):
    state = state_of(BASIC)
    found = parity.cast({n: jnp.asarray(a) for n, a in state.items()}, dtype)
    assert all(isinstance(array, np.ndarray) for array in found.values())
    whole = {n for n in state if n.endswith("num_batches_tracked")}
    expected = parity.cast(state, dtype)
    assert (
        differing_bits(
            {n: a for n, a in found.items() if n not in whole},
            {n: a for n, a in expected.items() if n not in whole},
        )
        == {}
    )
    assert {found[n].dtype.name for n in found if n not in whole} == {dtype}
