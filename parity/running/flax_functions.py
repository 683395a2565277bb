"""Runs of a function of JAX, which shows what it returns, and no modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

import jax
import numpy as np

from parity.running.flax_programs import Program
from parity.running.flax_runs import dtype_of, laid_out, loss_of
from parity.running.objective import Objective
from parity.running.seen import Seen
from parity.running.taps import (
    LOSS,
    OUTPUT,
    Inputs,
    Quantity,
    blamed,
    called_with,
    parts,
)
from parity.running.translation import Names
from parity.weights.flax_state import is_float

Rebuild = Callable[[Sequence[Any]], Any]


@dataclass
class Opened:
    """A function whose arrays are arguments.

    Args:
        function: with its arrays in it.

    Attributes:
        arrays: what it computes with, by name: the keys under which they lie in the
            arguments of ``functools.partial``, in a closure's variables, in the globals
            that it names, or in a pytree that is called.
        filled: makes the function of other such arrays.
    """

    function: Any
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._open: list[int] = []
        self._home = getattr(_innermost(self.function), "__globals__", {})
        self.filled: Rebuild = self._rebuild(self.function, "")

    def _rebuild(self, value: Any, name: str) -> Rebuild:
        if id(value) in self._open:  # what calls itself
            return lambda _: value
        self._open.append(id(value))
        before = len(self.arrays)
        rebuild = self._rebuild_of(value, name)
        self._open.pop()
        return rebuild if len(self.arrays) > before else lambda _: value

    def _rebuild_of(self, value: Any, name: str) -> Rebuild:
        if isinstance(value, partial):
            parts = [value.func, value.args, value.keywords]
            function, args, keywords = (self._rebuild(part, name) for part in parts)
            return lambda a: partial(function(a), *args(a), **keywords(a))
        if isinstance(value, MethodType):
            owner = self._rebuild(value.__self__, name)
            return lambda a: MethodType(value.__func__, owner(a))
        if isinstance(value, FunctionType):
            return self._of_function(value, name)
        if not isinstance(value, type) and hasattr(value, "__wrapped__"):  # jax.jit's
            return self._rebuild(value.__wrapped__, name)
        leaves, structure = jax.tree_util.tree_flatten_with_path(value)
        if len(leaves) == 1 and leaves[0][1] is value:
            return self._of_leaf(value, name)
        rebuilds = [self._rebuild(leaf, _joined(name, path)) for path, leaf in leaves]
        return lambda a: jax.tree.unflatten(structure, [r(a) for r in rebuilds])

    def _of_leaf(self, value: Any, name: str) -> Rebuild:
        if not isinstance(value, np.ndarray | np.generic | jax.Array):
            return lambda _: value
        while name in self.arrays:
            name += "'"
        index = len(self.arrays)
        self.arrays[name] = np.asarray(jax.device_get(value))
        return lambda a: a[index]

    def _of_function(self, value: FunctionType, name: str) -> Rebuild:
        cells = {}
        for variable, cell in zip(
            value.__code__.co_freevars, value.__closure__ or (), strict=True
        ):
            try:
                content = cell.cell_contents
            except ValueError:  # not yet filled
                continue
            cells[variable] = self._rebuild(content, _beside(name, variable, content))
        defaults = self._rebuild(value.__defaults__, name)
        keywords = self._rebuild(value.__kwdefaults__, name)
        named = {}
        if value.__globals__ is self._home:
            for variable in value.__code__.co_names:
                if variable in value.__globals__:
                    content = value.__globals__[variable]
                    below = _beside(name, variable, content)
                    named[variable] = self._rebuild(content, below)

        def rebuilt(arrays: Sequence[Any]) -> FunctionType:
            globals_of = value.__globals__
            if named:
                globals_of = {**globals_of, **{n: r(arrays) for n, r in named.items()}}
            closure = tuple(
                CellType(cells[variable](arrays)) if variable in cells else cell
                for variable, cell in zip(
                    value.__code__.co_freevars, value.__closure__ or (), strict=True
                )
            )
            code = value.__code__
            found = FunctionType(
                code, globals_of, value.__name__, defaults(arrays), closure
            )
            found.__kwdefaults__ = keywords(arrays)
            return found

        return rebuilt


def _innermost(value: Any) -> Any:
    while True:
        inner = getattr(value, "func", getattr(value, "__wrapped__", None))
        if inner is None or isinstance(value, type):
            return value
        value = inner


def _beside(name: str, variable: str, content: Any) -> str:
    """Names what a variable holds; a function's arrays need not say by which way."""
    return name if callable(content) else ".".join(filter(None, [name, variable]))


