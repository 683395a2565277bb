"""Which entries of a file are meant: chosen before any of them is judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from parity.errors import CheckpointError
from parity.text import counted
from parity.weights.dialects.recognising import require_dialect, what_it_is
from resnet_spec.printable import plain

WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "ema", "model_ema"),
    *("net", "network", "weights", "module"),
)
"""What people call the entry that has the state; of several one must be chosen."""


@dataclass(frozen=True)
class Selection:
    """What of a file is meant.

    Args:
        key: the entry of a file that has several states; dots lead to one within.
        prefix: of the names that are meant; it is taken off.
        ignore: patterns of names that are left out, as ``"head.*"``.
        rename: ``"OLD=NEW"``: names that match OLD are called NEW; what a ``*`` of OLD
            stands for comes in place of the same ``*`` of NEW.
        dialect: whose names the file has; ``None`` to find out.
    """

    key: str | None = None
    prefix: str | None = None
    ignore: Sequence[str] = ()
    rename: Sequence[str] = ()
    dialect: str | None = None

    def __post_init__(self) -> None:
        if self.dialect is not None:
            require_dialect(self.dialect)
        for field in ("ignore", "rename"):
            value = getattr(self, field)
            object.__setattr__(
                self, field, (value,) if isinstance(value, str) else tuple(value)
            )
        for rule in self.rename:
            old, equals, new = rule.partition("=")
            if not (equals and old) or old.count("*") < new.count("*"):
                raise ValueError(
                    f"rename is {rule!r}; write it as OLD=NEW, with no more * in NEW"
                )

    def within(self, value: Mapping[Any, Any], notes: list[str]) -> dict[Any, Any]:
        """Returns the entries of a state that are meant, under the names meant.

        Raises:
            CheckpointError: nothing is left, or two entries would be one.
        """
        found = dict(value)
        if self.prefix is not None:
            found = _under(found, self.prefix, notes)
        if self.ignore:
            left = {n: None for n in found if _matches(str(n), self.ignore)}
            vain = [
                p for p in self.ignore if not any(_matches(str(n), [p]) for n in left)
            ]
            found = {n: v for n, v in found.items() if n not in left}
            if left:
                notes.append(f"left out as asked: {_some([*left])}")
            if vain:
                notes.append(f"nothing to ignore is like {_some(vain)}")
        for rule in self.rename:
            found = _renamed(found, rule, notes)
        if value and not found:
            raise CheckpointError(
                "has nothing left of what was chosen",
                advice="Choose less narrowly with --prefix and --ignore",
            )
        return found


ALL = Selection()
"""All there is."""


def unwrapped(value: object, key: str | None, notes: list[str]) -> Mapping[Any, Any]:
    """Returns the state in whatever stands around it.

    Raises:
        CheckpointError: there is none, or there are several and no key.
    """
    if not isinstance(value, Mapping):
        raise CheckpointError(
            f"holds a {type(value).__name__}, not a mapping of names to tensors",
            advice="Save model.state_dict()",
        )
    if not value:
        raise CheckpointError(
            "holds no weights at all", advice="Save model.state_dict()"
        )
    if key is not None:
        return _entry(value, key)
    states = [name for name in value if _is_state(value[name]) and len(value[name])]
    states = states or [name for name in value if _is_state(value[name])]
    own = sum(map(_is_array, value.values()))
    if own and own >= max((len(value[name]) for name in states), default=0):
        return value
    known = [name for name in WRAPPERS if name in states]
    if len(known) > 1 or (len(states) > 1 and not known):
        several = {str(name): _what(value[name]) for name in known or states}
        one = "teacher" if "teacher" in several else next(iter(several))
        raise CheckpointError(
            {"has several states": [f"{n} ({what})" for n, what in several.items()]},
            advice=f"Choose one with --key, as with --key {one}",
        )
    chosen = known or states
    if not chosen:
        return value
    others = [str(name) for name in states if name != chosen[0]]
    note = f"took the state from the entry {chosen[0]!r}"
    if others:
        note += f"; --key takes another: {', '.join(others)}"
    notes.append(note)
    return value[chosen[0]]


def _entry(value: Mapping[Any, Any], key: str) -> Mapping[Any, Any]:
    if isinstance(value.get(key), Mapping):
        return value[key]
    first, dot, rest = key.partition(".")
    if dot and isinstance(value.get(first), Mapping):
        return _entry(value[first], rest)
    names = ", ".join(plain(str(name), most=50) for name in [*value][:5])
    raise CheckpointError(
        f"has no state under the key {key!r}",
        advice=f"It has {names} and so on: choose one with --key, or none",
    )


def _is_array(value: object) -> bool:
    if isinstance(value, np.generic | np.dtype):
        return False
    try:
        return hasattr(value, "shape") and hasattr(value, "dtype")
    except RuntimeError:  # a nested tensor has a shape that cannot be asked for
        return True


def _is_state(value: object) -> bool:
    """Whether this is what a wrapper holds, if only nothing."""
    return isinstance(value, Mapping) and (
        not value or any(map(_is_array, value.values()))
    )


def _what(state: Mapping[Any, Any]) -> str:
    plain_ones = {n: v for n, v in state.items() if not getattr(v, "is_nested", False)}
    shapes = {n: tuple(v.shape) for n, v in plain_ones.items() if _is_array(v)}
    return what_it_is({str(name): shape for name, shape in shapes.items()})


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _some(names: Sequence[Any]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(plain(str(name), most=80) for name in names[:3]) + more


def _under(value: dict[Any, Any], prefix: str, notes: list[str]) -> dict[Any, Any]:
    begins = (
        (prefix,) if prefix[-1:] in ("", ".", "/") else (f"{prefix}.", f"{prefix}/")
    )
    found = {
        name[len(begins[0]) :]: leaf
        for name, leaf in value.items()
        if isinstance(name, str) and name.startswith(begins)
    }
    if not found:
        tops = dict.fromkeys(str(name).partition(".")[0] for name in value)
        raise CheckpointError(
            f"has no names that begin with {prefix!r}",
            advice=f"They begin with {_some([*tops])}",
        )
    taken = sum(str(name).startswith(begins) for name in value)
    if taken > len(found):
        raise CheckpointError(
            f"has names that are the same behind {prefix!r}",
            advice="Choose with a prefix that ends in a dot or a slash",
        )
    left = len(value) - len(found)
    notes.append(
        f"took what begins with {prefix!r}, and left out {counted(left, 'other')}"
    )
    return found


def _renamed(value: dict[Any, Any], rule: str, notes: list[str]) -> dict[Any, Any]:
    old, _, new = rule.partition("=")
    found: dict[Any, Any] = {}
    many = 0
    for name, leaf in value.items():
        parts = _parts(str(name), old.split("*"))
        target = name
        if parts is not None:
            many += 1
            pieces = new.split("*")
            filled = [p + star for p, star in zip(pieces, [*parts, ""], strict=False)]
            target = "".join(filled[:-1]) + pieces[-1]
        if target in found:
            raise CheckpointError(
                f"{target} would be there twice", advice=f"--rename {rule} makes it so"
            )
        found[target] = leaf
    notes.append(f"renamed {counted(many, 'entry', 'entries')} as {rule}")
    return found


def _parts(name: str, pieces: list[str]) -> list[str] | None:
    """Returns what the stars between the pieces stand for, if the name matches."""
    first, *others = pieces
    if not name.startswith(first):
        return None
    if not others:
        return [] if name == first else None
    rest, found = name[len(first) :], []
    for piece in others[:-1]:
        before, there, rest_ = rest.partition(piece)
        if not there:
            return None
        found.append(before)
        rest = rest_
    last = others[-1]
    if not rest.endswith(last):
        return None
    return [*found, rest[: len(rest) - len(last)]]
