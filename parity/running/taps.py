"""What parity notes of a network while it runs, in torch's names and layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from inspect import ismethod, signature
from typing import Any, NamedTuple

import numpy as np

from parity.weights.names import Shape

OUTPUT = "output"
"""Name of the tap on the network's own result."""

INPUT = "input"
"""Name of the network's own input; several are parts of it."""

NESTED = ":"
"""Stands before the name of a part: ``output:logits``, ``attention:0``."""


@dataclass(frozen=True)
class Call:
    """One call of a module without children; shapes of one image, (c, h, w)."""

    tap: str
    kind: str
    input: Shape
    output: Shape
    stride: int | None
    padding: int | str | None


class Quantity(NamedTuple):
    """Something that a run gives.

    Args:
        kind: ``"input"`` and ``"output"`` of a module's call; ``"gradient"`` of the
            loss by that output, ``"input gradient"`` by what this call was given;
            ``"parameter gradient"``; ``"statistic"``, a buffer after training;
            ``"kink"``, what a function was given whose derivative jumps, and ``"way"``,
            on which side of its jumps each unit is;
            ``"result"``, what a network gives that is asked once more;
            ``"state"``, an entry that the run has changed though nothing learns;
            ``"loss"``.
        name: of the tap, or of the entry of the state.
    """

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} of {self.name}" if self.name else self.kind


LOSS = Quantity("loss", "")

NOTED = ("input", "kink", "way")
"""Kinds that are noted of a run, and not compared."""


class ModuleError(RuntimeError):
    """A module that raised instead of giving an output.

    Args:
        path: the innermost module's path.
        error: what it raised.
    """

    def __init__(self, path: str, error: Exception) -> None:
        self.path = path or OUTPUT
        first_line = str(error).strip().partition("\n")[0]
        self.what = f"raised {type(error).__name__}: {first_line}"
        super().__init__(f"{self.path} {self.what}")


@contextmanager
def blamed(path: str = "") -> Iterator[None]:
    """Takes whatever is raised meanwhile for the doing of the module at this path.

    Raises:
        ModuleError: something was raised.
    """
    try:
        yield
    except ModuleError:
        raise
    except Exception as error:
        raise ModuleError(path, error) from error


class Calls:
    """The calls of one run: the path names the first, ``path@2`` the second.

    ``callers`` has, for the name of each call, that of the call that it was made in;
    ``dtypes`` what its output was computed in; ``plain`` are those that were given one
    array, and gave one; ``folds`` are functions whose derivative jumps; ``rectified``
    has the largest value that rectifiers were given, by the call that they are in.
    """

    def __init__(self) -> None:
        self.callers: dict[str, str] = {}
        self.dtypes: dict[str, str] = {}
        self.plain: set[str] = set()
        self.folds: dict[str, Any] = {}
        self.rectified: dict[str, float] = {}
        self._open: list[str] = []
        self._counts: Counter[str] = Counter()

    @property
    def current(self) -> tuple[str, str] | None:
        """The innermost call that has not ended, and its module's path."""
        return (self._open[-1], path_of(self._open[-1])) if self._open else None

    @contextmanager
    def enter(self, path: str) -> Iterator[str]:
        """Names the call of the module at this path, for as long as it lasts.

        Raises:
            ModuleError: whatever was raised in it.
        """
        self._counts[path] += 1
        count = self._counts[path]
        tap = tap_of(path) + (f"@{count}" if count > 1 else "")
        self.callers[tap] = self._open[-1] if self._open else ""
        self._open.append(tap)
        try:
            with blamed(path):
                yield tap
        finally:
            self._open.pop()


@dataclass(frozen=True)
class Invocation:
    """A module that is being called; what stands around the call gets this.

    Args:
        path: the module's.
        module: itself.
        x: its first input, an array of its framework.
        alone: whether that is all that it is given.
        result: computes what it gives.
    """

    path: str
    module: Any
    x: Any
    alone: bool
    result: Callable[[], Any]


Around = Callable[[Invocation], Any]
"""Stands around every module's call, and gives what the module shall have given."""


