"""Whose names a state has: the one dialect whose whole table fits."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from parity.errors import CheckpointError
from parity.text import told_apart
from parity.weights.beside import advice_on, within_blocks
from parity.weights.dialects import DIALECTS
from parity.weights.dialects.dialect import Dialect
from parity.weights.dialects.fitting import (
    Fit,
    Shapes,
    fitting,
    misfits,
    read,
    read_off,
    scopes,
)
from resnet_spec import ResNetConfig, describe
from resnet_spec.spelling import did_you_mean

OWN = "torchvision"

STRANGERS = {
    "attnpool.": "is CLIP's: three convolutions and a mean are its stem, attention "
    "pools its last map; no network here is the same",
    "standardized_conv2d": "is BiT's: its kernels are standardised and its norms are "
    "GroupNorm; no network here is the same",
    "root_block": "is BiT's, with GroupNorm; no network here is the same",
    "gn_root": "is big_vision's, with GroupNorm; no network here is the same",
    "preact_bn": "is a ResNet V2, whose norms stand before its convolutions; no "
    "network here is the same",
    "final_batchnorm": "is Haiku's ResNet V2, whose norms stand before its "
    "convolutions; no network here is the same",
    "branch2a": "has the names of Keras's file of 2016, or of Caffe's: another eps, "
    "another padding of the pool; no network here is the same",
    ".se.": "has attention to channels, as squeeze-and-excitation is: it is another "
    "network than was asked for, or one that is not here",
    "bottleneck_v1.": "is TF-slim's, which strides in the last block of a stage; no "
    "network here is the same",
}
"""A part of a name, and why what has it cannot be read."""

BESIDE = (
    *("n_averaged", "queue", "queue_ptr", "total_ops", "total_params"),
    *("projection_head", "prototypes", "predictor", "projector"),
    *("fpn", "rpn", "roi_heads", "decoder", "aux_classifier"),
)
"""Parts of a name that tell that it is no weight of the network: always left out."""


@dataclass(frozen=True)
class Recognised:
    """A state in the twins' names and layouts, and what was learnt on the way.

    Args:
        arrays: the state.
        dialect: whose names it had.
        config: the network; ``None`` where names and shapes are left to be judged.
        unsaid: settings of it that are assumed.
        notes: what was taken off or left out, one clause each.
        beside: names of what is no weight of the network.
    """

    arrays: dict[str, np.ndarray]
    dialect: str
    config: ResNetConfig | None
    unsaid: tuple[str, ...]
    notes: tuple[str, ...]
    beside: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.config is not None:
            refuse_foreign(self.dialect, self.config)


def recognise(
    arrays: Mapping[str, np.ndarray],
    dialect: str | None = None,
    others: Iterable[str] = (),
    shortcut: str | None = None,
) -> Recognised:
    """Finds out whose names a state has, and translates it.

    Names of torchvision are passed on whatever they are: what is wrong with them is for
    a strict check to say.

    Args:
        arrays: names to values; a dot or a slash parts a name.
        dialect: whose names they are, if that is known.
        others: names of entries that are no arrays of weights.
        shortcut: the network's, where that is known and names may not tell.

    Raises:
        CheckpointError: no dialect fits, or several do, or there is more in the state
            than one network; the message says what each is.
        ValueError: there is no such dialect.
    """
    if dialect is not None:
        require_dialect(dialect)
    found, left = _canonical(arrays)
    shapes: Shapes = {name: array.shape for name, array in found.items()}
    own = DIALECTS[OWN]
    asked = [own] if dialect is None else [DIALECTS[dialect]]
    fits = _fits(asked, shapes, shortcut)
    if dialect is None and not (len(fits) == 1 and not fits[0].beside):
        fits = _fits(DIALECTS.values(), shapes, shortcut)
    if not fits and dialect in (None, OWN):
        return _as_it_is(arrays, found, (*left, *filter(_is_known, others)))
    if not fits:
        raise CheckpointError(what_it_looks_like(arrays), advice=ADVICE)
    if len(fits) > 1:
        raise _several(fits)
    (fit,) = fits
    more = [n for n in fit.beside if not _matches(n, fit.dialect.beside)]
    if more and fit.dialect is own and not fit.scope:
        return _as_it_is(arrays, found, (*left, *filter(_is_known, others)))
    if more:
        raise _beside(fit, more, arrays)
    no_arrays = [
        name
        for name in others
        if _matches(name.replace("/", "."), fit.dialect.beside) or _is_known(name)
    ]
    left = (*left, *fit.beside, *no_arrays)
    notes = list(_about_left(left))
    if fit.scope:
        notes.insert(0, f"took the prefix {fit.scope!r} off every name")
    if fit.dialect is own:
        return Recognised(read(fit, found), OWN, None, (), tuple(notes), left)
    notes.insert(0, f"read as {fit.dialect.name} ({fit.dialect.what})")
    return Recognised(
        read(fit, found),
        fit.dialect.name,
        fit.config,
        fit.unsaid,
        tuple(notes),
        left,
    )


def require_dialect(name: str) -> Dialect:
    """Returns a dialect by its name.

    Raises:
        ValueError: there is none.
    """
    if name not in DIALECTS:
        raise ValueError(
            f"dialect is {name!r};{did_you_mean(name, DIALECTS, {})} it must be one of "
            f"{', '.join(DIALECTS)}"
        )
    return DIALECTS[name]


def refuse_foreign(
    dialect: str, config: ResNetConfig, path: str | os.PathLike[str] | None = None
) -> None:
    """Refuses a network that one of a dialect only seems to be.

    Raises:
        CheckpointError: networks there compute something else by that setting.
    """
    known = DIALECTS[dialect]
    for setting in known.foreign:
        value = getattr(config, setting)
        if value not in known.allowed[setting]:
            raise CheckpointError(
                f"{setting} is {value!r}, which {dialect} computes as no network here",
                path=path,
                advice="Use the library that it is from",
            )


def _fits(
    dialects: Iterable[Dialect], shapes: Shapes, shortcut: str | None = None
) -> list[Fit]:
    """Returns whatever fits, once, and without what is a part of another fit."""
    fits = [
        fit
        for dialect in dialects
        for scope in scopes(dialect, shapes)
        if (fit := read_off(dialect, shapes, scope, shortcut)) is not None
    ]
    fits = [fit for fit in fits if not any(_within(fit, other) for other in fits)]
    return [fit for i, fit in enumerate(fits) if not _again(fit, fits[:i])]


def _as_it_is(
    arrays: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray],
    left: tuple[str, ...],
) -> Recognised:
    """Passes on what a strict check will find out about, under its names here."""
    prefixes = scopes(DIALECTS[OWN], found)
    if len(prefixes) == 1 and all(name.startswith(prefixes[0]) for name in found):
        (prefix,) = prefixes
        notes = [f"took the prefix {prefix!r} off every name"] if prefix else []
        named = {name.removeprefix(prefix): array for name, array in found.items()}
        notes = (*notes, *_about_left(left))
        return Recognised(named, OWN, None, (), notes, left)
    return Recognised(dict(arrays), OWN, None, (), (), left)


def _beside(
    fit: Fit, more: Sequence[str], arrays: Mapping[str, np.ndarray]
) -> CheckpointError:
    there = {name.replace("/", "."): name for name in arrays}
    advice = advice_on(
        [there[name] for name in more], [there[n] for n in fit.names.values()]
    )
    if inner := within_blocks(more, fit.names):
        if stranger := _stranger(inner):
            return CheckpointError(stranger, advice="Use the library that it is from")
        more = [*inner, *(name for name in more if name not in inner)]
        advice = (
            "Some stand within its blocks: it is probably another network, which is "
            "not here. If nothing is computed with them, use --ignore"
        )
    what = f"has beside {_words(fit.config)} ({_where(fit)})"
    return CheckpointError({what: [told_apart(n) for n in more]}, advice=advice)


def _several(fits: Sequence[Fit]) -> CheckpointError:
    what = [
        f"{_where(fit)} it is {_words(fit.config)} of {fit.dialect.name}"
        for fit in fits
    ]
    if len({fit.scope for fit in fits}) == 1:
        option = f"--from {fits[0].dialect.name}"
        return CheckpointError(
            {"fits several dialects": what}, advice=f"Choose one, as with {option}"
        )
    option = f"--prefix {fits[0].scope.rstrip('.')}"
    return CheckpointError(
        {"has several networks": what}, advice=f"Choose one, as with {option}"
    )


ADVICE = (
    "`resnet-twins dialects` lists those that are known; --prefix, --ignore and "
    "--rename fit others to one"
)


def _canonical(
    arrays: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Returns names parted by dots, and those of what is no weight."""
    found: dict[str, np.ndarray] = {}
    left = []
    for name, array in arrays.items():
        dotted = name.replace("/", ".")
        if dotted in found:
            raise CheckpointError(f"has {dotted} twice, with dots and with slashes")
        if _is_known(name):
            left.append(name)
        else:
            found[dotted] = array
    return found, tuple(left)


