"""Something put around the calls of a Flax module and of all that are in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from parity.running.taps import Around, Invocation, Quantity, parts
from parity.weights.flax_state import NO_ALIASES, Aliases, modules, own_variables

WATCHED = "_pytree__watched_by"
"""What nnx, and what bridges to it, take for none of a module's own attributes."""


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
        if callable(module) and WATCHED not in vars(module):
            vars(module)[WATCHED] = around, name
            object.__setattr__(module, "__class__", _listening(type(module)))


def unwatch(model: nnx.Module) -> None:
    """Takes it away again."""
    for _, module in list(modules(model)):
        if vars(module).pop(WATCHED, None) is not None:
            object.__setattr__(module, "__class__", type(module).__mro__[1])


@cache
def _listening(cls: type[nnx.Module]) -> type[nnx.Module]:
    class Listening(cls):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            result = partial(cast(Any, super()).__call__, *args, **kwargs)
            around, path = vars(self)[WATCHED]
            given = [x for _, x in parts([args, kwargs], jax.Array, path)]
            x = given[0] if given else None
            alone = len(args) == 1 and not kwargs and x is args[0]
            return around(Invocation(path, self, x, alone, result))

    Listening.__name__ = cls.__name__
    Listening.__qualname__ = cls.__qualname__
    return Listening


def renewed(state: nnx.State) -> nnx.State:
    """Returns the same in new variables, which a function may change while traced.

    nnx changes variables only at the level of tracing that they were made at.
    """
    return jax.tree.map(lambda value: value, state)


def current(
    model: nnx.Module, of: type[nnx.Variable[Any]] = nnx.Variable, path: str = ""
) -> dict[str, jax.Array]:
    """Returns what the variables of a kind hold now, by their own names."""
    return {
        name: variable.get_value()
        for name, variable in own_variables(model, path)
        if isinstance(variable, of)
    }


def changed(
    before: dict[str, jax.Array], after: dict[str, jax.Array]
) -> dict[Quantity, jax.Array]:
    """Returns the part of the state that a traced run has put something else into."""
    return {
        Quantity("state", name): value
        for name, value in after.items()
        if value is not before.get(name)
    }


def flattened(state: Any) -> tuple[list[np.ndarray], Callable[..., Any]]:
    """Returns a state's arrays, and what makes the state of such.

    The keys of random generators are arrays of words meanwhile.
    """
    leaves, structure = jax.tree.flatten(state)
    kinds = [jax.random.key_impl(leaf) if _is_key(leaf) else None for leaf in leaves]

    def restored(arrays: Sequence[jax.Array]) -> Any:
        found = [
            array if kind is None else jax.random.wrap_key_data(array, impl=kind)
            for array, kind in zip(arrays, kinds, strict=True)
        ]
        return jax.tree.unflatten(structure, found)

    return [np.asarray(jax.device_get(array)) for array in words(state)], restored


def words(state: Any) -> list[jax.Array]:
    """Returns a state's arrays, with the words of random generators' keys."""
    leaves = jax.tree.leaves(state)
    return [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in leaves]


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
