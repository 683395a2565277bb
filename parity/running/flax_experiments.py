"""Runs of one Flax module of a network, alone; ``torch_experiments`` has torch's."""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from parity.running.experiments import Experiment
from parity.running.flax_programs import to_torch, wide, x64
from parity.running.flax_watching import changed, current, renewed, watch
from parity.running.taps import Calls, Invocation, Quantity, path_of
from parity.weights.flax_state import (
    NO_ALIASES,
    Aliases,
    is_float,
    modules,
    to_flax_layout,
    variables,
)


def experiment(
    model: nnx.Module,
    setup: Experiment,
    *,
    jit: bool = False,
    aliases: Aliases = NO_ALIASES,
) -> dict[Quantity, np.ndarray]:
    """Runs one module alone; what it calls gives what the experiment says.

    Args:
        model: the whole network.
        setup: the module's call, and what it and its callees are given.
        jit: compile it.
        aliases: the names of its modules in torch.

    Returns:
        Its output, what it hands on, and with gradients given those by its own input,
        by what its callees gave, and by its own parameters; its statistics; whatever
        else of its state it has changed.

    Raises:
        ModuleError: the module raised.
    """
    path = path_of(setup.tap)
    inside = dict(modules(model, aliases=aliases))[path]
    place = next((ours for ours, torchs in aliases.items() if torchs == path), path)

    def own(below: tuple[Any, ...], value: Any) -> bool:
        *parts, leaf = (str(part) for part in below)
        ours = ".".join([place, *parts] if place else parts)
        named = f"{aliases.get(ours, ours)}.{leaf}"
        return isinstance(value, nnx.Param) and setup.owns(named)

    graph, parameters, rest = nnx.split(inside, own, ...)
    dtype = next(
        value.dtype
        for _, _, variable in variables(model, aliases=aliases)
        if is_float((value := variable.get_value()).dtype)
    )
    order: list[int] = []

    def forward(parameters: Any, x: jax.Array, given: list[jax.Array]) -> Any:
        copy = nnx.merge(graph, parameters, renewed(rest))
        calls, waiting = Calls(), setup.waiting()
        handed: dict[int, jax.Array] = {}

        def around(it: Invocation) -> Any:
            if it.module is not copy and waiting.get(it.path):
                index = waiting[it.path].pop(0)
                handed[index] = it.x
                return given[index]
            with calls.enter(it.path):
                return it.result()

        before = own_state(copy)
        watch(copy, around, place, aliases=aliases)
        y = cast(Any, copy)(x)
        order[:] = handed
        if setup.gradient is None:
            return (y, list(handed.values())), changed(before, own_state(copy))
        found = changed(before, own_state(copy, nnx.Param))
        for name, value in own_state(copy, nnx.BatchStat).items():
            found[Quantity("statistic", name)] = value
        return (y, list(handed.values())), found

    def whole(parameters: Any, x: jax.Array, given: list[jax.Array], ends: Any) -> Any:
        if ends is None:
            return *forward(parameters, x, given), None
        values, back, after = jax.vjp(forward, parameters, x, given, has_aux=True)
        by_output, by_handed = ends
        ends = by_output, [by_handed[i] for i in order]
        shapes = jax.tree.map(jnp.shape, (values, ends))
        if shapes[0] != shapes[1]:
            return values, after, None  # the outputs say so
        like = jax.tree.map(lambda end, value: end.astype(value.dtype), ends, values)
        by_parameter, by_input, by_given = back(like)
        by_parameter = own_state(nnx.merge(graph, by_parameter, rest), nnx.Param)
        return values, after, (by_parameter, by_input, by_given)

    def own_state(
        module: nnx.Module, of: type[nnx.Variable[Any]] = nnx.Variable
    ) -> dict[str, jax.Array]:
        found = current(module, of, place, aliases=aliases)
        return {name: value for name, value in found.items() if setup.owns(name)}

    def put(array: np.ndarray) -> jax.Array:
        return jax.device_put(to_flax_layout(array).astype(dtype))

    names = [callee.tap for callee in setup.calls]
    gradients = [c.gradient for c in setup.calls if c.gradient is not None]
    with x64(dtype):
        ends = None
        if setup.gradient is not None:
            ends = put(setup.gradient), [put(gradient) for gradient in gradients]
        given = [put(callee.output) for callee in setup.calls]
        do = jax.jit(whole) if jit else whole
        (y, handed), after, back = do(parameters, put(setup.input), given, ends)
        found = {Quantity("output", setup.tap): y}
        for index, value in zip(order, handed, strict=True):
            found[Quantity("input", names[index])] = value
        if back is not None:
            by_parameter, by_input, by_given = back
            found[Quantity("input gradient", setup.tap)] = by_input
            for index in order:
                found[Quantity("gradient", names[index])] = by_given[index]
            for name, value in by_parameter.items():
                found[Quantity("parameter gradient", name)] = value
        found |= after
        return {q: to_torch(q, wide(value)) for q, value in found.items()}
