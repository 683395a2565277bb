"""Networks and states for tests: small, and with nothing default in them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import strategies as st

import parity
import resnet_spec
import resnet_torch
from parity.weights.twins import abstract_flax
from resnet_spec import ResNetConfig, get_config

TORCHVISION_NAMES = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("wide_resnet50_2", "wide_resnet101_2"),
)

_OTHERS = ("cifar_*", "plain*", "resnet18_1d", "*_v1", "*_conv_head", "resnet50d")
TIMMS = frozenset(resnet_spec.list_models(exclude=(*TORCHVISION_NAMES, *_OTHERS)))
"""Names that only timm's module has; resnet50d is tried with those of the papers."""

_MOST_WEIGHTS = 80_000_000

_QUICK = (
    *("resnet10t", "resnet50_gn", "resnetblur18", "resnetrs50", "ecaresnet26t"),
    "resnest14d",
)
"""Of timm's names, those that are tried at full size with every change."""


def few_of_timms(names: Iterable[str]) -> list[Any]:
    """Leaves most of timm's names, whose parts others have, to the exhaustive tests."""
    timms = TIMMS.difference(_QUICK)
    most = pytest.mark.exhaustive
    return [pytest.param(n, marks=most if n in timms else ()) for n in names]


def without_large_ones(names: Iterable[str]) -> list[Any]:
    """Leaves out the largest, of another width but the same parts, and most of timm's.

    A few of these are tried in CI.
    """

    def marks(name: str) -> Any:
        timms = name in TIMMS.difference(_QUICK)
        if timms or get_config(name).weight_count > _MOST_WEIGHTS:
            return pytest.mark.exhaustive
        return pytest.mark.slow if name in _QUICK and name != "resnet10t" else ()

    return [pytest.param(name, marks=marks(name)) for name in names]


def uneven(config: ResNetConfig, height: int, width: int) -> tuple[int, int]:
    """Returns such a size, or the next one that the network takes."""
    for rows in range(height, height + 64):
        for columns in range(width, width + 64):
            with suppress(ValueError):
                config.check_size(rows, columns)
                if rows != columns:
                    return rows, columns
    raise AssertionError(f"no size fits {config}")


TINY = ResNetConfig(block="basic", layers=(1, 2), widths=(8, 16), num_classes=7)
TINY_BOTTLENECK = ResNetConfig(
    block="bottleneck", layers=(1, 2), widths=(8, 16), num_classes=7, groups=2
)

DROPPING = ResNetConfig(
    block="basic",
    layers=(1, 1, 2),
    widths=(8, 8, 16),
    num_classes=7,
    drop_path_rate=0.5,
    drop_block_rate=0.3,
)
"""Parts of it are dropped in training."""


@st.composite
def configs(draw: st.DrawFn) -> ResNetConfig:
    """Draws small networks over every setting."""
    stages = draw(st.integers(1, 3))
    block: Any = draw(st.sampled_from(["basic", "bottleneck"]))
    head: Any = draw(st.sampled_from(["linear", "linear", "signal", "conv"]))

    def per_stage(values: st.SearchStrategy[Any], count: int) -> tuple[Any, ...]:
        return tuple(draw(st.lists(values, min_size=count, max_size=count)))

    settings: dict[str, Any] = {
        "stem": draw(st.sampled_from(["7x7", "3x3", "deep", "tiered"])),
        "shortcut": draw(st.sampled_from(["A", "B", "B3", "C", "D", "none"])),
        "dimensions": {"signal": 1, "conv": 2}.get(head) or draw(st.integers(1, 2)),
    }
    widths = per_stage(st.sampled_from([4, 6, 10]), stages)
    if settings["shortcut"] == "A":
        widths = tuple(sorted(widths))
        settings["stem"] = draw(st.sampled_from(["7x7", "3x3", "deep"]))
    else:
        least = 8 if settings["stem"] == "tiered" else 4
        settings["stem_channels"] = draw(st.sampled_from([least, 8, 12]))
    dilated = per_stage(st.booleans(), stages - 1)
    settings["replace_stride_with_dilation"] = dilated
    settings["attention"] = draw(st.sampled_from(["none", "none", "se", "eca"]))
    if settings["attention"] == "se":
        settings["attention_ratio"] = draw(st.sampled_from([1 / 16, 0.25, 0.3, 1.0]))
    if settings["stem"] != "3x3":
        settings["stem_pool"] = draw(st.sampled_from(["max", "max", "conv"]))
    if head == "signal":
        settings["signal_width"] = draw(st.integers(64, 160))
    paddings = ["block_padding"]
    if settings["stem"] != "3x3":
        paddings += ["stem_padding", "pool_padding"]
    if block == "bottleneck":
        settings |= {
            "groups": draw(st.sampled_from([1, 2, 3])),
            "width_per_group": draw(st.sampled_from([32, 64, 96])),
            "stride_on": draw(st.sampled_from(["1x1", "3x3"])),
        }
    anti_alias: Any = draw(st.sampled_from(["none", "none", "average", "blur"]))
    if (
        settings["stem"] == "3x3"
        or settings["dimensions"] == 1
        or head != "linear"
        or settings.get("stride_on") == "1x1"
    ):
        anti_alias = "none"
    if anti_alias == "none":
        for field in paddings:
            settings[field] = draw(st.sampled_from(["torch", "same"]))
    config = ResNetConfig(
        block=block,
        layers=per_stage(st.integers(1, 2), stages),
        widths=widths,
        head=head,
        conv_bias=draw(st.booleans()),
        anti_alias=anti_alias,
        in_channels=draw(st.sampled_from([1, 3, 4])),
        num_classes=draw(st.integers(1, 11)),
        include_top=draw(st.booleans()),
        norm_eps=draw(st.sampled_from([1e-3, 1e-5, 1.001e-5])),
        norm_momentum=draw(st.sampled_from([0.0, 0.1, 0.9, 1.0])),
        **settings,
    )
    avd = draw(st.sampled_from(["none", "avd", "avd_first"]))
    for more in (
        {"radix": draw(st.sampled_from([0, 0, 1, 2]))},
        {} if config.anti_alias != "none" else {"anti_alias": avd},
        {"reduce_first": draw(st.sampled_from([1, 1, 2]))},
        draw(st.sampled_from([{}, {}, {"norm": "group", "norm_groups": 2}])),
    ):
        with suppress(ValueError):  # of channels that it does not divide
            config = config.replace(**more)
    return config


