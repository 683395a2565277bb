"""What a dialect is: how a library calls the layers of a network, and lays them out.

Everything goes through one table, made from a network's own entries: name in the twins
→ name there. It is read in both directions, and a file is in a dialect only if the
whole table fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, takewhile
from typing import Any, Literal

import numpy as np

from parity.errors import CheckpointError
from parity.weights import names as own_names
from parity.weights.identify import guessed, identify
from parity.weights.names import COUNTER, Shape
from parity.weights.twins import entries_of
from resnet_spec import ResNetConfig, describe

Role = Literal["conv", "norm", "linear"]
Part = Literal["stem", "block", "projection", "head"]

Shapes = Mapping[str, Shape]

_MOST_BLOCKS = 2**12  # of a network that is searched for


@dataclass(frozen=True)
class Place:
    """A layer with weights, and where in a residual network it stands.

    Args:
        own: its path in the twins.
        role: what it is.
        part: what it belongs to.
        index: of the convolution in its part, from 0; a norm has that of its own.
        stage: from 0.
        block: in its stage, from 0.
        number: of the block, counted through all stages from 0.
        blocks: how many there are in all.
        basic: whether blocks are basic ones, not bottlenecks.
        deep: whether the stem is of three convolutions.
        pooled: whether projections stand behind an average pool (ResNet-D).
    """

    own: str
    role: Role
    part: Part
    index: int = 0
    stage: int = 0
    block: int = 0
    number: int = 0
    blocks: int = 0
    basic: bool = False
    deep: bool = False
    pooled: bool = False

    def choose(self, *, conv: str, norm: str) -> str:
        """Returns the word for what stands here."""
        return norm if self.role == "norm" else conv


@dataclass(frozen=True)
class Dialect:
    """How one library writes a residual network.

    Args:
        name: in lower case, for ``--from`` and ``--to``.
        what: whose it is, in words.
        path: place → path there.
        leaves: ``"conv.weight"``, ``"norm.running_mean"``, … → whole name there, with
            ``{}`` for the path. What has none cannot be written, or is dropped: a
            batch norm's counter.
        formats: containers that it comes in, the usual one first.
        kernel: order of a kernel's axes.
        linear: order of a linear weight's axes.
        only: settings → values that networks there can have, where these are not
            :data:`USUAL`. Of several the first is assumed, if names and shapes do not
            tell.
        every: whether it has words for every network, whatever is usual.
        scope: network → what stands before every path, if it is alone in its file.
        counted: whether blocks have only a number through all stages.
        statistics: shape of whatever a norm has, with -1 for its channels.
        words: whether a counter is two words of 32 bits.
        slashed: whether its names are a tree's, parted by slashes.
        beside: patterns of what else stands there, and is no weight.
        order: network, name in the twins → order of the rows and columns there, where
            these are not the twins'.
        reads_only: why nothing is written in it; empty if it is.
    """

    name: str
    what: str
    path: Callable[[Place], str]
    leaves: Mapping[str, str]
    formats: Sequence[str]
    kernel: str = "OIHW"
    linear: str = "OI"
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    every: bool = False
    scope: Callable[[ResNetConfig], str] = lambda config: ""
    counted: bool = False
    statistics: Shape = (-1,)
    words: bool = False
    slashed: bool = False
    beside: Sequence[str] = ()
    order: Callable[[ResNetConfig, str], Order] | None = None
    reads_only: str = ""

    def name_of(self, place: Place, leaf: str, scope: str = "") -> str | None:
        """Returns the whole name of an entry there; ``None`` if there is none."""
        form = self.leaves.get(f"{place.role}.{leaf}")
        return None if form is None else form.format(scope + self.path(place))

    @property
    def allowed(self) -> dict[str, tuple[Any, ...]]:
        """Settings → values that networks there can have."""
        return {} if self.every else {**USUAL, **self.only}

    def obstacles(self, config: ResNetConfig) -> list[str]:
        """Says which settings of a network this dialect has no words for."""
        undilated = (False,) * (len(config.layers) - 1)
        allowed = self.allowed
        if not self.every:
            allowed["replace_stride_with_dilation"] = (undilated,)
        return [
            f"{setting} is {getattr(config, setting)!r}, there "
            + " or ".join(map(repr, values))
            for setting, values in allowed.items()
            if getattr(config, setting) not in values
        ]

    def table(self, config: ResNetConfig) -> dict[str, Place]:
        """Returns the place of every entry of a network's state, in order."""
        outline = Outline(
            config.layers,
            basic=config.block == "basic",
            deep=config.stem == "deep",
            pooled=config.shortcut == "D",
        )
        places = dict(outline.places())
        return {name: places[name.rpartition(".")[0]] for name in entries_of(config)}

    def names(self, config: ResNetConfig, scope: str = "") -> dict[str, str]:
        """Returns name in the twins → name there, of all that have one."""
        found = {
            name: self.name_of(place, name.rpartition(".")[2], scope)
            for name, place in self.table(config).items()
        }
        return {name: there for name, there in found.items() if there is not None}

    def to_torch(self, place: Place, leaf: str, array: np.ndarray) -> np.ndarray:
        """Returns a value of theirs as the twins have it."""
        if leaf == COUNTER:
            return own_names.to_torch(leaf, array)
        return _transposed(array, self._axes(place, leaf), "to")

    def from_torch(self, place: Place, leaf: str, array: np.ndarray) -> np.ndarray:
        """Returns a value of the twins' as they have it, in memory of its own."""
        if leaf == COUNTER:
            return own_names.to_flax(leaf, array) if self.words else array
        array = _transposed(array, self._axes(place, leaf), "from")
        return array.reshape(self.statistics) if place.role == "norm" else array

    def torch_shape(self, place: Place, leaf: str, shape: Shape) -> Shape:
        """Returns the shape that a value of theirs has in the twins."""
        if leaf == COUNTER:
            return ()
        if place.role == "norm" and len(shape) == len(self.statistics):
            shape = tuple(
                n for n, axis in zip(shape, self.statistics, strict=True) if axis == -1
            )
        axes = self._axes(place, leaf)
        if len(shape) != len(axes):
            return shape
        order = {4: "OIHW", 2: "OI"}.get(len(axes), axes)
        return tuple(shape[axes.index(axis)] for axis in order)

    def _axes(self, place: Place, leaf: str) -> str:
        if leaf != "weight" or place.role == "norm":
            return ""
        return self.kernel if place.role == "conv" else self.linear


