"""What shapes show of a network, and what they do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import parity
from parity.weights.identify import guessed, identify
from parity.weights.names import COUNTER
from parity.weights.twins import abstract_torch
from resnet_spec import ResNetConfig
from tests.support.networks import TINY, random_torch

MAPS = ("block_padding", "stem_padding", "pool_padding", "anti_alias")


@pytest.mark.parametrize(
    ("settings", "hidden"),
    [
        ({}, MAPS),
        ({"stem": "deep"}, MAPS),
        ({"stem": "3x3"}, MAPS[:1]),
        ({"head": "conv"}, MAPS[:3]),
        ({"dimensions": 1}, MAPS[:3]),
    ],
)
def test_how_maps_are_halved_is_guessed_where_a_network_has_the_choice(
    settings: dict[str, Any], hidden: tuple[str, ...]
):
    config = TINY.replace(**settings)
    assert tuple(name for name in guessed(config) if name in MAPS) == hidden
    for field in hidden:
        other = config.replace(**{field: "blur" if field == "anti_alias" else "same"})
        assert _identified(other) == _identified(config) == config


@pytest.mark.parametrize(
    ("settings", "hidden"),
    [
        ({"attention": "se"}, "attention_ratio"),
        ({"attention": "se", "attention_ratio": 0.25, "widths": (32, 64)}, ""),
        ({"attention": "eca", "stem": "tiered", "stem_channels": 16}, ""),
        ({"stem": "deep", "stem_channels": 16, "stem_pool": "conv"}, ""),
        ({"shortcut": "B3", "reduce_first": 2}, ""),
        ({"norm": "group", "widths": (32, 64)}, "norm_groups"),
        (
            {"block": "bottleneck", "groups": 4, "reduce_first": 2, "shortcut": "D"},
            "stride_on",
        ),
    ],
)
def test_parts_are_read_off_names_and_shapes(settings: dict[str, Any], hidden: str):
    config = TINY.replace(**settings)
    assert _identified(config) == config
    assert not hidden or hidden in guessed(config)


@pytest.mark.parametrize(
    "wrong",
    [
        {"layer1.0.se.fc1.weight": (8, 8, 1, 1)},  # one of two
        {"layer1.0.se.other.weight": (8, 8, 1, 1)},
        {f"layer1.0.se.fc{i}.weight": (9, 8, 1, 1) for i in (1, 2)},  # of no ratio
    ],
)
def test_attention_of_another_kind_is_no_network_here(wrong: dict[str, Any]):
    shapes = {k: e.shape for k, e in parity.entries(abstract_torch(TINY)).items()}
    assert identify(shapes) == TINY
    assert identify(shapes | wrong) is None


@pytest.mark.parametrize("lost", ["running_mean", "running_var", COUNTER])
def test_norms_that_have_some_of_their_statistics_are_batch_norms(lost: str):
    config = TINY.replace(widths=(32, 64))
    entries = parity.entries(abstract_torch(config))
    statistics = {"running_mean", "running_var", COUNTER}
    for left in ({lost}, statistics - {lost}):
        shapes = {
            name: entry.shape
            for name, entry in entries.items()
            if name.rpartition(".")[2] not in statistics - left
        }
        assert identify(shapes) == config


@pytest.mark.parametrize(
    ("settings", "groups"),
    [
        ({"norm_groups": 8}, 8),
        ({"norm_groups": 2}, 8),  # a guess, and it is said
        ({"norm_groups": 2, "widths": (10, 20)}, 2),
        ({"norm_groups": 32, "widths": (32, 96)}, 32),
        ({"norm_groups": 16, "stem": "deep", "widths": (32, 64)}, 16),
        ({"norm_groups": 16, "stem": "deep", "widths": (64, 64)}, 32),
    ],
)
def test_group_norms_of_narrow_networks_have_as_many_groups_as_fit(
    tmp_path: Path, settings: dict[str, Any], groups: int
):
    config = TINY.replace(norm="group", **settings)
    found = _identified(config)
    assert found is not None
    assert found == config.replace(norm_groups=groups)
    assert "norm_groups" in guessed(found)
    path = tmp_path / "w.pth"
    torch.save(random_torch(config).state_dict(), path)
    state = parity.load(path)
    assert f"are GroupNorm of {groups} groups, not BatchNorm" in str(state.notes)
    model = parity.create_model(config, weights=path)
    assert model.config == config


def test_parameters_alone_are_not_taken_for_a_batch_norms_state(tmp_path: Path):
    path = tmp_path / "w.pth"
    torch.save(dict(random_torch(TINY).named_parameters()), path)
    with pytest.raises(parity.CheckpointError, match="or only parameters were saved"):
        parity.create_model(TINY, weights=path)


def _identified(config: ResNetConfig) -> ResNetConfig | None:
    entries = parity.entries(abstract_torch(config))
    return identify({name: entry.shape for name, entry in entries.items()})
