"""What a network gives by its other methods is judged as its result is."""

from __future__ import annotations

from typing import Any

import pytest

import parity
from parity.images import random_images
from tests.support.networks import TINY, flax_like, random_torch
from tests.support.pairs import Mine, Theirs, compared, pooled

IMAGES = random_images((2, 3, 33, 40), seed=1)

WRONG = {
    "features": "features:stem",
    "feature_maps": "feature_maps:0",
    "forward_features": "forward_features",
    "forward_head": "forward_head",
    "forward_head(pre_logits)": "forward_head(pre_logits)",
}


def _louder(found: Any) -> Any:
    if isinstance(found, dict):
        return {name: _louder(part) for name, part in found.items()}
    return [*map(_louder, found)] if isinstance(found, list) else 1.001 * found


def _spoil(model: Any, ask: str) -> None:
    """Makes what a method gives a thousandth larger; the network's result stays."""
    right = type(model)
    name, option = ask.rstrip(")").partition("(")[::2]

    def whole(self: Any, x: Any) -> Any:
        return right.forward_head(self, right.forward_features(self, x))

    def wrong(self: Any, x: Any, pre_logits: bool = False) -> Any:
        how = {"pre_logits": pre_logits} if name == "forward_head" else {}
        found = getattr(right, name)(self, x, **how)
        return _louder(found) if pre_logits == bool(option) else found

    call = "forward" if hasattr(model, "forward") else "__call__"
    model.__class__ = type("Wrong", (right,), {call: whole, name: wrong})


@pytest.mark.parametrize("where", ["torch", "Flax"])
@pytest.mark.parametrize("ask", WRONG)
def test_maps_that_only_another_method_gives_are_judged(ask: str, where: str):
    model = random_torch(TINY)
    twin = flax_like(model)
    _spoil(model if where == "torch" else twin, ask)
    found = parity.check(model, twin, IMAGES, gates=("G2",))
    assert not found.ok
    failures = [row.name for row in found.gate("G2").failures]
    assert failures[0] == WRONG[ask]
    if ask != "forward_features":  # of which the head's answers follow
        assert all(name.startswith(ask) for name in failures)


def test_a_network_without_a_top_is_asked_for_the_same():
    model = random_torch(TINY.replace(include_top=False))
    found = parity.check(model, flax_like(model), IMAGES, gates=("G2",))
    assert found.ok, found.verdict()


@pytest.mark.usefixtures("loose")
def test_a_head_is_asked_only_where_both_networks_give_what_it_takes():
    class TheirHead(Theirs):
        def forward_head(self, x: Any) -> Any:
            return pooled(self, x)  # a map, and no logits

    class MyHead(Mine):
        def forward_head(self, x: Any) -> Any:
            return pooled(self, x)

    found = compared(TheirHead(pooled), MyHead(pooled), gates=("G2",))
    assert found.ok, found.verdict()
