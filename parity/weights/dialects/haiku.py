"""DeepMind's Haiku, hk.nets.ResNet: its two dicts, joined as params/ and state/."""

from __future__ import annotations

from parity.weights.dialects.dialect import Dialect
from parity.weights.dialects.places import Place
from resnet_spec import ResNetConfig

_DEPTHS = {
    ("basic", 8): 18,
    ("basic", 16): 34,
    ("bottleneck", 16): 50,
    ("bottleneck", 33): 101,
    ("bottleneck", 50): 152,
    ("bottleneck", 66): 200,
}


def path(place: Place) -> str:
    """Returns a layer's path, without the network's own name."""
    leaf = place.choose(conv="conv", norm="batchnorm")
    if place.part == "stem":
        return f"initial_{leaf}"
    if place.part == "head":
        return "logits"
    block = f"block_group_{place.stage}.~.block_{place.block}.~"
    if place.part == "projection":
        return f"{block}.shortcut_{leaf}"
    return f"{block}.{leaf}_{place.index}"


def scope(config: ResNetConfig) -> str:
    """Returns the name of the network's class."""
    depth = _DEPTHS.get((config.block, sum(config.layers)), "")
    return f"res_net{depth}.~."


DIALECT = Dialect(
    name="haiku",
    what='Haiku, hk.nets.ResNet: names "params/MODULE/LEAF" and "state/MODULE/LEAF"',
    path=path,
    leaves={
        "conv.weight": "params.{}.w",
        "linear.weight": "params.{}.w",
        "linear.bias": "params.{}.b",
        "norm.weight": "params.{}.scale",
        "norm.bias": "params.{}.offset",
        "norm.running_mean": "state.{}.~.mean_ema.average",
        "norm.running_var": "state.{}.~.var_ema.average",
    },
    formats=("npz",),
    kernel="HWIO",
    linear="IO",
    scope=scope,
    statistics=(1, 1, 1, -1),
    beside=("state.*.~.*_ema.hidden", "state.*.~.*_ema.counter"),
    slashed=True,
    only={
        "groups": (1,),
        "width_per_group": (64,),
        "stem_padding": ("same",),
        "block_padding": ("same",),
        "pool_padding": ("same",),
    },
)
