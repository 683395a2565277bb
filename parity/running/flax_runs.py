"""Runs of a Flax NNX module, with what its modules give. ``torch_runs`` has the same.

Most are made into a :class:`parity.running.flax_programs.Program` first.
"""

from __future__ import annotations

from collections.abc import (
    Callable,
    Container,
    Iterable,
    Mapping,
    Sequence,
)
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export

import resnet_flax.optim
from parity.running.flax_programs import Program, computed_elsewhere
from parity.running.flax_watching import (
    changed,
    current,
    flattened,
    renewed,
    unwatch,
    watch,
    words,
)
from parity.running.objective import Objective
from parity.running.seen import Seen
from parity.running.taps import (
    INPUT,
    LOSS,
    OUTPUT,
    Batch,
    Call,
    Calls,
    Inputs,
    Invocation,
    Quantity,
    blamed,
    called_with,
    parts,
    results,
)
from parity.running.translation import NAMES, Names
from parity.weights.flax_state import (
    NO_ALIASES,
    Aliases,
    children,
    is_float,
    own_variables,
    to_flax_layout,
    to_torch_layout,
)
from parity.weights.names import Shape
from resnet_spec import OptimizerConfig


def run(model: nnx.Module, images: np.ndarray) -> np.ndarray:
    """Runs the model as it is, jitted, on images (n, c, h, w); returns its result."""
    graph, tree = nnx.split(model)
    arrays, restored = flattened(tree)

    @jax.jit
    def forward(arrays: list[jax.Array], x: jax.Array) -> jax.Array:
        return cast(Any, nnx.merge(graph, restored(arrays)))(x)

    x = to_flax_layout(images).astype(dtype_of(arrays, images.dtype))
    result = forward(jax.device_put(arrays), jax.device_put(x))
    return to_torch_layout(jax.device_get(result))


def forward(
    model: nnx.Module,
    inputs: Inputs | np.ndarray,
    *,
    names: Names = NAMES,
    ask: Sequence[str] = (),
) -> Program:
    """Makes a program of the model as it is that gives every module's output.

    Args:
        model: any module that gives arrays, however they are nested.
        inputs: what it is given; one array is images (n, c, h, w).
        names: its names and layouts in torch.
        ask: what else it is asked for; see :func:`parity.running.taps.results`.
    """
    graph, tree = nnx.split(model)
    arrays, restored = flattened(tree)
    inputs = laid_out(inputs, dtype_of(arrays), names)
    seen = Seen()

    def function(*arguments: jax.Array) -> dict[Quantity, jax.Array]:
        copy = nnx.merge(graph, restored(arguments[: -len(inputs)]))
        given = dict(zip(inputs, arguments[-len(inputs) :], strict=True))
        args, named = called_with(given)
        found: dict[Quantity, jax.Array] = {}
        calls = Calls()

        def around(it: Invocation) -> Any:
            with calls.enter(it.path) as tap:
                y = it.result()
                for name, part in seen.call(it, tap, y):
                    found[Quantity("output", name)] = part
                return y

        before = current(copy)
        watch(copy, around, aliases=names.aliases)
        cast(Any, copy)(*args, **named)
        found |= changed(before, current(copy))
        unwatch(copy)
        for name, y in results(copy, lambda it: it(*args, **named), ask):
            for part, value in parts(y, jax.Array, name):
                found[Quantity("result", part)] = value
        return found

    return _program(function, arrays, inputs, names, seen)


def _program(
    function: Callable[..., dict[Quantity, jax.Array]],
    arrays: Sequence[np.ndarray],
    inputs: Inputs,
    names: Names,
    seen: Seen,
) -> Program:
    given = list(inputs.values())
    dtype = dtype_of([*arrays, *given], np.dtype(np.float32))
    return Program(function, [*arrays, *given], dtype, names.in_torch, seen)


