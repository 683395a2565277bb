"""The table of named networks: one aligned row each, and nothing else to a variant."""

from __future__ import annotations

from typing import Any

from resnet_spec.config import Block, ResNetConfig


def _net(block: Block, layers: tuple[int, ...], **settings: Any) -> ResNetConfig:
    return ResNetConfig(block=block, layers=layers, **settings)


# fmt: off
_VARIANTS: dict[str, ResNetConfig] = {
    "resnet18":         _net("basic",     (2, 2, 2, 2)),
    "resnet34":         _net("basic",     (3, 4, 6, 3)),
    "resnet50":         _net("bottleneck",(3, 4, 6, 3)),
    "resnet101":        _net("bottleneck",(3, 4, 23, 3)),
    "resnet152":        _net("bottleneck",(3, 8, 36, 3)),
    "resnext50_32x4d":  _net("bottleneck",(3, 4, 6, 3), groups=32, width_per_group=4),
    "resnext101_32x8d": _net("bottleneck",(3, 4, 23, 3), groups=32, width_per_group=8),
    "resnext101_64x4d": _net("bottleneck",(3, 4, 23, 3), groups=64, width_per_group=4),
    "wide_resnet50_2":  _net("bottleneck",(3, 4, 6, 3), width_per_group=128),
    "wide_resnet101_2": _net("bottleneck",(3, 4, 23, 3), width_per_group=128),
    "resnet50_v1":      _net("bottleneck",(3, 4, 6, 3), stride_on="1x1"),
    "resnet101_v1":     _net("bottleneck",(3, 4, 23, 3), stride_on="1x1"),
    "resnet152_v1":     _net("bottleneck",(3, 8, 36, 3), stride_on="1x1"),
}
# fmt: on


def list_models() -> list[str]:
    """Returns the name of every network, in the table's order."""
    return list(_VARIANTS)


def get_config(name: str) -> ResNetConfig:
    """Returns the configuration of a named network.

    Raises:
        ValueError: there is no such network; the message lists the names.
    """
    if name not in _VARIANTS:
        raise ValueError(f"no network named {name!r}; there are {', '.join(_VARIANTS)}")
    return _VARIANTS[name]


def find_name(config: ResNetConfig) -> str | None:
    """Returns the name under which the table holds exactly this network, if it does."""
    return next((name for name, row in _VARIANTS.items() if row == config), None)


def describe(config: ResNetConfig) -> str:
    """Returns a network's name, with what differs if only its input or head does."""
    name = find_name(config.replace(num_classes=1000, in_channels=3, include_top=True))
    if name is None:
        return f"a network of {'-'.join(map(str, config.layers))} {config.block} blocks"
    base = get_config(name)
    differs = [
        f"{field}={getattr(config, field)}"
        for field in ("num_classes", "in_channels", "include_top")
        if getattr(config, field) != getattr(base, field)
    ]
    return f"{name} with {', '.join(differs)}" if differs else name


def resolve(name_or_config: str | ResNetConfig, **overrides: Any) -> ResNetConfig:
    """Returns a configuration from a name or a configuration, with fields overridden.

    Raises:
        ValueError: the name, a field or a value is not known or not allowed.
    """
    if isinstance(name_or_config, str):
        name_or_config = get_config(name_or_config)
    return name_or_config.replace(**overrides)