def _joined(name: str, path: Sequence[Any]) -> str:
    keys = [
        str(next(getattr(key, at) for at in ("key", "name", "idx") if hasattr(key, at)))
        for key in path
    ]
    if keys and isinstance(path[0], jax.tree_util.SequenceKey) and not name:
        keys = keys[1:]  # which argument
    return ".".join(filter(None, [name, *keys]))


def forward(
    function: Opened, inputs: Inputs, names: Names, *, float64: bool = False
) -> Program:
    """Makes a program of a function that gives its result and what it shows.

    Args:
        function: see :func:`parity.compare_modules`.
        inputs: what it is given.
        names: the names of what it shows in torch.
        float64: raise the inputs and its arrays.
    """
    arrays, inputs = _ready(function, inputs, names, float64=float64)
    seen = Seen()

    def run(*arguments: jax.Array) -> dict[Quantity, jax.Array]:
        given = arguments[len(arrays) :]
        y = _result(
            function, arguments[: len(arrays)], dict(zip(inputs, given, strict=True))
        )
        return _noted(y, seen)

    return _program(run, arrays, inputs, names, seen)


def train(
    function: Opened,
    inputs: Inputs,
    objective: Objective,
    names: Names,
    *,
    float64: bool = False,
) -> Program:
    """Makes a program that differentiates by a function's inputs and its arrays.

    Args:
        function: see :func:`forward`.
        inputs: see :func:`forward`.
        objective: what is differentiated.
        names: see :func:`forward`.
        float64: see :func:`forward`.
    """
    arrays, inputs = _ready(function, inputs, names, float64=float64)
    seen = Seen()

    def run(*arguments: jax.Array) -> dict[Quantity, jax.Array]:
        places = [i for i, x in enumerate(arguments) if is_float(x.dtype)]

        def differentiated(floats: list[jax.Array]) -> Any:
            filled = list(arguments)
            for place, value in zip(places, floats, strict=True):
                filled[place] = value
            given = dict(zip(inputs, filled[len(arrays) :], strict=True))
            result, shown = _result(function, filled[: len(arrays)], given)
            return loss_of(result, objective, names), _noted((result, shown), seen)

        gradients = jax.value_and_grad(differentiated, has_aux=True)
        (loss, found), by = gradients([arguments[place] for place in places])
        found[LOSS] = loss
        labels = [
            *(Quantity("parameter gradient", name) for name in function.arrays),
            *(Quantity("input gradient", name) for name in inputs),
        ]
        for place, gradient in zip(places, by, strict=True):
            found[labels[place]] = gradient
        return found

    return _program(run, arrays, inputs, names, seen)


def _ready(
    function: Opened, inputs: Inputs, names: Names, *, float64: bool
) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    arrays = list(function.arrays.values())
    given = laid_out(inputs, dtype_of(arrays), names)
    if float64:
        arrays = [_raised(array) for array in arrays]
        given = {name: _raised(array) for name, array in given.items()}
    return arrays, given


def _raised(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if is_float(array.dtype) else array


def _result(
    function: Opened, arrays: Sequence[jax.Array], given: Mapping[str, jax.Array]
) -> tuple[Any, Any]:
    """Returns what it gives, and what else it shows."""
    args, named = called_with(given)
    with blamed():
        found = function.filled(arrays)(*args, **named)
    shows = (
        isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Mapping)
    )
    return found if shows and not isinstance(found[0], Mapping) else (found, {})


def _noted(found: tuple[Any, Any], seen: Seen) -> dict[Quantity, jax.Array]:
    result, shown = found
    named = [*_flat(shown), *parts(result, jax.Array, OUTPUT)]
    for name, value in named:
        seen.dtypes[name] = value.dtype.name
    return {Quantity("output", name): value for name, value in named}


def _flat(shown: Any, path: str = "") -> list[tuple[str, jax.Array]]:
    """Lists what a function shows, by names joined with points."""
    if isinstance(shown, Mapping):
        inner = [
            (f"{path}.{name}" if path else str(name), below)
            for name, below in shown.items()
        ]
    elif isinstance(shown, Sequence) and not isinstance(shown, str):
        # Linen has a tuple for each module.
        inner = [
            (path if index == 0 else f"{path}@{index + 1}", below)
            for index, below in enumerate(shown)
        ]
    else:
        return [(path, shown)] if isinstance(shown, jax.Array) else []
    return [found for name, below in inner for found in _flat(below, name)]


def _program(
    run: Callable[..., dict[Quantity, jax.Array]],
    arrays: Sequence[np.ndarray],
    inputs: Mapping[str, np.ndarray],
    names: Names,
    seen: Seen,
) -> Program:
    given = [*arrays, *inputs.values()]
    dtype = dtype_of(given, np.dtype(np.float32))
    return Program(run, given, dtype, names.in_torch, seen)
