"""The table of named networks: one aligned row each, and nothing else to a variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import fields
from fnmatch import fnmatchcase
from typing import Any

from resnet_spec.config import Block, ResNetConfig, Shortcut
from resnet_spec.settings import invalid, shown
from resnet_spec.spelling import did_you_mean


def _net(
    block: Block, layers: tuple[int, ...], *parts: Mapping[str, Any], **settings: Any
) -> ResNetConfig:
    for part in reversed(parts):  # of two that say the same, the last holds
        settings = {**part, **settings}
    return ResNetConfig(block=block, layers=layers, **settings)


def _cifar(n: int, *, shortcut: Shortcut = "A") -> ResNetConfig:
    """Depth 6n + 2 (paper, section 4.2)."""
    return _net(
        "basic",
        (n, n, n),
        widths=(16, 32, 64),
        stem="3x3",
        shortcut=shortcut,
        num_classes=10,
    )


_SIGNAL: dict[str, Any] = {
    "stem": "3x3",
    "head": "signal",
    "dimensions": 1,
    "signal_width": 1000,
    "in_channels": 1,
}

# What letters in timm's names say.
_AVG: dict[str, Any] = {"shortcut": "D"}
_C: dict[str, Any] = {"stem": "deep"}
_D: dict[str, Any] = _C | _AVG
_T: dict[str, Any] = {"stem": "tiered"} | _AVG
_S: dict[str, Any] = _C | {"stem_channels": 128}
_E: dict[str, Any] = _S | _AVG
_32X4: dict[str, Any] = {"groups": 32, "width_per_group": 4}
_32X8: dict[str, Any] = {"groups": 32, "width_per_group": 8}
_32X16: dict[str, Any] = {"groups": 32, "width_per_group": 16}
_32X32: dict[str, Any] = {"groups": 32, "width_per_group": 32}
_64X4: dict[str, Any] = {"groups": 64, "width_per_group": 4}
_154: dict[str, Any] = {"shortcut": "B3", "reduce_first": 2}
_AA: dict[str, Any] = {"anti_alias": "average"}
_BLUR: dict[str, Any] = {"anti_alias": "blur"}
_ECA: dict[str, Any] = {"attention": "eca"}
_GN: dict[str, Any] = {"norm": "group"}
_SE: dict[str, Any] = {"attention": "se"}
_2S: dict[str, Any] = {"radix": 2, "anti_alias": "avd"}
_4S2X40: dict[str, Any] = {"radix": 4, "groups": 2, "width_per_group": 40}
_1S4X24: dict[str, Any] = {"radix": 1, "groups": 4, "width_per_group": 24}
_FAST: dict[str, Any] = {"anti_alias": "avd_first"}
_RS: dict[str, Any] = _SE | _D | {"attention_ratio": 0.25, "stem_pool": "conv"}

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
    "plain18":          _net("basic",     (2, 2, 2, 2), shortcut="none"),
    "plain34":          _net("basic",     (3, 4, 6, 3), shortcut="none"),
    "cifar_resnet20":   _cifar(3),
    "cifar_resnet32":   _cifar(5),
    "cifar_resnet44":   _cifar(7),
    "cifar_resnet56":   _cifar(9),
    "cifar_resnet110":  _cifar(18),
    "cifar_resnet1202": _cifar(200),
    "cifar_plain20":    _cifar(3, shortcut="none"),
    "cifar_plain32":    _cifar(5, shortcut="none"),
    "cifar_plain44":    _cifar(7, shortcut="none"),
    "cifar_plain56":    _cifar(9, shortcut="none"),
    "resnet18_1d":      _net("basic",     (2, 2, 2, 2), **_SIGNAL),
    "resnet18_conv_head": _net("basic",   (2, 2, 2, 2), head="conv", num_classes=2),
    "resnet50_conv_head": _net("bottleneck", (3, 4, 6, 3), head="conv", num_classes=2),
    "resnet50d":        _net("bottleneck",(3, 4, 6, 3), _D),
    # timm's, by its names; those above that it has too are the same.
    "resnet10t":             _net("basic",     (1, 1, 1, 1), _T),
    "resnet14t":             _net("bottleneck",(1, 1, 1, 1), _T),
    "resnet18d":             _net("basic",     (2, 2, 2, 2), _D),
    "resnet26":              _net("bottleneck",(2, 2, 2, 2)),
    "resnet26d":             _net("bottleneck",(2, 2, 2, 2), _D),
    "resnet26t":             _net("bottleneck",(2, 2, 2, 2), _T),
    "resnet34d":             _net("basic",     (3, 4, 6, 3), _D),
    "resnet50c":             _net("bottleneck",(3, 4, 6, 3), _C),
    "resnet50s":             _net("bottleneck",(3, 4, 6, 3), _S),
    "resnet50t":             _net("bottleneck",(3, 4, 6, 3), _T),
    "resnet50_gn":           _net("bottleneck",(3, 4, 6, 3), _GN),
    "resnet101c":            _net("bottleneck",(3, 4, 23, 3), _C),
    "resnet101d":            _net("bottleneck",(3, 4, 23, 3), _D),
    "resnet101s":            _net("bottleneck",(3, 4, 23, 3), _S),
    "resnet152c":            _net("bottleneck",(3, 8, 36, 3), _C),
    "resnet152d":            _net("bottleneck",(3, 8, 36, 3), _D),
    "resnet152s":            _net("bottleneck",(3, 8, 36, 3), _S),
    "resnet200":             _net("bottleneck",(3, 24, 36, 3)),
    "resnet200d":            _net("bottleneck",(3, 24, 36, 3), _D),
    "resnext50d_32x4d":      _net("bottleneck",(3, 4, 6, 3), _32X4, _D),
    "resnext101_32x4d":      _net("bottleneck",(3, 4, 23, 3), _32X4),
    "resnext101_32x16d":     _net("bottleneck",(3, 4, 23, 3), _32X16),
    "resnext101_32x32d":     _net("bottleneck",(3, 4, 23, 3), _32X32),
    "resnetblur18":          _net("basic",     (2, 2, 2, 2), _BLUR),
    "resnetblur50":          _net("bottleneck",(3, 4, 6, 3), _BLUR),
    "resnetblur50d":         _net("bottleneck",(3, 4, 6, 3), _BLUR, _D),
    "resnetblur101d":        _net("bottleneck",(3, 4, 23, 3), _BLUR, _D),
    "resnetaa34d":           _net("basic",     (3, 4, 6, 3), _AA, _D),
    "resnetaa50":            _net("bottleneck",(3, 4, 6, 3), _AA),
    "resnetaa50d":           _net("bottleneck",(3, 4, 6, 3), _AA, _D),
    "resnetaa101d":          _net("bottleneck",(3, 4, 23, 3), _AA, _D),
    "ecaresnet26t":          _net("bottleneck",(2, 2, 2, 2), _ECA, _T),
    "ecaresnet50d":          _net("bottleneck",(3, 4, 6, 3), _ECA, _D),
    "ecaresnet50t":          _net("bottleneck",(3, 4, 6, 3), _ECA, _T),
    "ecaresnetlight":        _net("bottleneck",(1, 1, 11, 3), _ECA, _AVG),
    "ecaresnet101d":         _net("bottleneck",(3, 4, 23, 3), _ECA, _D),
    "ecaresnet200d":         _net("bottleneck",(3, 24, 36, 3), _ECA, _D),
    "ecaresnet269d":         _net("bottleneck",(3, 30, 48, 8), _ECA, _D),
    "ecaresnext26t_32x4d":   _net("bottleneck",(2, 2, 2, 2), _32X4, _ECA, _T),
    "ecaresnext50t_32x4d":   _net("bottleneck",(3, 4, 6, 3), _32X4, _ECA, _T),
    "seresnet18":            _net("basic",     (2, 2, 2, 2), _SE),
    "seresnet34":            _net("basic",     (3, 4, 6, 3), _SE),
    "seresnet50":            _net("bottleneck",(3, 4, 6, 3), _SE),
    "seresnet50t":           _net("bottleneck",(3, 4, 6, 3), _SE, _T),
    "seresnet101":           _net("bottleneck",(3, 4, 23, 3), _SE),
    "seresnet152":           _net("bottleneck",(3, 8, 36, 3), _SE),
    "seresnet152d":          _net("bottleneck",(3, 8, 36, 3), _SE, _D),
    "seresnet200d":          _net("bottleneck",(3, 24, 36, 3), _SE, _D),
    "seresnet269d":          _net("bottleneck",(3, 30, 48, 8), _SE, _D),
    "seresnetaa50d":         _net("bottleneck",(3, 4, 6, 3), _SE, _AA, _D),
    "seresnext26d_32x4d":    _net("bottleneck",(2, 2, 2, 2), _32X4, _SE, _D),
    "seresnext26t_32x4d":    _net("bottleneck",(2, 2, 2, 2), _32X4, _SE, _T),
    "seresnext50_32x4d":     _net("bottleneck",(3, 4, 6, 3), _32X4, _SE),
    "seresnext101_32x4d":    _net("bottleneck",(3, 4, 23, 3), _32X4, _SE),
    "seresnext101_32x8d":    _net("bottleneck",(3, 4, 23, 3), _32X8, _SE),
    "seresnext101_64x4d":    _net("bottleneck",(3, 4, 23, 3), _64X4, _SE),
    "seresnext101d_32x8d":   _net("bottleneck",(3, 4, 23, 3), _32X8, _SE, _D),
    "seresnextaa101d_32x8d": _net("bottleneck",(3, 4, 23, 3), _32X8, _SE, _AA, _D),
    "seresnextaa201d_32x8d": _net("bottleneck",(3, 24, 36, 4), _32X8, _SE, _AA, _E),
    "senet154":              _net("bottleneck",(3, 8, 36, 3), _64X4, _SE, _S, _154),
    "resnetrs50":            _net("bottleneck",(3, 4, 6, 3), _RS),
    "resnetrs101":           _net("bottleneck",(3, 4, 23, 3), _RS),
    "resnetrs152":           _net("bottleneck",(3, 8, 36, 3), _RS),
    "resnetrs200":           _net("bottleneck",(3, 24, 36, 3), _RS),
    "resnetrs270":           _net("bottleneck",(4, 29, 53, 4), _RS),
    "resnetrs350":           _net("bottleneck",(4, 36, 72, 4), _RS),
    "resnetrs420":           _net("bottleneck",(4, 44, 87, 4), _RS),
    "resnest14d":            _net("bottleneck",(1, 1, 1, 1), _2S, _D),
    "resnest26d":            _net("bottleneck",(2, 2, 2, 2), _2S, _D),
    "resnest50d":            _net("bottleneck",(3, 4, 6, 3), _2S, _D),
    "resnest101e":           _net("bottleneck",(3, 4, 23, 3), _2S, _E),
    "resnest200e":           _net("bottleneck",(3, 24, 36, 3), _2S, _E),
    "resnest269e":           _net("bottleneck",(3, 30, 48, 8), _2S, _E),
    "resnest50d_4s2x40d":    _net("bottleneck",(3, 4, 6, 3), _4S2X40, _FAST, _D),
    "resnest50d_1s4x24d":    _net("bottleneck",(3, 4, 6, 3), _1S4X24, _FAST, _D),
}
# fmt: on


def list_models(
    pattern: str | Sequence[str] = "*", *, exclude: str | Sequence[str] = ()
) -> list[str]:
    """Returns the names of networks, in the table's order.

    Args:
        pattern: what a name must match, or several of which it must match one, with
            the wildcards of ``fnmatch``: ``"resnet*"``, ``"*50*"``.
        exclude: what it must not match.

    Raises:
        ValueError: a pattern is no text.
    """
    wanted, unwanted = _patterns("pattern", pattern), _patterns("exclude", exclude)

    def matches(name: str, patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, one) for one in patterns)

    return [n for n in _VARIANTS if matches(n, wanted) and not matches(n, unwanted)]


def _patterns(argument: str, given: str | Sequence[str]) -> Sequence[str]:
    patterns = (given,) if isinstance(given, str) else given
    several = isinstance(patterns, Sequence | Set)
    if not several or not all(isinstance(one, str) for one in patterns):
        raise invalid(argument, given, "a text with wildcards, or several")
    return tuple(patterns)


def get_config(name: str) -> ResNetConfig:
    """Returns the configuration of a named network.

    Raises:
        ValueError: there is no such network; the message has the likely ones, and all.
    """
    if not isinstance(name, str):
        raise invalid("the name of a network", name, "a text")
    if name not in _VARIANTS:
        likely = did_you_mean(name, _VARIANTS, _OTHERS_NAMES)
        raise ValueError(
            f"no network named {shown(name)};{likely} there are {', '.join(_VARIANTS)}"
        )
    return _VARIANTS[name]


_OTHERS_NAMES = {
    "resnext50": "resnext50_32x4d",
    "resnext101": "resnext101_32x8d",
    "wide_resnet50": "wide_resnet50_2",
    "wide_resnet101": "wide_resnet101_2",
    **{
        f"resnet{depth}": f"cifar_resnet{depth}"
        for depth in (20, 32, 44, 56, 110, 1202)
    },
}
"""What other libraries and papers call a network."""


def find_name(config: ResNetConfig) -> str | None:
    """Returns the name under which the table holds exactly this network, if it does."""
    return next((name for name, row in _VARIANTS.items() if row == config), None)


def describe(config: ResNetConfig) -> str:
    """Returns the name of the nearest network, with the settings that differ."""

    def differing(row: ResNetConfig) -> list[str]:
        names = [field.name for field in fields(row)]
        return [name for name in names if getattr(row, name) != getattr(config, name)]

    distances = {name: differing(row) for name, row in _VARIANTS.items()}
    name = min(distances, key=lambda name: len(distances[name]))
    if {"block", "layers", "widths"}.intersection(distances[name]):
        return f"a network of {'-'.join(map(str, config.layers))} {config.block} blocks"
    settings = [f"{field}={getattr(config, field)}" for field in distances[name]]
    return f"{name} with {', '.join(settings)}" if settings else name


def closest_name(config: ResNetConfig) -> str | None:
    """Returns the name of a network with this body, whatever its input and head."""
    rows = _VARIANTS.items()
    return next((n for n, row in rows if row.with_ends_of(config) == config), None)


def resolve(name_or_config: str | ResNetConfig, /, **overrides: Any) -> ResNetConfig:
    """Returns a configuration from a name or a configuration, with fields overridden.

    Raises:
        ValueError: the name, a field or a value is not known or not allowed.
    """
    if isinstance(name_or_config, str):
        name_or_config = get_config(name_or_config)
    if not isinstance(name_or_config, ResNetConfig):
        raise ValueError(
            f"got {shown(name_or_config)} for a network; it must be a name from "
            "resnet_spec.list_models() or a ResNetConfig"
        )
    return name_or_config.replace(**overrides)
