"""Which settings of a network go together."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from resnet_spec.attention import split_squeezed
from resnet_spec.channels import Channels
from resnet_spec.settings import invalid, is_count

COUNT = "a positive integer below 2**31"

PADDINGS = ("stem_padding", "block_padding", "pool_padding")


class Combinations(Channels):
    """What a configuration refuses of settings that are allowed one by one."""

    # What the configuration has.
    stride_on: Any
    norm: Any
    norm_groups: int

    def _check_combinations(self) -> None:
        self._check_head()
        self._check_stem()
        self._check_maps()
        outs = [self.stem_out, *(width * self.expansion for width in self.widths)]
        narrowing = any(b < a for a, b in pairwise(outs))
        if self.shortcut == "A" and narrowing:
            raise invalid("shortcut", "A", "another one where widths become smaller")
        if self.block == "basic":
            # A basic block has no inner width that groups could divide, and no 1x1
            # on its main path that could carry a stride; torchvision refuses too.
            self._check("groups", self.groups == 1, "1 in a basic block")
            self._check("radix", self.radix == 0, "0 in a basic block")
            wide = self.width_per_group != 64
            self._check("width_per_group", not wide, "64 in a basic block")
            on_3x3 = self.stride_on == "3x3"
            self._check("stride_on", on_3x3, "'3x3' in a basic block")
        for width in self.widths:
            if self.inner_width(width) < 1:
                raise invalid(
                    "width_per_group",
                    self.width_per_group,
                    f"large enough to give the stage of width {width} a channel",
                )
        self._check_channels()

    def _check_stem(self) -> None:
        if self.stem_channels is not None:
            self._check("stem_channels", is_count(self.stem_channels), COUNT)
            if self.stem_channels == self.widths[0]:  # one network, one configuration
                object.__setattr__(self, "stem_channels", None)
        if self.stem in ("deep", "tiered"):
            field = "widths" if self.stem_channels is None else "stem_channels"
            least = 2 if self.stem == "deep" else 8
            even = self.stem_out % 2 == 0 and self.stem_out >= least
            allowed = f"even at first, {least} at least: a {self.stem} stem has half"
            self._check(field, even, allowed)
        if self.stem == "3x3":
            of_maximum = self.stem_pool == "max"
            self._check(
                "stem_pool", of_maximum, "'max' with stem '3x3', without a pool"
            )

    def _check_channels(self) -> None:
        if self.attention != "se":
            unused = self.attention_ratio == 1 / 16
            self._check(
                "attention_ratio", unused, f"0.0625 with attention {self.attention!r}"
            )
        if self.norm == "batch":
            unused = self.norm_groups == 32
            self._check("norm_groups", unused, "32 with norm 'batch', which has none")
        if self.radix:
            self._check("reduce_first", self.reduce_first == 1, "1 with a radix")
        divided = [self.stem_out, *(w * self.expansion for w in self.widths)]
        if self.stem in ("deep", "tiered"):
            divided += self.stem_widths
        for width in self.widths:
            inner = self.inner_width(width)
            first = (width if self.block == "basic" else inner) // self.reduce_first
            self._check("reduce_first", first > 0, "small enough to leave a channel")
            if self.block == "bottleneck":
                divided.append(inner)
            divided.append(first)
            fits = first % self.groups == 0
            allowed = f"such that {self.groups} groups divide {first}"
            self._check("reduce_first", fits, allowed)
            if self.radix:
                divided += self._check_splits(inner)
        if self.norm == "group":
            odd = [n for n in divided if n % self.norm_groups]
            self._check("norm_groups", not odd, f"a divisor of {(*odd, 0)[0]}")

    def _check_splits(self, inner: int) -> list[int]:
        """Checks a split attention; returns the channels of its norms."""
        squeezed, groups = split_squeezed(inner, self.radix), self.groups
        fits = inner % (groups * self.radix) == 0
        allowed = f"such that, times {groups} groups, it divides {inner}"
        self._check("radix", fits, allowed)
        fits = squeezed % groups == 0
        allowed = f"a divisor of {squeezed} with radix {self.radix}"
        self._check("groups", fits, allowed)
        return [inner * self.radix, squeezed]

    def _check_head(self) -> None:
        if self.head != "linear":
            dimensions = {"signal": 1, "conv": 2}[self.head]
            fits = self.dimensions == dimensions
            self._check("dimensions", fits, f"{dimensions} with head {self.head!r}")
        if self.head == "signal":
            positive = is_count(self.signal_width)
            self._check("signal_width", positive, "a positive integer")
            wide = self.signal_positions > 0
            self._check("signal_width", wide, "wide enough for a pool of width 4")
        else:
            unused = self.signal_width is None
            self._check("signal_width", unused, "None without a signal head")

    def _check_maps(self) -> None:
        if self.stem == "3x3":
            for field in ("stem_padding", "pool_padding"):
                of_torch = getattr(self, field) == "torch"
                self._check(
                    field, of_torch, "'torch' with stem '3x3', which halves no map"
                )
        if self.anti_alias == "none":
            return
        if self.anti_alias in ("avd", "avd_first"):
            for field, one in (("block", "bottleneck"), ("stride_on", "3x3")):
                value = getattr(self, field)
                allowed = f"'none', 'average' or 'blur' with {field} {value!r}"
                self._check("anti_alias", value == one, allowed)
            return
        self._check("anti_alias", self.radix == 0, "'none' or avd with a radix")
        others = {
            "stem": self.stem == "3x3",
            "head": self.head != "linear",
            "dimensions": self.dimensions == 1,
            "stride_on": self.stride_on == "1x1",
            **{field: getattr(self, field) == "same" for field in PADDINGS},
        }
        for field, other in others.items():
            allowed = f"'none' with {field} {getattr(self, field)!r}"
            self._check("anti_alias", not other, allowed)
