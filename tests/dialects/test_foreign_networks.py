"""Networks of others that have our names, and compute something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy

import parity
from parity.weights.dialects.dialect import write
from parity.weights.digest import differing_bits
from parity.weights.twins import entries_of
from resnet_spec import ResNetConfig, get_config

BASIC = ResNetConfig(block="basic", layers=(2, 2, 2, 2), widths=(8,) * 4, num_classes=7)


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Jaxnn's file of a network, as it writes it: plain, resnetaa or resnetblur."""
    path = tmp_path / "model.safetensors"
    state = parity.random_state(entries_of(BASIC), seed=3)
    arrays = write(parity.DIALECTS["jaxnn"], BASIC, state)
    safetensors.numpy.save_file(arrays, path)
    return path


@pytest.mark.parametrize("option", ["average", "blur"])
def test_no_anti_aliased_network_is_written_as_jaxnns(tmp_path: Path, option: Any):
    config = BASIC.replace(anti_alias=option)
    state = parity.random_state(entries_of(config), seed=3)
    said = f"anti_alias is '{option}', there 'none'"
    with pytest.raises(parity.CheckpointError, match=said):
        parity.save(tmp_path / "a", state, config=config, dialect="jaxnn")


def test_group_norms_of_another_eps_are_not_jaxnns(tmp_path: Path):
    config = get_config("resnet50_gn").replace(layers=(1,) * 4)
    state = parity.random_state(entries_of(config), seed=3)
    with pytest.raises(parity.CheckpointError, match="norm_eps is 1e-05, there 1e-06"):
        parity.save(tmp_path / "a", state, config=config, dialect="jaxnn-gn")


def test_of_jaxnns_file_it_is_said_that_it_is_taken_for_a_plain_one(theirs: Path):
    found = parity.load(theirs)
    assert found.config == BASIC
    assert "anti_alias" in found.guessed
    (note,) = [note for note in found.notes if "assumed" in note]
    assert "anti_alias='none'" in note


@pytest.mark.parametrize("name", ["resnetblur18", "resnetaa50"])
def test_a_config_that_tells_of_jaxnns_anti_aliasing_is_not_passed_over(
    theirs: Path, name: str
):
    (theirs.parent / "config.json").write_text(f'{{"architecture": "{name}"}}')
    with pytest.raises(parity.CheckpointError, match="jaxnn computes as no network"):
        parity.load(theirs)


def test_a_name_makes_no_network_of_ours_out_of_jaxnns(theirs: Path, tmp_path: Path):
    blurred = BASIC.replace(anti_alias="blur")
    out = tmp_path / "out.pth"
    said = "model.safetensors: anti_alias is 'blur', which jaxnn computes as no"
    with pytest.raises(parity.CheckpointError, match=said):
        parity.convert(theirs, out, config=blurred)
    with pytest.raises(parity.CheckpointError, match=said):
        parity.create_model(blurred, weights=theirs)
    assert not out.exists()
    parity.convert(theirs, out, config=BASIC)
    found, state = parity.load(out), parity.random_state(entries_of(BASIC), seed=3)
    weights = {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")}
    assert differing_bits({n: found[n] for n in weights}, weights) == {}