Order = tuple[Sequence[int] | None, Sequence[int] | None]

USUAL: Mapping[str, tuple[Any, ...]] = {
    "head": ("linear",),
    "dimensions": (2,),
    "conv_bias": (False,),
    "norm_eps": (1e-5,),
    "stride_on": ("3x3",),
    "shortcut": ("B",),
    "stem": ("7x7",),
    "signal_width": (None,),
    "stem_padding": ("torch",),
    "block_padding": ("torch",),
    "pool_padding": ("torch",),
    "anti_alias": ("none",),
}
"""What networks of most libraries are like, where a dialect does not say otherwise."""


def _transposed(array: np.ndarray, axes: str, way: Literal["to", "from"]) -> np.ndarray:
    ours = {4: "OIHW", 2: "OI"}.get(len(axes))
    if ours is None:
        return array.reshape(-1) if array.ndim > 1 else array
    source, target = (axes, ours) if way == "to" else (ours, axes)
    return array.transpose([source.index(axis) for axis in target])


@dataclass(frozen=True)
class Outline:
    """As much of a network as its layers' names depend on."""

    layers: tuple[int, ...]
    basic: bool = False
    deep: bool = False
    pooled: bool = False

    @property
    def first(self) -> Place:
        """The stem's first convolution."""
        return next(self.places())[1]

    @property
    def first_block(self) -> Place:
        """The first block's first convolution."""
        return dict(replace(self, layers=(1,)).places())["layer1.0.conv1"]

    def places(self) -> Iterator[tuple[str, Place]]:
        """Yields path in the twins, and place, of all that such a network may have."""
        kind: dict[str, Any] = {
            "basic": self.basic,
            "deep": self.deep,
            "pooled": self.pooled,
        }
        blocks = sum(self.layers)
        stem = ["conv1", "bn1"]
        if self.deep:
            stem = [f"conv1.{i}" for i in (0, 1, 3, 4, 6)] + ["bn1"]
        for position, path in enumerate(stem):
            role: Role = "norm" if position % 2 else "conv"
            yield path, Place(path, role, "stem", position // 2, blocks=blocks, **kind)
        number = 0
        for stage, many in enumerate(self.layers):
            for block in range(many):
                at: dict[str, Any] = {
                    "stage": stage,
                    "block": block,
                    "number": number,
                } | kind
                path = f"layer{stage + 1}.{block}"
                rows: list[tuple[str, Role, Part, int]] = []
                for i in range(2 if self.basic else 3):
                    rows.append((f"conv{i + 1}", "conv", "block", i))
                    rows.append((f"bn{i + 1}", "norm", "block", i))
                first = int(self.pooled)
                rows.append((f"downsample.{first}", "conv", "projection", 0))
                rows.append((f"downsample.{first + 1}", "norm", "projection", 0))
                for leaf, role, part, i in rows:
                    own = f"{path}.{leaf}"
                    yield own, Place(own, role, part, i, blocks=blocks, **at)
                number += 1
        for index, own in enumerate(("fc", "fc1", "fc2")):
            yield own, Place(own, "linear", "head", index, blocks=blocks, **kind)
        yield "conv2", Place("conv2", "conv", "head", blocks=blocks, **kind)


OUTLINES = tuple(
    Outline((), basic, deep, pooled)
    for basic in (False, True)
    for deep, pooled in ((False, False), (True, True), (False, True), (True, False))
)
"""Of all kinds of networks, without their layers; the usual ones first."""

LEAVES: Mapping[Role, Sequence[str]] = {
    "conv": ("weight", "bias"),
    "linear": ("weight", "bias"),
    "norm": ("weight", "bias", "running_mean", "running_var", COUNTER),
}


@dataclass(frozen=True)
class Fit:
    """A network whose whole table stands in a state.

    Args:
        dialect: whose names they are.
        scope: what stands before every path.
        config: the network.
        names: name in the twins → name there, of all that are there.
        unsaid: settings that neither names nor shapes nor the dialect tell.
        beside: names of what else stands there.
    """

    dialect: Dialect
    scope: str
    config: ResNetConfig
    names: Mapping[str, str]
    unsaid: tuple[str, ...]
    beside: tuple[str, ...]


def read_off(dialect: Dialect, shapes: Shapes, scope: str = "") -> Fit | None:
    """Returns the network whose whole table in a dialect names and shapes fit.

    Args:
        dialect: the dialect.
        shapes: names there → shapes there.
        scope: what stands before every path.
    """
    fits = []
    for outline in OUTLINES:
        layers = _layers(dialect, shapes, outline, scope)
        outline = replace(outline, layers=layers)
        if layers and (fit := _fit(dialect, shapes, outline, scope)):
            fits.append(fit)
    if not fits:
        return None
    best, *others = sorted(fits, key=lambda fit: len(fit.beside))
    alike = [o for o in others if set(o.names.values()) == set(best.names.values())]
    ways = {other.config.shortcut for other in (best, *alike)}
    unsaid = (*best.unsaid, *(["shortcut"] if len(ways) > 1 else []))
    return replace(best, unsaid=tuple(dict.fromkeys(unsaid)))


def _fit(dialect: Dialect, shapes: Shapes, outline: Outline, scope: str) -> Fit | None:
    config = identify(_translated(dialect, shapes, outline, scope))
    if config is None:
        return None
    allowed, hidden = dialect.allowed, guessed(config)
    try:
        assumed = {s: allowed[s][0] for s in hidden if s in allowed}
        if config.shortcut == "C" and len(config.layers) == sum(config.layers):
            assumed["shortcut"] = "B"  # of one block per stage both are the same
        config = config.replace(**assumed)
    except ValueError:
        return None
    if dialect.obstacles(config):
        return None
    names = dialect.names(config, scope)
    missing = {name for name, there in names.items() if there not in shapes}
    if any(not name.endswith(COUNTER) for name in missing):
        return None
    names = {name: there for name, there in names.items() if name not in missing}
    taken = set(names.values())
    return Fit(
        dialect,
        scope,
        config,
        names,
        unsaid=hidden if dialect.every else _open(hidden, allowed),
        beside=tuple(name for name in shapes if name not in taken),
    )


def _open(
    settings: Sequence[str], allowed: Mapping[str, tuple[Any, ...]]
) -> tuple[str, ...]:
    return tuple(s for s in settings if len(allowed.get(s, ())) > 1)


def scopes(dialect: Dialect, names: Iterable[str]) -> list[str]:
    """Returns what stands before the paths of networks in a state, once for each."""
    names = dict.fromkeys(names)  # in order, and quickly found
    found: dict[str, None] = {}
    head, _, tail = dialect.leaves["conv.weight"].partition("{}")
    ends = {outline: dialect.path(outline.first_block) + tail for outline in OUTLINES}
    near = [name for name in names if name.endswith(tuple(ends.values()))]
    for outline, end in ends.items():
        for name in near:
            if name.startswith(head) and name.endswith(end):
                scope = name[len(head) : -len(end)]
                stem = dialect.name_of(outline.first, "weight", scope)
                if scope[-1:] in ("", ".") and stem in names:
                    found[scope] = None
    return [*found]


def fitting(dialect: Dialect, shapes: Shapes) -> int:
    """Returns how many names could be this dialect's, in a network of any depth."""
    names: set[str] = set()
    for outline in OUTLINES:
        layers = _layers(dialect, shapes, outline, "") or (1,)
        names |= set(_named(dialect, replace(outline, layers=layers), "").values())
    return sum(name in names for name in shapes)


def _named(dialect: Dialect, outline: Outline, scope: str) -> dict[str, str]:
    found: dict[str, str] = {}  # name there → the first that is called so
    for path, place in outline.places():
        for leaf in LEAVES[place.role]:
            there = dialect.name_of(place, leaf, scope)
            if there is not None:
                found.setdefault(there, f"{path}.{leaf}")
    return {name: there for there, name in found.items()}


def _translated(
    dialect: Dialect, shapes: Shapes, outline: Outline, scope: str
) -> dict[str, Shape]:
    places = dict(outline.places())
    found = {}
    for name, there in _named(dialect, outline, scope).items():
        if there in shapes:
            path, _, leaf = name.rpartition(".")
            found[name] = dialect.torch_shape(places[path], leaf, shapes[there])
    return found


def _layers(
    dialect: Dialect, shapes: Shapes, outline: Outline, scope: str
) -> tuple[int, ...]:
    """Counts the blocks of every stage."""
    kind = {"basic": outline.basic, "deep": outline.deep, "pooled": outline.pooled}

    def shape(leaf: str, part: Part, stage: int, block: int, number: int) -> Shape:
        own = f"layer{stage + 1}.{block}.{leaf}"
        index = int(leaf[4:]) - 1 if part == "block" else 0
        place = Place(own, "conv", part, index, stage, block, number, **kind)
        there = shapes.get(dialect.name_of(place, "weight", scope) or "", ())
        return dialect.torch_shape(place, "weight", there) if there else ()

    if not dialect.counted:
        layers: list[int] = []
        while sum(layers) < _MOST_BLOCKS:
            at, stage = sum(layers), len(layers)
            there = (shape("conv1", "block", stage, b, at + b) for b in count())
            blocks = len([*takewhile(bool, there)])
            if not blocks:
                break
            layers.append(blocks)
        return tuple(layers)
    last = "conv2" if outline.basic else "conv3"
    projection = f"downsample.{int(outline.pooled)}"
    shapes_of = (shape(last, "block", 0, n, n) for n in count())
    widths = [found[0] for found in takewhile(bool, shapes_of)]
    projected = [
        bool(shape(projection, "projection", 0, n, n)) for n in range(len(widths))
    ]
    if not widths:
        return ()
    starts = [
        n
        for n, width in enumerate(widths)
        if n == 0 or width != widths[n - 1] or (projected[n] and not all(projected))
    ]
    ends = [*starts[1:], len(widths)]
    return tuple(end - start for start, end in zip(starts, ends, strict=True))


def read(fit: Fit, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Translates a state into the twins' names and layouts, in their order."""
    dialect, table = fit.dialect, fit.dialect.table(fit.config)
    found = {}
    for name, there in fit.names.items():
        array = dialect.to_torch(table[name], name.rpartition(".")[2], arrays[there])
        if dialect.order is not None:
            array = _ordered(array, dialect.order(fit.config, name))
        found[name] = np.array(array, order="C")
    return found


def write(
    dialect: Dialect, config: ResNetConfig, state: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Translates a state of the twins into a dialect.

    Returns:
        Their names and layouts, and the names of what has none there.

    Raises:
        CheckpointError: the dialect has no words for the network.
    """
    obstacles = dialect.obstacles(config)
    if obstacles or dialect.reads_only:
        raise CheckpointError(
            f"{describe(config)} cannot be written as {dialect.name}: "
            + ("; ".join(obstacles) or dialect.reads_only),
            advice="`resnet-twins dialects` lists others",
        )
    table, names = dialect.table(config), dialect.names(config, dialect.scope(config))
    written = {}
    for name, there in names.items():
        array = state[name]
        if dialect.order is not None:
            order = dialect.order(config, name)
            array = _ordered(array, tuple(o and np.argsort(o) for o in order))
        leaf = name.rpartition(".")[2]
        array = dialect.from_torch(table[name], leaf, array)
        written[there] = np.array(array, order="C")
    return written, tuple(name for name in state if name not in names)


def _ordered(array: np.ndarray, order: tuple[Any, ...]) -> np.ndarray:
    for axis, indices in enumerate(order):
        if indices is not None:
            array = array.take(indices, axis)
    return array
