"""What shapes show of a network, and what they do not."""

from __future__ import annotations

from typing import Any

import pytest

import parity
from parity.weights.identify import guessed, identify
from parity.weights.twins import abstract_torch
from resnet_spec import ResNetConfig
from tests.support.networks import TINY

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


def _identified(config: ResNetConfig) -> ResNetConfig | None:
    entries = parity.entries(abstract_torch(config))
    return identify({name: entry.shape for name, entry in entries.items()})