def train(
    model: nnx.Module,
    inputs: Inputs | np.ndarray,
    objective: Objective,
    *,
    names: Names = NAMES,
) -> Program:
    """Makes a program that runs the model forwards and backwards.

    Args:
        model: in the mode that it shall have.
        inputs: see :func:`forward`.
        objective: what is differentiated.
        names: its names and layouts in torch.
    """
    graph, parameters, rest = nnx.split(model, nnx.Param, ...)
    arrays, restored = flattened((parameters, rest))
    inputs = laid_out(inputs, dtype_of(arrays), names)
    seen = Seen()

    def function(*arguments: jax.Array) -> dict[Quantity, jax.Array]:
        parameters, rest = restored(arguments[: -len(inputs)])
        given = dict(zip(inputs, arguments[-len(inputs) :], strict=True))
        args, named = called_with(given)

        def differentiated(parameters: Any, zeros: dict[str, jax.Array]) -> Any:
            copy = nnx.merge(graph, parameters, renewed(rest))
            found: dict[Quantity, jax.Array] = {}
            calls = Calls()

            def around(it: Invocation) -> Any:
                with calls.enter(it.path) as tap:
                    if it.x is not None:
                        found[Quantity("input", tap)] = it.x
                    y = it.result()
                    moved = {}
                    for name, part in seen.call(it, tap, y):
                        # The gradient by this zero is the one by the output.
                        value = part + zeros[name] if name in zeros else part
                        found[Quantity("output", name)] = moved[id(part)] = value
                    return jax.tree.map(lambda part: moved.get(id(part), part), y)

            before = current(copy, nnx.Param)
            watch(copy, around, aliases=names.aliases)
            loss = loss_of(cast(Any, copy)(*args, **named), objective, names)
            found |= changed(before, current(copy, nnx.Param))
            unwatch(copy)
            return loss, (found, nnx.state(copy, nnx.Not(nnx.Param)))

        _, (outputs, _) = jax.eval_shape(differentiated, parameters, {})
        zeros = {
            name: jnp.zeros(value.shape, value.dtype)
            for (kind, name), value in outputs.items()
            if kind == "output" and is_float(value.dtype)
        }
        gradients = jax.value_and_grad(differentiated, argnums=(0, 1), has_aux=True)
        (loss, (found, rest)), (by_parameter, by_tap) = gradients(parameters, zeros)
        found[LOSS] = loss
        found |= {Quantity("gradient", tap): by_tap[tap] for tap in reversed(zeros)}
        after = nnx.merge(graph, by_parameter, rest)
        return found | _of_state(after)

    return _program(function, arrays, inputs, names, seen)


def learn(
    model: nnx.Module,
    batches: Sequence[Batch],
    config: OptimizerConfig,
    *,
    relus: Container[str],
    label_smoothing: float,
    loss_scale: float,
    aliases: Aliases = NO_ALIASES,
) -> tuple[nnx.Module, list[dict[Quantity, np.ndarray]]]:
    """Trains a copy of the model in float64, one step for each batch, elsewhere.

    Args:
        model: in training mode.
        batches: what it learns from.
        config: of the optimiser.
        relus: paths of the rectifiers in torch.
        label_smoothing: of the cross-entropy.
        loss_scale: times the loss that is differentiated.
        aliases: the names of its modules in torch.

    Returns:
        The trained copy, and for each step the loss, and each rectifier's signs.
    """
    with jax.enable_x64(True):
        optimizer = resnet_flax.optim.create_optimizer(cast(Any, model), config)
        graph, state = nnx.split((model, optimizer))
        carried, restored = flattened(state)
        order: list[Quantity] = []

        def step(*arguments: jax.Array) -> list[jax.Array]:
            *leaves, images, labels = arguments
            model, optimizer = nnx.merge(graph, restored(leaves))
            probe, _ = nnx.merge(graph, restored(leaves))
            calls = Calls()
            found: dict[Quantity, jax.Array] = {}

            def around(it: Invocation) -> Any:
                with calls.enter(it.path) as tap:
                    y = it.result()
                    if it.path in relus:
                        signs = (_torch_axes(y) > 0).ravel()
                        found[Quantity("signs", tap)] = jnp.packbits(signs)
                    return y

            # Apart from the step, out of which nothing can be taken; XLA computes what
            # both have in common once.
            watch(probe, around, aliases=aliases)
            cast(Any, probe)(images)
            found[LOSS] = resnet_flax.optim.train_step(
                cast(Any, model),
                optimizer,
                images,
                labels,
                label_smoothing=label_smoothing,
                loss_scale=loss_scale,
            )
            order[:] = found
            after = words(nnx.state((model, optimizer)))
            return [*after, *found.values()]

        series = [
            np.stack([to_flax_layout(batch.images) for batch in batches]),
            np.stack([batch.labels.astype(np.int32) for batch in batches]),
        ]
        first = [array[0] for array in series]
        with blamed():
            program = export.export(jax.jit(step), platforms=["cpu"])(*carried, *first)
    count = len(carried)
    with computed_elsewhere([program], carried, series) as value_at:
        found = [np.array(value_at(index)) for index in range(len(program.out_avals))]
    with jax.enable_x64(True):
        trained, _ = nnx.merge(graph, restored(jax.device_put(found[:count])))
    by_step = found[count:]
    return trained, [
        dict(zip(order, values, strict=True)) for values in zip(*by_step, strict=True)
    ]


