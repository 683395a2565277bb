"""What one network is: a frozen, validated, JSON-round-tripping value."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Block = Literal["basic", "bottleneck"]
StrideOn = Literal["1x1", "3x3"]

EXPANSION: Mapping[str, int] = {"basic": 1, "bottleneck": 4}
"""Output channels of a block over its width (He et al. 2015, Table 1)."""


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """One residual network, independent of any framework.

    Args:
        block: ``"basic"`` (two 3x3) or ``"bottleneck"`` (1x1, 3x3, 1x1).
        layers: blocks per stage; one entry per stage.
        widths: width of each stage, in channels; the stem has ``widths[0]``.
        groups: groups of the 3x3 convolution of a bottleneck (ResNeXt).
        width_per_group: as in torchvision, the inner width of a bottleneck is
            ``int(width * width_per_group / 64) * groups``.
        stride_on: which convolution of a bottleneck carries the stride of its stage:
            ``"3x3"`` as torchvision does (v1.5) or ``"1x1"`` as in the paper (v1).
        replace_stride_with_dilation: one boolean per stage after the first; ``()`` is
            none. A stage set to true keeps its map's size and dilates its 3x3 kernels.
        in_channels: channels of the input images.
        num_classes: outputs of the linear head.
        include_top: with ``False`` the network ends after its last stage.
        zero_init_residual: start the last norm of every block at zero.
        norm_eps: added to the variance under the root.
        norm_momentum: torch's convention: ``new = (1 - m) * old + m * batch``.

    Raises:
        ValueError: a field has a value that no network can have, or two fields
            contradict each other. The message names field, value and what is allowed.
    """

    block: Block
    layers: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    groups: int = 1
    width_per_group: int = 64
    stride_on: StrideOn = "3x3"
    replace_stride_with_dilation: tuple[bool, ...] = ()
    in_channels: int = 3
    num_classes: int = 1000
    include_top: bool = True
    zero_init_residual: bool = False
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1

    def __post_init__(self) -> None:
        for field in ("layers", "widths"):
            self._as_tuple(field)
        if not self.replace_stride_with_dilation:  # (), or torchvision's None
            undilated = (False,) * (len(self.layers) - 1)
            object.__setattr__(self, "replace_stride_with_dilation", undilated)
        self._as_tuple("replace_stride_with_dilation")

        self._check("block", self.block in get_args(Block), f"one of {get_args(Block)}")
        self._check(
            "stride_on",
            self.stride_on in get_args(StrideOn),
            f"one of {get_args(StrideOn)}",
        )
        for field in ("layers", "widths"):
            values = getattr(self, field)
            self._check(
                field,
                len(values) > 0 and all(_is_count(v) for v in values),
                "one positive integer per stage",
            )
        stages = len(self.layers)
        self._check("widths", len(self.widths) == stages, f"{stages} entries")
        self._check(
            "replace_stride_with_dilation",
            len(self.replace_stride_with_dilation) == stages - 1
            and all(isinstance(v, bool) for v in self.replace_stride_with_dilation),
            f"{stages - 1} booleans, one per stage after the first",
        )
        for field in ("groups", "width_per_group", "in_channels", "num_classes"):
            self._check(field, _is_count(getattr(self, field)), "a positive integer")
        for field in ("include_top", "zero_init_residual"):
            value = getattr(self, field)
            self._check(field, isinstance(value, bool), "True or False")
        for field in ("norm_eps", "norm_momentum"):
            value = getattr(self, field)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            self._check(field, number, "a number")
            object.__setattr__(self, field, float(value))
        self._check("norm_eps", 0 < self.norm_eps < float("inf"), "a number above 0")
        self._check("norm_momentum", 0 <= self.norm_momentum <= 1, "from 0 to 1")
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.block == "basic":
            # A basic block has no inner width that groups could divide, and no 1x1
            # on its main path that could carry a stride; torchvision refuses too.
            self._check("groups", self.groups == 1, "1 in a basic block")
            wide = self.width_per_group != 64
            self._check("width_per_group", not wide, "64 in a basic block")
            on_3x3 = self.stride_on == "3x3"
            self._check("stride_on", on_3x3, "'3x3' in a basic block")
        for width in self.widths:
            if self.inner_width(width) < 1:
                raise _invalid(
                    "width_per_group",
                    self.width_per_group,
                    f"large enough to give the stage of width {width} a channel",
                )

    def _as_tuple(self, field: str) -> None:
        value = getattr(self, field)
        if not isinstance(value, tuple | list):
            raise _invalid(field, value, "a tuple")
        object.__setattr__(self, field, tuple(value))

    def _check(self, field: str, ok: bool, allowed: str) -> None:
        if not ok:
            raise _invalid(field, getattr(self, field), allowed)

    @property
    def expansion(self) -> int:
        """Output channels of a block over its stage's width."""
        return EXPANSION[self.block]

    def inner_width(self, width: int) -> int:
        """Channels of the 3x3 convolution in a block of a stage of this width."""
        return int(width * (self.width_per_group / 64.0)) * self.groups

    def replace(self, **overrides: Any) -> ResNetConfig:
        """Returns a copy with these fields changed, validated again.

        Raises:
            ValueError: a field does not exist, or the new value is not allowed.
        """
        known = [field.name for field in dataclasses.fields(self)]
        for name in overrides:
            if name not in known:
                raise ValueError(
                    f"unknown setting {name!r}; a network has {', '.join(known)}"
                )
        if "layers" in overrides and not any(self.replace_stride_with_dilation):
            overrides.setdefault("replace_stride_with_dilation", ())
        return dataclasses.replace(self, **overrides)

    def to_json(self) -> str:
        """Returns the configuration as a JSON object, one key per field."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ResNetConfig:
        """Returns the configuration that :meth:`to_json` wrote.

        Raises:
            ValueError: the text is no JSON object of a configuration's fields.
        """
        try:
            fields = json.loads(text)
            return cls(**fields)
        except TypeError as error:
            raise ValueError(f"not a ResNetConfig: {error}") from error


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _invalid(field: str, value: object, allowed: str) -> ValueError:
    return ValueError(f"{field} is {value!r}; it must be {allowed}")
