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


def state(model: nnx.Module, *, aliases: Aliases = NO_ALIASES) -> dict[str, np.ndarray]:
    """Returns a copy of every entry of the state, in torch's names and layout."""
    return {
        name: names.to_torch(leaf, jax.device_get(variable.get_value()))
        for name, leaf, variable in variables(model, aliases=aliases)
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
        # A copy: on the CPU JAX would otherwise share numpy's memory. In x64 mode: a
        # model made in it may be filled outside of it.
        with jax.enable_x64(True):
            values.append((variable, jax.device_put(array.copy(), place)))
    for variable, value in values:
        variable.set_value(value)


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
    yield aliases.get(path, path), model
    for name, child in children(model):
        below = f"{path}.{name}" if path else name
        yield from modules(child, below, aliases=aliases)


def children(module: nnx.Module) -> Iterator[tuple[str, nnx.Module]]:
    """Yields the modules that are this one's attributes, in torch's order."""
    # What has been through nnx.merge, and so through nnx.jit, has its attributes
    # sorted by name.
    found = {k: v for k, v in vars(module).items() if isinstance(v, nnx.Module)}
    for name in names.in_torch_order(found, getattr(module, "layer_names", ())):
        yield name, found[name]


def variables(
    model: nnx.Module, path: str = "", *, aliases: Aliases = NO_ALIASES
) -> Iterator[tuple[str, str, nnx.Variable[Any]]]:
    """Yields the torch name, the Flax leaf's name and the variable, in order.

    Raises:
        ValueError: a variable has no name in torch.
    """
    for place, module in modules(model, path, aliases=aliases):
        leaves = {
            name: value
            for name, value in vars(module).items()
            if isinstance(value, nnx.Variable) and not isinstance(value, nnx.RngState)
        }
        unknown = [leaf for leaf in leaves if leaf not in names.TORCH_LEAF]
        if unknown:
            raise ValueError(
                f"{place}.{unknown[0]} has no name in torch; parity knows the leaves "
                f"{', '.join(names.TORCH_LEAF)}"
            )
        for leaf, name in names.TORCH_LEAF.items():
            if leaf in leaves:
                yield (f"{place}.{name}" if place else name), leaf, leaves[leaf]


def is_float(dtype: Any) -> bool:
    """Whether it is a floating-point dtype, bfloat16 too."""
    return jnp.issubdtype(dtype, jnp.floating)