def tap_of(path: str) -> str:
    """Names the tap on the first call of the module at this path."""
    return f".{path}" if path == OUTPUT else path or OUTPUT


def path_of(tap: str) -> str:
    """Returns the path of the module whose output, or part of it, a tap is."""
    path = call_of(tap).partition("@")[0]
    return "" if path == OUTPUT else path.removeprefix(".")


def call_of(tap: str) -> str:
    """Returns the name of the call that gave what is tapped, or a part of it."""
    return tap.partition(NESTED)[0]


def parts(value: Any, kind: type, name: str) -> Iterator[tuple[str, Any]]:
    """Yields the arrays in what a module gives, by name, however they are nested.

    Args:
        value: an array, or a mapping, a sequence or a dataclass of such.
        kind: class of the arrays.
        name: of the whole; a part's key, index or field stands behind a colon.
    """
    if isinstance(value, kind):
        yield name, value
        return
    inner: Mapping[Any, Any] = {}
    if isinstance(value, Mapping):
        inner = value
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        inner = dict(enumerate(value))
    elif is_dataclass(value) and not isinstance(value, type):
        inner = {field.name: getattr(value, field.name) for field in fields(value)}
    for key, part in inner.items():
        yield from parts(part, kind, f"{name}{NESTED}{key}")


@dataclass(frozen=True)
class Batch:
    """What one training step learns from: images (n, c, h, w) and their classes."""

    images: np.ndarray
    labels: np.ndarray


Branch = Mapping[str, np.ndarray]
"""Which way a run took: on which side of each jump a unit is, each pool's winners."""

Visit = Callable[[Quantity, np.ndarray], None]
"""Is told each quantity of a run and its value, good until the call returns."""

Learnt = tuple[Any, list[dict[Quantity, np.ndarray]]]
"""A trained network, and what each step gave: the loss, and rectifiers' signs."""

Inputs = Mapping[str, np.ndarray]
"""What a network is called with: ``input`` alone, or ``input:0`` and ``input:mask``."""


def inputs_of(given: Any) -> Inputs:
    """Names what a network shall be called with.

    Args:
        given: an array; several in a tuple, by position; or a mapping, by keyword.
    """
    if isinstance(given, tuple):
        given = dict(enumerate(given))
    if isinstance(given, Mapping):
        return {f"{INPUT}{NESTED}{key}": np.asarray(v) for key, v in given.items()}
    return {INPUT: np.asarray(given)}


AGAIN = f"{OUTPUT}@2"
"""Name of what a network gives when it is called a second time."""

PRE_LOGITS = "forward_head(pre_logits)"

ASKED = ("features", "feature_maps", "forward_features", "forward_head", PRE_LOGITS)
"""Methods by which a network gives parts of what it computes."""


def answers(model: Any, ask: str) -> bool:
    """Whether a network can be asked for this, one of :data:`ASKED`."""
    name, _, option = ask.rstrip(")").partition("(")
    method = getattr(model, name, None)
    return ismethod(method) and (not option or option in signature(method).parameters)


def results(
    model: Any, call: Callable[[Any], Any], ask: Sequence[str]
) -> Iterator[tuple[str, Any]]:
    """Yields what a network gives when it is asked once more, by name.

    Args:
        model: that has been called once.
        call: calls what it is given on the network's inputs.
        ask: :data:`AGAIN` for its result, and names of methods, of :data:`ASKED`; a
            head is called on what last came of another method.
    """
    last = None
    for name in ask:
        if name == "forward_head":
            yield name, model.forward_head(last)
        elif name == PRE_LOGITS:
            yield name, model.forward_head(last, pre_logits=True)
        else:
            last = call(model if name == AGAIN else getattr(model, name))
            yield name, last


def called_with(values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Returns the arguments, by position and by keyword, that are named so."""
    keys = {name: name.partition(NESTED)[2] for name in values}
    positional = [
        v for name, v in values.items() if not keys[name] or keys[name].isdigit()
    ]
    named = {
        key: values[name] for name, key in keys.items() if key and not key.isdigit()
    }
    return positional, named
