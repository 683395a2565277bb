"""What a dialect is: how a library calls the layers of a network, and lays them out.

Everything goes through one table, made from a network's own entries: name in the twins
→ name there. It is read in both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from parity.errors import CheckpointError
from parity.weights import names as own_names
from parity.weights.dialects.places import Outline, Place
from parity.weights.names import COUNTER, Shape
from parity.weights.twins import entries_of
from resnet_spec import ResNetConfig, describe


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
        splits: whether it has words for split attention.
        foreign: settings that networks there may have as none here has, under the same
            names and shapes.
        scope: network → what stands before every path, if it is alone in its file.
        counted: whether blocks have only a number through all stages.
        statistics: shape of whatever a norm has, with -1 for its channels.
        words: whether a counter is two words of 32 bits.
        slashed: whether its names are a tree's, parted by slashes.
        beside: patterns of what else stands there, and is no weight.
        order: network, name in the twins → order of the rows and columns there, where
            these are not the twins'.
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
    splits: bool = False
    foreign: Sequence[str] = ()
    scope: Callable[[ResNetConfig], str] = lambda config: ""
    counted: bool = False
    statistics: Shape = (-1,)
    words: bool = False
    slashed: bool = False
    beside: Sequence[str] = ()
    order: Callable[[ResNetConfig, str], Order] | None = None

    def name_of(self, place: Place, leaf: str, scope: str = "") -> str | None:
        """Returns the whole name of an entry there; ``None`` if there is none."""
        split = self.splits and ".conv2." in place.own
        if place.part in ("pool", "attention") and not (self.every or split):
            return None
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
            deep=config.stem in ("deep", "tiered"),
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
        """Returns a value of theirs as the twins have it.

        One of another number of axes stays as it is: it is for a strict check to
        refuse, and no shape that only holds as many values may become the right one.
        """
        if leaf == COUNTER:
            return own_names.to_torch(leaf, array)
        if place.role == "norm":
            return array.reshape(self.torch_shape(place, leaf, array.shape))
        return _transposed(array, self._axes(place, leaf), "to")

    def from_torch(self, place: Place, leaf: str, array: np.ndarray) -> np.ndarray:
        """Returns a value of the twins' as they have it."""
        if leaf == COUNTER:
            return own_names.to_flax(leaf, array) if self.words else array
        array = _transposed(array, self._axes(place, leaf), "from")
        return array.reshape(self.statistics) if place.role == "norm" else array

    def torch_shape(self, place: Place, leaf: str, shape: Shape) -> Shape:
        """Returns the shape that a value of theirs has in the twins."""
        if leaf == COUNTER:
            return ()
        if place.role == "norm" and len(shape) == len(self.statistics):
            pairs = [*zip(shape, self.statistics, strict=True)]
            if all(axis in (-1, n) for n, axis in pairs):
                shape = tuple(n for n, axis in pairs if axis == -1)
        axes = self._axes(place, leaf)
        if len(shape) != len(axes):
            return shape
        ours = _OURS.get(len(axes), "")
        return tuple(shape[axes.index(axis)] for axis in ours)

    def _axes(self, place: Place, leaf: str) -> str:
        if leaf != "weight" or place.role == "norm":
            return ""
        if place.own.endswith(".se.conv"):  # along a row
            return self.kernel.replace("H", "")
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
    "stem_channels": (None,),
    "stem_pool": ("max",),
    "attention": ("none",),
    "reduce_first": (1,),
    "norm": ("batch",),
    "out_indices": (None,),
    "radix": (0,),
}
"""What networks of most libraries are like, where a dialect does not say otherwise."""


_OURS = {4: "OIHW", 3: "OIW", 2: "OI"}
"""How the twins' kernels and linear weights lie, by the number of axes."""


def _transposed(array: np.ndarray, axes: str, way: Literal["to", "from"]) -> np.ndarray:
    ours = _OURS.get(len(axes))
    if ours is None or array.ndim != len(axes):
        return array
    source, target = (axes, ours) if way == "to" else (ours, axes)
    return array.transpose([source.index(axis) for axis in target])


def write(
    dialect: Dialect, config: ResNetConfig, state: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Translates a state of the twins into a dialect's names and layouts.

    What has no name there is left out: :meth:`Dialect.names` has what is not. Values
    that lie there as they do here share their memory with the state.

    Raises:
        CheckpointError: the dialect has no words for the network.
    """
    if obstacles := dialect.obstacles(config):
        raise CheckpointError(
            f"{describe(config)} cannot be written as {dialect.name}: "
            + "; ".join(obstacles),
            advice="`resnet-twins dialects` lists others",
        )
    table, names = dialect.table(config), dialect.names(config, dialect.scope(config))
    written = {}
    for name, there in names.items():
        array = state[name]
        if dialect.order is not None:
            order = dialect.order(config, name)
            array = ordered(array, tuple(o and np.argsort(o) for o in order))
        leaf = name.rpartition(".")[2]
        array = dialect.from_torch(table[name], leaf, array)
        written[there] = np.array(array, order="C", copy=None)
    return written


def ordered(array: np.ndarray, order: tuple[Any, ...]) -> np.ndarray:
    """Returns an array with its axes' entries in another order, where one is given."""
    for axis, indices in enumerate(order):
        if indices is not None:
            array = array.take(indices, axis)
    return array