def _is_known(name: str) -> bool:
    """Whether an entry says by its name that it is none of the network's."""
    return any(part in BESIDE for part in name.replace("/", ".").split("."))


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _about_left(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        return ()
    some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" * (len(names) > 3))
    return (f"left out {some}: no weights of the network",)


def _within(fit: Fit, other: Fit) -> bool:
    """Whether another fit reads all that this one does, and more."""
    return set(fit.names.values()) < set(other.names.values())


def _again(fit: Fit, others: Sequence[Fit]) -> bool:
    """Whether another fit reads the same into the same."""
    return any(
        (fit.config, fit.names) == (other.config, other.names) for other in others
    )


def _words(config: ResNetConfig) -> str:
    text = describe(config)
    headless = not config.include_top and "include_top" not in text
    return f"{text}, without a head" if headless else text


def _where(fit: Fit) -> str:
    return f"under {fit.scope!r}" if fit.scope else "as it is"


def what_it_is(shapes: Shapes) -> str:
    """Says in words which networks a state holds."""
    dotted = {name.replace("/", "."): shape for name, shape in shapes.items()}
    fits = _fits(DIALECTS.values(), dotted)
    said = [f"{_where(fit)} it is {_words(fit.config)}" for fit in fits[:3]]
    first = next(iter(shapes), "nothing")
    return ", ".join(said) or f"{len(shapes)} entries, the first {first}"


def refuse_strangers(
    state: Mapping[str, np.ndarray],
    expected: Iterable[str],
    path: str | os.PathLike[str],
) -> None:
    """Refuses networks of others that look like one of this family, with the reason.

    Args:
        state: names and layouts of the twins.
        expected: the names that the network has.
        path: the file.

    Raises:
        CheckpointError: it has more than the network, and that is known; or it has no
            statistics at all.
    """
    expected = [*expected]
    stranger = _stranger(set(state).difference(expected))
    advice = "Use the library that it is from"
    stem = any(name in state for name in ("conv1.weight", "conv1.0.weight"))
    if stem and _normed(expected) and not _normed(state):
        stranger = (
            "has no running statistics: its norms are GroupNorm, as in resnet50_gn, "
            "were folded into the convolutions, or only parameters were saved"
        )
        advice = "Make that network, or save all of the state"
    if stranger:
        raise CheckpointError(stranger, path=path, advice=advice)


def _normed(names: Iterable[str]) -> bool:
    return any(name.endswith(".running_var") for name in names)


def _stranger(names: Iterable[str]) -> str:
    names = [*names]
    found = (what for part, what in STRANGERS.items() if any(part in n for n in names))
    return next(found, "")


def what_it_looks_like(arrays: Mapping[str, np.ndarray]) -> str:
    """Says of a state in no dialect which are the closest."""
    shapes = {name.replace("/", "."): array.shape for name, array in arrays.items()}
    stranger = _stranger(shapes)
    if stranger:
        return stranger
    counts = {d.name: fitting(d, shapes) for d in DIALECTS.values()}
    closest = sorted(counts, key=lambda name: -counts[name])[:3]
    said = ", ".join(f"{counts[name]} {name}" for name in closest if counts[name])
    names = ", ".join([*shapes][:3])
    fit = f"; of its {len(shapes)} names fit {said}" if said else ""
    near = 2 * counts[closest[0]] > len(shapes)
    why = misfits(DIALECTS[closest[0]], shapes) if near else []
    more = f" and {len(why) - 3} more" if len(why) > 3 else ""
    but = f"; as {closest[0]} {', '.join(why[:3])}{more}" if why else ""
    return f"is the state of no network known here (it has {names} …{fit}{but})"
