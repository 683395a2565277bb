"""Runs of one Flax module of a network, alone; ``torch_experiments`` has torch's."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from parity.running.experiments import Experiment
from parity.running.flax_programs import wide, x64
from parity.running.flax_runs import dtype_of
from parity.running.flax_watching import changed, current, renewed, watch
from parity.running.taps import Calls, Invocation, Quantity, blamed, path_of
from parity.running.translation import NAMES, Names
from parity.weights.flax_state import is_float, modules, own_variables
from parity.weights.names import Shape, torch_name

FLOAT32 = np.dtype(np.float32)

NO_SHAPES: Mapping[Quantity, Shape] = MappingProxyType({})


def experiment(
    model: nnx.Module,
    setup: Experiment,
    *,
    jit: bool = False,
    names: Names = NAMES,
    shapes: Mapping[Quantity, Shape] = NO_SHAPES,
    dtype: np.dtype = FLOAT32,
) -> dict[Quantity, np.ndarray]:
    """Runs one module alone; what it calls gives what the experiment says.

    Args:
        model: the whole network.
        setup: the module's call, and what it and its callees are given.
        jit: compile it.
        names: its names and layouts in torch.
        shapes: of what its calls are given, and give, in the network.
        dtype: that it computes in, if its state does not say so.

    Returns:
        Its output, what it hands on, and with gradients given those by its own input,
        by what its callees gave, and by its own parameters; its statistics; whatever
        else of its state it has changed.

    Raises:
        ModuleError: the module raised.
    """
    path, aliases = path_of(setup.tap), names.aliases
    inside = dict(modules(model, aliases=aliases))[path]
    place = next((ours for ours, torchs in aliases.items() if torchs == path), path)

    def own(below: tuple[Any, ...], value: Any) -> bool:
        parts = [place, *(str(part) for part in below)]
        ours = ".".join(part for part in parts if part)
        return isinstance(value, nnx.Param) and setup.owns(torch_name(ours, aliases))

    graph, parameters, rest = nnx.split(inside, own, ...)
    values = [v.get_value() for _, v in own_variables(model)]
    dtype = dtype_of(values, dtype)
    order: list[int] = []
    called: list[int] = []
    taps = [callee.tap for callee in setup.calls]

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
        found = {Quantity("input", taps[i]): value for i, value in handed.items()}
        ends = {i: value for i, value in handed.items() if is_float(value.dtype)}
        order[:], called[:] = ends, handed
        if not setup.training:
            found |= changed(before, own_state(copy))
        else:
            found |= changed(before, own_state(copy, nnx.Param))
            for name, value in own_state(copy, nnx.BatchStat).items():
                found[Quantity("statistic", name)] = value
        return (y, list(ends.values())), found

    def whole(parameters: Any, x: jax.Array, given: list[jax.Array], ends: Any) -> Any:
        if ends is None:
            return *forward(parameters, x, given), None
        values, back, after = jax.vjp(
            *(forward, parameters, x, given), has_aux=True
        )  # of integers the gradients are float0, and dropped
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
        found = current(module, of, place)
        return {
            name: value
            for name, value in found.items()
            if setup.owns(torch_name(name, aliases))
        }

    def put(kind: str, tap: str, array: np.ndarray) -> jax.Array:
        shape = shapes.get(Quantity(kind, tap))
        laid_out = names.layouts.to_jax(tap, array, shape)
        if array.dtype.kind == "f":
            return jax.device_put(laid_out.astype(dtype))
        return jax.device_put(
            laid_out.astype(np.int32 if array.dtype != bool else bool)
        )

    with x64(dtype), blamed(path):
        ends = None
        if setup.gradient is not None:
            ends = (
                put("output", setup.tap, setup.gradient),
                [
                    put("input", callee.tap, callee.gradient)
                    for callee in setup.calls
                    if callee.gradient is not None
                ],
            )
        given = [put("output", callee.tap, callee.output) for callee in setup.calls]
        do = jax.jit(whole) if jit else whole
        x = put("input", setup.tap, setup.input)
        (y, _), after, back = do(parameters, x, given, ends)
        found = {Quantity("output", setup.tap): y}
        if back is not None:
            by_parameter, by_input, by_given = back
            found[Quantity("input gradient", setup.tap)] = by_input
            for index in called:  # one that is handed integers, too
                found[Quantity("gradient", taps[index])] = by_given[index]
            found = {q: value for q, value in found.items() if is_float(value.dtype)}
            for name, value in by_parameter.items():
                found[Quantity("parameter gradient", name)] = value
        found |= after
        arrays = ((q, jax.device_get(wide(value))) for q, value in found.items())
        return dict(names.in_torch(arrays))