def calls(model: nnx.Module, shape: tuple[int, ...]) -> list[Call]:
    """Lists the calls of modules without children, in order.

    Args:
        model: any module that maps images to an array; an abstract one is enough.
        shape: of the images, (n, c, h, w).
    """
    tree = Calls()
    found: list[Call] = []

    def around(it: Invocation) -> Any:
        with tree.enter(it.path) as tap:
            y = it.result()
            x = it.x
            if x is None or not isinstance(y, jax.Array):
                return y
            if not list(children(it.module)):
                found.append(
                    Call(
                        tap,
                        type(it.module).__name__,
                        _image_shape(x),
                        _image_shape(y),
                        _last(getattr(it.module, "strides", None)),
                        _last(getattr(it.module, "padding", None)),
                    )
                )
            return y

    graph, state = nnx.split(model)
    n, c, h, w = shape

    def forward(state: nnx.State, x: jax.Array) -> Any:
        copy = nnx.merge(graph, state)
        watch(copy, around)
        return cast(Any, copy)(x)

    images = jax.ShapeDtypeStruct((n, h, w, c), jnp.float32)
    jax.eval_shape(forward, state, images)
    return found


def loss_of(output: Any, objective: Objective, names: Names) -> jax.Array:
    """Computes the scalar that is differentiated; ``torch_runs`` has the same."""
    found = {names.tap(n): part for n, part in parts(output, jax.Array, OUTPUT)}
    if objective.labels is not None:
        labels = jnp.asarray(objective.labels.astype(np.int32))
        smoothing = objective.label_smoothing
        loss = resnet_flax.optim.cross_entropy(
            found[OUTPUT], labels, label_smoothing=smoothing
        )
        return loss * objective.scale
    loss: Any = 0.0
    for name, part in found.items():
        if is_float(part.dtype):
            axes = names.layouts.axes(Quantity("output", name), part.shape)
            shape = tuple(part.shape[i] for i in axes)
            weights = objective.weights_like(shape, name).transpose(np.argsort(axes))
            loss = (part * jnp.asarray(weights.astype(part.dtype))).mean() + loss
    return loss * objective.scale


def _of_state(model: nnx.Module) -> dict[Quantity, jax.Array]:
    """Names what is left in a model after a run: gradients for parameters."""
    found = {}
    for name, variable in own_variables(model):
        learns = isinstance(variable, nnx.Param)
        kind = "parameter gradient" if learns else "statistic"
        found[Quantity(kind, name)] = variable.get_value()
    return found


def laid_out(
    inputs: Inputs | np.ndarray, dtype: np.dtype | None, names: Names
) -> dict[str, np.ndarray]:
    """Returns what a network is given as JAX has it; floats in this dtype."""
    inputs = inputs if isinstance(inputs, Mapping) else {INPUT: inputs}
    found = {}
    for name, array in inputs.items():
        kind = np.int32 if array.dtype.kind in "iu" else dtype or array.dtype
        to = array.dtype if array.dtype.kind == "b" else kind
        found[name] = names.layouts.to_jax(name, array, None).astype(to)
    return found


def dtype_of(arrays: Iterable[np.ndarray], default: Any = None) -> Any:
    """Returns the first floating-point dtype, or the default."""
    return next((a.dtype for a in arrays if is_float(a.dtype)), default)


def _torch_axes(x: jax.Array) -> jax.Array:
    return x.transpose(0, 3, 1, 2) if x.ndim == 4 else x


def _torch_shape(shape: Shape) -> Shape:
    if len(shape) == 4:
        n, h, w, c = shape
        return (n, c, h, w)
    return tuple(shape)


def _image_shape(x: jax.Array) -> Shape:
    return _torch_shape(x.shape)[1:]


def _last(value: Any) -> Any:
    while isinstance(value, tuple):
        value = value[-1]
    return value
