"""Something put around the calls of a Flax module and of all that are in it."""

from __future__ import annotations

from functools import cache, partial
from typing import Any, cast

import jax
from flax import nnx

from parity.running.taps import Around, Invocation, Quantity
from parity.weights.flax_state import NO_ALIASES, Aliases, modules, variables


def watch(
    model: nnx.Module,
    around: Around,
    path: str = "",
    *,
    aliases: Aliases = NO_ALIASES,
) -> None:
    """Puts something around the call of every module.

    They become instances of a listening subclass, so the model must be a copy made for
    one run.
    """
    for name, module in list(modules(model, path, aliases=aliases)):
        if callable(module):
            vars(module)["_watched"] = partial(_asked, around, name)
            object.__setattr__(module, "__class__", _listening(type(module)))


def _asked(
    around: Around, path: str, module: nnx.Module, x: jax.Array, result: Any
) -> Any:
    return around(Invocation(path, module, x, result))


@cache
def _listening(cls: type[nnx.Module]) -> type[nnx.Module]:
    class Listening(cls):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            result = partial(cast(Any, super()).__call__, *args, **kwargs)
            if not args or not isinstance(args[0], jax.Array):
                return result()
            return vars(self)["_watched"](self, args[0], result)

    Listening.__name__ = cls.__name__
    Listening.__qualname__ = cls.__qualname__
    return Listening


def renewed(state: nnx.State) -> nnx.State:
    """Returns the same in new variables, which a function may change while traced.

    nnx changes variables only at the level of tracing that they were made at.
    """
    return jax.tree.map(lambda value: value, state)


def current(
    model: nnx.Module,
    of: type[nnx.Variable[Any]] = nnx.Variable,
    path: str = "",
    *,
    aliases: Aliases = NO_ALIASES,
) -> dict[str, jax.Array]:
    """Returns what the variables of a kind hold now, by torch's names."""
    return {
        name: variable.get_value()
        for name, _, variable in variables(model, path, aliases=aliases)
        if isinstance(variable, of)
    }


def changed(
    before: dict[str, jax.Array], after: dict[str, jax.Array]
) -> dict[Quantity, jax.Array]:
    """Returns the part of the state that a traced run has put something else into."""
    return {
        Quantity("state", name): value
        for name, value in after.items()
        if value is not before[name]
    }
