"""What one network is: a frozen, validated, JSON-round-tripping value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from resnet_spec.attention import ATTENTION
from resnet_spec.combinations import COUNT, PADDINGS, Combinations
from resnet_spec.counting import weight_count
from resnet_spec.plan import chosen
from resnet_spec.settings import MOST, as_plain, invalid, is_count, shown
from resnet_spec.spelling import did_you_mean

AntiAlias = Literal["none", "average", "blur", "avd", "avd_first"]
Block = Literal["basic", "bottleneck"]
Head = Literal["linear", "signal", "conv"]
Norm = Literal["batch", "group"]
Padding = Literal["torch", "same"]
Shortcut = Literal["A", "B", "B3", "C", "D", "none"]
Stem = Literal["7x7", "3x3", "deep", "tiered"]
StemPool = Literal["max", "conv"]
StrideOn = Literal["1x1", "3x3"]

ENDS = ("in_channels", "num_classes", "include_top")
"""The settings that are not its body's: they may differ, and be learnt anew."""


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(Combinations):
    """One residual network, independent of any framework.

    Args:
        block: ``"basic"`` (two 3x3) or ``"bottleneck"`` (1x1, 3x3, 1x1).
        layers: blocks per stage; one entry per stage.
        widths: width of each stage, in channels.
        groups: groups of the 3x3 convolution of a bottleneck (ResNeXt).
        radix: splits of a bottleneck's 3x3, whose maps are weighed against one another
            channel by channel (ResNeSt, arXiv 2004.08955); one is weighed by itself, 0
            is the convolution alone.
        width_per_group: as in torchvision, the inner width of a bottleneck is
            ``int(width * width_per_group / 64) * groups``.
        stem: ``"7x7"``: stride 2, then a max-pool of stride 2; ``"3x3"``: stride 1 and
            no pool (paper, section 4.2); ``"deep"``: three 3x3 in place of the 7x7
            (ResNet-D, arXiv 1812.01187, figure 2c), the first two with half of the
            channels; ``"tiered"``: the first with three quarters of that half.
        stem_channels: of the stem's map; ``None``: as many as ``widths[0]``.
        stem_pool: what halves the stem's map: ``"max"``: a max-pool of 3x3; ``"conv"``:
            a 3x3 convolution with norm and rectifier (ResNet-RS, arXiv 2103.07579).
        shortcut: where a block changes the shape, ``"A"``: every other pixel, new
            channels zero; ``"B"``: a 1x1 projection; ``"B3"``: the same, of 3x3 where
            the map changes (SENet-154); ``"D"``: an average pool, then a projection
            (ResNet-D). ``"C"``: projections in every block. ``"none"``: no shortcut at
            all, the paper's plain network. (Paper, sections 3.3 and 4.1.)
        attention: what weighs the channels of a block's result before the addition:
            ``"se"``: squeeze-and-excitation (arXiv 1709.01507); ``"eca"``: a
            convolution along the channels (arXiv 1910.03151).
        attention_ratio: channels between both layers of squeeze-and-excitation over
            those around them, before they are rounded to a multiple of 8.
        reduce_first: a block's first convolution has so many times fewer channels
            (SENet-154).
        norm: ``"batch"``, or ``"group"`` (arXiv 1803.08494).
        norm_groups: of a group norm, each of neighbouring channels.
        head: ``"linear"``: average pool and linear layer; ``"signal"``: pool of width
            4, linear layer over all positions, result (n, 1, 1, classes) in torch's
            order of axes; ``"conv"``: max-pool, 1x1 convolution to 128 channels, two
            linear layers over 48 positions.
        conv_bias: give every convolution a bias.
        dimensions: 2, or 1 for signals of height 1: kernels are then 1 pixel high.
        signal_width: width of the signals that the signal head is made for, in pixels.
        stride_on: which convolution of a bottleneck carries the stride of its stage:
            ``"3x3"`` as torchvision does (v1.5) or ``"1x1"`` as in the paper (v1).
        replace_stride_with_dilation: one boolean per stage after the first; ``()`` is
            none. A stage set to true keeps its map's size and dilates its 3x3 kernels.
        stem_padding: of the stem's strided convolution: ``"torch"`` pads both sides
            alike, ``"same"`` as XLA's and TensorFlow's SAME: only as far as the last
            window reaches, the smaller half before. Only maps of even size see it.
        block_padding: of the strided 3x3 convolutions in blocks. (A 1x1 is never
            padded, and shortcut D's pool is what SAME makes of it already.)
        pool_padding: of the stem's max-pool.
        anti_alias: what is strided instead of the 3x3 that begins a stage, behind its
            rectifier, and of the stem's pool: ``"average"``: the mean over 2x2 pixels,
            which is the whole pool of the stem; ``"blur"``: the binomial filter 1-2-1
            (arXiv 1904.11486), behind the stem's maximum. (timm's ``aa_layer``.)
            ``"avd"``: the mean over 3x3 pixels, and the stem is as it was;
            ``"avd_first"``: the same before the 3x3 (ResNeSt).
        in_channels: channels of the input images.
        num_classes: outputs of the linear head.
        include_top: with ``False`` the network ends after its last stage.
        out_indices: of the maps that a network without a head returns in a list, and
            has no stage beyond: 0 is the stem's before its pool, 1 that of the first
            stage, …. ``None``: it returns the last alone. (timm's ``features_only``.)
        zero_init_residual: start the last norm of every block at zero.
        norm_eps: added to the variance under the root.
        norm_momentum: torch's convention: ``new = (1 - m) * old + m * batch``.
        drop_path_rate: share of the images that the last block passes by in training,
            less in blocks before it, none in the first (arXiv 1603.09382).
        drop_block_rate: share of a map that is dropped in training, in squares, from
            the third stage on (arXiv 1810.12890).

    Raises:
        ValueError: a field has a value that no network can have, or two fields
            contradict each other. The message names field, value and what is allowed.
    """

    block: Block
    layers: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    groups: int = 1
    radix: int = 0
    width_per_group: int = 64
    stem: Stem = "7x7"
    stem_channels: int | None = None
    stem_pool: StemPool = "max"
    shortcut: Shortcut = "B"
    attention: str = "none"
    attention_ratio: float = 1 / 16
    reduce_first: int = 1
    norm: Norm = "batch"
    norm_groups: int = 32
    head: Head = "linear"
    conv_bias: bool = False
    dimensions: int = 2
    signal_width: int | None = None
    stride_on: StrideOn = "3x3"
    replace_stride_with_dilation: tuple[bool, ...] = ()
    stem_padding: Padding = "torch"
    block_padding: Padding = "torch"
    pool_padding: Padding = "torch"
    anti_alias: AntiAlias = "none"
    in_channels: int = 3
    num_classes: int = 1000
    include_top: bool = True
    out_indices: tuple[int, ...] | None = None
    zero_init_residual: bool = False
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1
    drop_path_rate: float = 0.0
    drop_block_rate: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("layers", "widths"):
            self._check(field, isinstance(getattr(self, field), tuple), "a tuple")
        if not self.replace_stride_with_dilation:  # (), or torchvision's None
            undilated = (False,) * (len(self.layers) - 1)
            self._set("replace_stride_with_dilation", undilated)
        for field, choices in _CHOICES.items():
            value = getattr(self, field)
            known = any(value == c and type(value) is type(c) for c in choices)
            self._check(field, known, f"one of {', '.join(map(repr, choices))}")
        for field in ("layers", "widths"):
            values = getattr(self, field)
            self._check(
                field,
                len(values) > 0 and all(is_count(v) for v in values),
                "one positive integer per stage",
            )
        stages = len(self.layers)
        few = stages <= _MOST_STAGES and sum(self.layers) <= _MOST_BLOCKS
        most = f"{_MOST_STAGES} stages of {_MOST_BLOCKS} blocks in all at most"
        self._check("layers", few, most)
        self._check("widths", len(self.widths) == stages, f"{stages} entries")
        if self.out_indices is not None:
            indices = chosen(stages + 1, self.out_indices)
            self._set("out_indices", indices)
            allowed = "None with a head; features_only=True leaves that out"
            self._check("out_indices", self.include_top is not True, allowed)
        self._check(
            "replace_stride_with_dilation",
            isinstance(self.replace_stride_with_dilation, tuple)
            and len(self.replace_stride_with_dilation) == stages - 1
            and all(isinstance(v, bool) for v in self.replace_stride_with_dilation),
            f"{stages - 1} booleans, one per stage after the first",
        )
        for field in _COUNTS:
            allowed = COUNT + (_POOLED if field == "num_classes" else "")
            self._check(field, is_count(getattr(self, field)), allowed)
        none = type(self.radix) is int and self.radix == 0
        self._check("radix", none or is_count(self.radix), f"0 or {COUNT}")
        for field in ("include_top", "zero_init_residual", "conv_bias"):
            value = getattr(self, field)
            self._check(field, isinstance(value, bool), "True or False")
        for field in _NUMBERS:
            value = getattr(self, field)
            number = isinstance(value, float) or (
                type(value) is int and abs(value) < MOST
            )
            self._check(field, number, "a number")
            self._set(field, float(value))
        self._check("norm_eps", 0 < self.norm_eps < float("inf"), "a number above 0")
        self._check("norm_momentum", 0 <= self.norm_momentum <= 1, "from 0 to 1")
        for field in ("drop_path_rate", "drop_block_rate"):
            self._check(field, 0 <= getattr(self, field) < 1, "from 0, below 1")
        within = 0 < self.attention_ratio <= 1
        self._check("attention_ratio", within, "above 0, 1 at most")
        self._check_combinations()
        if self.weight_count > _MOST_WEIGHTS:
            raise ValueError(
                f"a network of widths {self.widths}, {self.in_channels} channels and "
                f"{self.num_classes} classes has {self.weight_count:,} weights; "
                f"make it smaller, {_MOST_WEIGHTS:,} at most"
            )

    @property
    def weight_count(self) -> int:
        """Parameters of the network, those of norms and biases too."""
        return weight_count(self)

    def replace(self, /, **overrides: Any) -> ResNetConfig:
        """Returns a copy with these fields changed, validated again.

        Args:
            **overrides: fields, or ``output_stride``: pixels of an image for one of the
                last map, which sets ``replace_stride_with_dilation``; or
                ``features_only``: whether it returns maps, all of them if there are no
                ``out_indices``.

        Raises:
            ValueError: a field does not exist, or the new value is not allowed.
        """
        known = [field.name for field in dataclasses.fields(self)]
        stride = as_plain(overrides.pop("output_stride", None))
        maps = overrides.pop("features_only", None)
        if not (maps is None or isinstance(maps, bool)):
            raise invalid("features_only", maps, "True or False")
        if maps is not None:
            indices = self.out_indices if maps else None
            ends = {"include_top": False} if maps else {}
            overrides = {**ends, "out_indices": indices, **overrides}
        for name in overrides:
            if name in _WEIGHTS:
                raise ValueError(
                    f"unknown setting {shown(name)}; a configuration has no weights: "
                    "parity.create_model(...) makes a network that has some"
                )
            if name not in known:
                likely = did_you_mean(name, known, _OTHERS)
                raise ValueError(
                    f"unknown setting {shown(name)};{likely} "
                    f"a network has {', '.join(known)}"
                )
        if "layers" in overrides and not any(self.replace_stride_with_dilation):
            overrides.setdefault("replace_stride_with_dilation", ())
        found = dataclasses.replace(self, **overrides)
        if maps and found.out_indices is None:
            every = len(found.layers) + 1
            found = dataclasses.replace(found, out_indices=every)
        return found if stride is None else found._with_output_stride(stride)

    def _with_output_stride(self, stride: object) -> ResNetConfig:
        first = 0 if self.stem == "3x3" else 2
        strides = [1 << first + stage for stage in range(len(self.layers))]
        if type(stride) is not int or stride not in strides:
            raise invalid("output_stride", stride, " or ".join(map(str, strides)))
        dilated = tuple(reached > stride for reached in strides[1:])
        return dataclasses.replace(self, replace_stride_with_dilation=dilated)

    def with_ends_of(self, other: ResNetConfig) -> ResNetConfig:
        """Returns this body between another network's channels and classes."""
        return self.replace(**{end: getattr(other, end) for end in ENDS})

    def as_function(self) -> ResNetConfig:
        """Returns what the network computes in evaluation, whatever it trains like."""
        return self.replace(
            zero_init_residual=False,
            norm_momentum=0.1,
            drop_path_rate=0.0,
            drop_block_rate=0.0,
        )