@st.composite
def configs_with_images(
    draw: st.DrawFn, *, n: int = 2
) -> tuple[ResNetConfig, np.ndarray]:
    """Draws a network and float64 images that fit it, even, odd and not square."""
    config = draw(configs())
    if config.head == "conv":
        height, width = draw(st.sampled_from([(6, 8), (8, 6), (4, 12), (3, 16)]))
        scale = 2 ** (config.halvings + 1)
        # Halving rounds up, so a size may be smaller by less than the scale.
        less = draw(st.integers(0, scale - 1)), draw(st.integers(0, scale - 1))
        size = (height * scale - less[0], width * scale - less[1])
    elif config.head == "signal":
        size = (1, config.signal_width or 0)
    elif config.anti_alias == "average":
        scale = 1 << config.halvings
        sides = [side for side in range(33, 51) if (side + 1) % scale < 4]
        size = (draw(st.sampled_from(sides)), draw(st.sampled_from(sides)))
    else:
        side = st.integers(33, 48)
        size = (draw(side) if config.dimensions == 2 else 1, draw(side))
    return config, images(config, *size, n=n, seed=draw(st.integers(0, 9)))


def images(
    config: ResNetConfig, height: int, width: int, *, n: int = 2, seed: int = 0
) -> np.ndarray:
    """Draws float64 images (n, c, h, w)."""
    shape = (n, config.in_channels, height, width)
    return np.random.default_rng(seed).standard_normal(shape)


def random_torch(config: ResNetConfig | str, *, seed: int = 0) -> Any:
    """Returns a torch twin in float32, every parameter and buffer random."""
    with torch.device("meta"):
        model = resnet_torch.create_model(config)
    state = parity.random_state(parity.entries(model), seed=seed)
    parity.load_state_dict(model, state)
    return model


def flax_like(model: Any, dtype: str = "float32") -> Any:
    """Returns a Flax twin with the same state; float64 needs x64 mode."""
    twin = abstract_flax(model.config, param_dtype=dtype)
    twin.train()
    parity.load_state_dict(twin, parity.cast(parity.state_dict(model), dtype))
    return twin


def run_flax(model: nnx.Module, x: np.ndarray) -> tuple[np.ndarray, nnx.Module]:
    """Runs a Flax model, jitted, on images (n, c, h, w); returns the model after it."""
    graph, tree = nnx.split(model)

    @jax.jit
    def forward(tree: nnx.State, x: jax.Array) -> tuple[jax.Array, nnx.State]:
        model = nnx.merge(graph, tree)
        return model(x), nnx.state(model)  # type: ignore[operator]

    y, tree = forward(tree, jnp.asarray(x.transpose(0, 2, 3, 1)))
    y = np.asarray(y)
    return (y.transpose(0, 3, 1, 2) if y.ndim == 4 else y), nnx.merge(graph, tree)
