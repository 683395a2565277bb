"""Which network a state is, if it is one in a dialect: only if its whole table fits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, takewhile

import numpy as np

from parity.weights.dialects.dialect import Dialect, ordered
from parity.weights.dialects.places import LEAVES, OUTLINES, Outline, Part, Place
from parity.weights.identify import guessed, identify
from parity.weights.names import COUNTER, Shape
from resnet_spec import ResNetConfig

Shapes = Mapping[str, Shape]

_MOST_BLOCKS = 2**12  # of a network that is searched for


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


def read_off(
    dialect: Dialect, shapes: Shapes, scope: str = "", shortcut: str | None = None
) -> Fit | None:
    """Returns the network whose whole table in a dialect names and shapes fit.

    Args:
        dialect: the dialect.
        shapes: names there → shapes there.
        scope: what stands before every path.
        shortcut: the network's, where that is known and names may not tell.
    """
    fits = []
    for outline in OUTLINES:
        if dialect.name_of(outline.first, "weight", scope) not in shapes:
            continue  # of another stem
        layers = _layers(dialect, shapes, outline, scope)
        outline = replace(outline, layers=layers)
        if layers and (fit := _fit(dialect, shapes, outline, scope)):
            fits.append(fit)
    if not fits:
        return None

    def rank(fit: Fit) -> tuple[int, bool]:
        return len(fit.beside), fit.config.shortcut != (shortcut or fit.config.shortcut)

    best, *others = sorted(fits, key=rank)
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
    more = set(_named(dialect, outline, scope).values()) - taken
    if not dialect.every and any(name in shapes for name in more):
        return None  # layers at places where this network has none
    return Fit(
        dialect,
        scope,
        config,
        names,
        unsaid=hidden if dialect.every else _open(hidden, dialect),
        beside=tuple(name for name in shapes if name not in taken),
    )


def _open(settings: Sequence[str], dialect: Dialect) -> tuple[str, ...]:
    several = {s for s, values in dialect.allowed.items() if len(values) > 1}
    return tuple(s for s in settings if s in several.union(dialect.foreign))


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


def misfits(dialect: Dialect, shapes: Shapes) -> list[str]:
    """Says by name why a state that is nearly a dialect's is none of its networks.

    Names may be missing, or a kernel may have other channels than the norm behind it,
    or a layer stands where such a network has none.
    """
    found: list[list[str]] = []
    for scope in scopes(dialect, shapes) or [""]:
        for outline in OUTLINES:
            layers = _layers(dialect, shapes, outline, scope)
            if layers:
                outline = replace(outline, layers=layers)
                found.append(_misfits(dialect, shapes, outline, scope))
    return min(filter(None, found), key=len, default=[])


def _misfits(
    dialect: Dialect, shapes: Shapes, outline: Outline, scope: str
) -> list[str]:
    there = _named(dialect, outline, scope)
    translated = _translated(dialect, shapes, outline, scope)
    odd = [
        f"{there[name]} is {shapes[there[name]]} beside {there[size]} "
        f"{shapes[there[size]]}"
        for name in translated
        if (size := _sized_by(name)) in translated
        and translated[name][:1] != translated[size][:1]
    ]
    config = identify(translated)
    if odd or config is None:
        return odd
    names = dict.fromkeys(dialect.names(config, scope).values())
    missing = [n for n in names if n not in shapes and not n.endswith(COUNTER)]
    more = [name for name in there.values() if name in shapes and name not in names]
    return [f"{name} is missing" for name in missing] + [
        f"{name} stands where such a network has nothing" for name in more
    ]


def _sized_by(name: str) -> str:
    """Returns the norm, or the bias, that has as many channels as a kernel gives."""
    path, _, leaf = name.rpartition(".")
    above, _, last = path.rpartition(".")
    if leaf != "weight":
        return ""
    if last.startswith("conv"):
        return f"{path.replace('conv', 'bn')}.weight"
    if last.isdigit():  # in a projection, or a deep stem
        return f"{above}.{int(last) + 1}.weight"
    return f"{path}.bias" if last.startswith("fc") else ""


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
    """Translates a state into the twins' names and layouts, in their order.

    Values that lie there as they do here share their memory with the state.
    """
    dialect, table = fit.dialect, fit.dialect.table(fit.config)
    found = {}
    for name, there in fit.names.items():
        array = dialect.to_torch(table[name], name.rpartition(".")[2], arrays[there])
        if dialect.order is not None:
            array = ordered(array, dialect.order(fit.config, name))
        found[name] = np.require(array, requirements=("C", "W"))
    return found