# What is larger is no network, and would take minutes or all memory to be refused.
_MOST_STAGES, _MOST_BLOCKS, _MOST_WEIGHTS = 32, 4096, 2**32

_COUNTS = (
    *("groups", "width_per_group", "in_channels", "num_classes"),
    *("reduce_first", "norm_groups"),
)

_NUMBERS = (
    *("norm_eps", "norm_momentum", "attention_ratio"),
    *("drop_path_rate", "drop_block_rate"),
)

_WEIGHTS = ("pretrained", "weights", "weights_backbone", "checkpoint_path")
"""What torchvision, timm and Keras take to load weights."""

_POOLED = (
    "; for pooled features without classes, forward_head(…, pre_logits=True); for the "
    "map alone, include_top=False"
)

_OTHERS: Mapping[str, str] = {
    "in_chans": "in_channels",
    "input_channels": "in_channels",
    "n_channels": "in_channels",
    "classes": "num_classes",
    "n_classes": "num_classes",
    "nb_classes": "num_classes",
    "num_labels": "num_classes",
    "cardinality": "groups",
    "avd": "anti_alias",
    "avd_first": "anti_alias",
    "base_width": "width_per_group",
    "dilation": "replace_stride_with_dilation",
    "attn_layer": "attention",
    "rd_ratio": "attention_ratio",
    "block_reduce_first": "reduce_first",
    "norm_layer": "norm",
    "replace_stem_pool": "stem_pool",
    "stem_width": "stem_channels",
    "aa_layer": "anti_alias",
    "antialias": "anti_alias",
    "zero_init_last": "zero_init_residual",
    "stem_type": "stem",
    "depths": "layers",
    "eps": "norm_eps",
    "bn_eps": "norm_eps",
    "momentum": "norm_momentum",
    "bn_momentum": "norm_momentum",
}
"""What a setting is called elsewhere."""

_CHOICES: Mapping[str, tuple[object, ...]] = {
    "block": get_args(Block),
    "stem": get_args(Stem),
    "stem_pool": get_args(StemPool),
    "attention": ("none", *ATTENTION),
    "norm": get_args(Norm),
    "shortcut": get_args(Shortcut),
    "head": get_args(Head),
    "stride_on": get_args(StrideOn),
    **dict.fromkeys(PADDINGS, get_args(Padding)),
    "anti_alias": get_args(AntiAlias),
    "dimensions": (1, 2),
}
