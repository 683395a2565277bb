"""The state of a Flax NNX module, as arrays. ``torch_state`` has the same functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from parity.weights import names
from parity.weights.names import Entry

FRAMEWORK = "flax"

Aliases = Mapping[str, str]
"""Path in Flax → path in torch, where a network of others has names of its own."""

NO_ALIASES: Aliases = MappingProxyType({})


def entries(model: nnx.Module) -> dict[str, Entry]:
    """Returns the shape and dtype of every entry of the state, in torch's terms."""
    return {
        name: Entry(
            names.torch_shape(leaf, variable.get_value().shape),
            "int64" if leaf == names.COUNTER else str(variable.get_value().dtype),
        )
        for name, leaf, variable in variables(model)
    }


def state(model: nnx.Module) -> dict[str, np.ndarray]:
    """Returns a copy of every entry of the state, in torch's names and layout."""
    return {
        name: names.to_torch(leaf, jax.device_get(variable.get_value()))
        for name, leaf, variable in variables(model)
    }


def assign(model: nnx.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes entries that have been checked into the model; fills an abstract one."""
    values = []
    for name, leaf, variable in variables(model):
        if name not in arrays:
            continue
        old = variable.get_value()
        array = names.to_flax(leaf, arrays[name])
        place = old.sharding if isinstance(old, jax.Array) else None
        # What JAX may share on a CPU is nobody else's. In x64 mode: a model made in it
        # may be filled outside of it.
        with jax.enable_x64(True):
            values.append((variable, jax.device_put(array, place)))
    for variable, value in values:
        variable.set_value(value)
    for _, holder in holders(model):
        for variable in _attributes(holder).values():  # what no state has begins anew
            if isinstance(variable, nnx.RngState) and _is_abstract_count(variable):
                variable.set_value(jnp.zeros((), variable.get_value().dtype))


def _is_abstract_count(variable: nnx.RngState) -> bool:
    value = variable.get_value()
    abstract = isinstance(value, jax.ShapeDtypeStruct)
    return abstract and jnp.issubdtype(value.dtype, jnp.integer)


def has_data(model: nnx.Module) -> bool:
    """Whether every entry of the state has values."""
    values = (variable.get_value() for _, _, variable in variables(model))
    return all(isinstance(value, jax.Array) for value in values)


def to_torch_layout(array: np.ndarray) -> np.ndarray:
    """Returns maps (n, h, w, c) as (n, c, h, w), and anything else as it is."""
    return array.transpose(0, 3, 1, 2) if array.ndim == 4 else array


def to_flax_layout(array: np.ndarray) -> np.ndarray:
    """Returns maps (n, c, h, w) as (n, h, w, c), and anything else as it is."""
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def modules(
    model: nnx.Module, path: str = "", *, aliases: Aliases = NO_ALIASES
) -> Iterator[tuple[str, nnx.Module]]:
    """Yields every module's path in torch, and the module, in torch's order."""
    for place, holder in holders(model, path):
        if isinstance(holder, nnx.Module):
            yield aliases.get(place, place), holder


def holders(
    model: Any, path: str = "", above: tuple[Any, ...] = ()
) -> Iterator[tuple[str, Any]]:
    """Yields what may hold variables, by path: modules, and containers in them.

    What holds itself, by way of others, is there once.
    """
    if any(model is other for other in above):
        return
    yield path, model
    held = _held(model)
    declared = getattr(model, "layer_names", ())
    # What has been through nnx.merge, and so through nnx.jit, has its attributes
    # sorted by name.
    for name in names.in_torch_order(held, declared):
        below = f"{path}.{name}" if path else name
        yield from holders(held[name], below, (*above, model))


def _held(holder: Any) -> dict[str, Any]:
    kinds = nnx.Module | dict | list | tuple | nnx.State
    found = {k: v for k, v in _attributes(holder).items() if isinstance(v, kinds)}
    return {k: v for k, v in found.items() if isinstance(v, nnx.Module) or len(v)}


def _attributes(holder: Any) -> dict[str, Any]:
    if isinstance(holder, nnx.Module):
        own = vars(holder).items()  # nnx keeps a mapping of its own there
        return {k: value for k, value in own if not k.startswith("_pytree__")}
    found = holder.items() if isinstance(holder, Mapping) else enumerate(holder)
    return {str(key): value for key, value in found}


def children(module: nnx.Module) -> Iterator[tuple[str, nnx.Module]]:
    """Yields the modules that are this one's attributes, in torch's order."""
    held = _held(module)
    for name in names.in_torch_order(held, getattr(module, "layer_names", ())):
        if isinstance(held[name], nnx.Module):
            yield name, held[name]


def variables(
    model: nnx.Module, path: str = "", *, aliases: Aliases = NO_ALIASES
) -> Iterator[tuple[str, str, nnx.Variable[Any]]]:
    """Yields the torch name, the Flax leaf's name and the variable, in order.

    Raises:
        ValueError: a variable has no name in torch.
    """
    for own, variable in own_variables(model, path):
        place, _, leaf = own.rpartition(".")
        place = aliases.get(place, place)
        if leaf not in names.TORCH_LEAF:
            raise ValueError(
                f"{place}.{leaf} has no name in torch; parity knows the leaves "
                f"{', '.join(names.TORCH_LEAF)}"
            )
        yield names.torch_name(own, aliases), leaf, variable


def own_variables(
    model: nnx.Module, path: str = ""
) -> Iterator[tuple[str, nnx.Variable[Any]]]:
    """Yields the variables by their own names, those that torch knows in its order.

    What only a random generator or a run leaves behind is none of the state.
    """
    order = list(names.TORCH_LEAF)
    for place, holder in holders(model, path):
        leaves = {
            name: value
            for name, value in _attributes(holder).items()
            if isinstance(value, nnx.Variable)
            and not isinstance(value, nnx.RngState | nnx.Intermediate)
        }
        known = sorted(leaves.keys() & set(order), key=order.index)
        for leaf in [*known, *(leaf for leaf in leaves if leaf not in known)]:
            yield f"{place}.{leaf}" if place else leaf, leaves[leaf]


def is_float(dtype: Any) -> bool:
    """Whether it is a floating-point dtype, bfloat16 too."""
    return jnp.issubdtype(dtype, jnp.floating)
