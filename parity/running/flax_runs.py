"""Runs of a Flax NNX module, with what its modules give. ``torch_runs`` has the same.

Most are made into a :class:`parity.running.flax_programs.Program` first.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export

import resnet_flax.optim
from parity.running.flax_programs import Program, computed_elsewhere
from parity.running.flax_watching import changed, current, renewed, watch
from parity.running.objective import Objective
from parity.running.taps import LOSS, OUTPUT, Batch, Call, Calls, Invocation, Quantity
from parity.weights.flax_state import (
    NO_ALIASES,
    Aliases,
    children,
    is_float,
    modules,
    to_flax_layout,
    to_torch_layout,
    variables,
)
from parity.weights.names import Shape
from resnet_spec import OptimizerConfig


def run(model: nnx.Module, images: np.ndarray) -> np.ndarray:
    """Runs the model as it is, jitted, on images (n, c, h, w); returns its result."""
    graph, tree = nnx.split(model)

    @jax.jit
    def forward(tree: nnx.State, x: jax.Array) -> jax.Array:
        return cast(Any, nnx.merge(graph, tree))(x)

    leaves = [jax.device_get(leaf) for leaf in jax.tree.leaves(tree)]
    result = forward(tree, jax.device_put(_images(images, leaves)))
    return to_torch_layout(jax.device_get(result))


def forward(
    model: nnx.Module, images: np.ndarray, *, aliases: Aliases = NO_ALIASES
) -> Program:
    """Makes a program of the model as it is that gives every module's output.

    Args:
        model: any module that maps images to an array.
        images: of shape (n, c, h, w).
        aliases: the names of its modules in torch.
    """
    graph, tree = nnx.split(model)
    leaves, structure = jax.tree.flatten(tree)
    arrays = [jax.device_get(leaf) for leaf in leaves]

    def function(*arguments: jax.Array) -> dict[Quantity, jax.Array]:
        *leaves, x = arguments
        copy = nnx.merge(graph, jax.tree.unflatten(structure, leaves))
        found: dict[Quantity, jax.Array] = {}
        calls = Calls()

        def around(it: Invocation) -> Any:
            with calls.enter(it.path) as tap:
                y = it.result()
                if isinstance(y, jax.Array):
                    found[Quantity("output", tap)] = y
                return y

        before = current(copy, aliases=aliases)
        watch(copy, around, aliases=aliases)
        cast(Any, copy)(x)
        after = current(copy, aliases=aliases)
        return found | changed(before, after)

    images = _images(images, arrays)
    return Program(function, [*arrays, images], images.dtype)


def function(
    call: Callable[..., Any],
    images: np.ndarray,
    *,
    aliases: Aliases = NO_ALIASES,
    float64: bool = False,
) -> Program:
    """Makes a program of a function that gives what it shows.

    Args:
        call: of images (n, h, w, c); see :func:`parity.compare_modules`.
        images: of shape (n, c, h, w).
        aliases: the names of what it shows in torch.
        float64: raise the images and its parameters.
    """
    bound = call if isinstance(call, partial) else partial(call)
    leaves, structure = jax.tree.flatten((bound.args, bound.keywords))
    places = [i for i, leaf in enumerate(leaves) if hasattr(leaf, "dtype")]
    arrays = [np.asarray(jax.device_get(leaves[i])) for i in places]
    if float64:
        arrays = [a.astype(np.float64) if is_float(a.dtype) else a for a in arrays]
        images = images.astype(np.float64)
    floats = [array for array in arrays if is_float(array.dtype)] or [images]

    def run(*arguments: jax.Array) -> dict[Quantity, jax.Array]:
        *arrays, x = arguments
        filled = list(leaves)
        for place, array in zip(places, arrays, strict=True):
            filled[place] = array
        args, keywords = jax.tree.unflatten(structure, filled)
        with Calls().enter(""):
            found = bound.func(*args, x, **keywords)
        result, shown = found if isinstance(found, tuple) else (found, {})
        quantities = {
            Quantity("output", aliases.get(name, name)): value
            for name, value in _flat(shown)
        }
        return {**quantities, Quantity("output", OUTPUT): result}

    images = _images(images, floats)
    return Program(run, [*arrays, images], images.dtype)


def _flat(shown: Any, path: str = "") -> Iterator[tuple[str, jax.Array]]:
    """Yields what a function shows, by names joined with points."""
    if isinstance(shown, jax.Array):
        yield path, shown
    elif isinstance(shown, Mapping):
        for name, inner in shown.items():
            yield from _flat(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(shown, Sequence):
        for index, inner in enumerate(shown):  # Linen has a tuple for each module
            yield from _flat(inner, path if index == 0 else f"{path}@{index + 1}")


def train(
    model: nnx.Module,
    images: np.ndarray,
    objective: Objective,
    *,
    inputs_of: Sequence[str] = (),
    aliases: Aliases = NO_ALIASES,
) -> Program:
    """Makes a program that runs the model forwards and backwards.

    Args:
        model: in training mode.
        images: of shape (n, c, h, w).
        objective: what is differentiated.
        inputs_of: paths of the modules whose inputs it shall give too.
        aliases: the names of its modules in torch.
    """
    graph, parameters, rest = nnx.split(model, nnx.Param, ...)
    leaves, structure = jax.tree.flatten((parameters, rest))
    arrays = [jax.device_get(leaf) for leaf in leaves]

    def function(*arguments: jax.Array) -> dict[Quantity, jax.Array]:
        *leaves, x = arguments
        parameters, rest = jax.tree.unflatten(structure, leaves)

        def differentiated(parameters: Any, zeros: dict[str, jax.Array]) -> Any:
            copy = nnx.merge(graph, parameters, renewed(rest))
            found: dict[Quantity, jax.Array] = {}
            calls = Calls()

            def around(it: Invocation) -> Any:
                with calls.enter(it.path) as tap:
                    if it.path in inputs_of:
                        found[Quantity("input", tap)] = it.x
                    y = it.result()
                    if not isinstance(y, jax.Array):
                        return y
                    found[Quantity("output", tap)] = y
                    # The gradient by this zero is the one by the output.
                    return y + zeros[tap] if tap in zeros else y

            before = current(copy, nnx.Param, aliases=aliases)
            watch(copy, around, aliases=aliases)
            loss = _loss(cast(Any, copy)(x), objective)
            after = current(copy, nnx.Param, aliases=aliases)
            found |= changed(before, after)
            return loss, (found, nnx.state(copy, nnx.Not(nnx.Param)))

        _, (outputs, _) = jax.eval_shape(differentiated, parameters, {})
        zeros = {
            name: jnp.zeros(value.shape, value.dtype)
            for (kind, name), value in outputs.items()
            if kind == "output"
        }
        gradients = jax.value_and_grad(differentiated, argnums=(0, 1), has_aux=True)
        (loss, (found, rest)), (by_parameter, by_tap) = gradients(parameters, zeros)
        found[LOSS] = loss
        found |= {Quantity("gradient", tap): by_tap[tap] for tap in reversed(zeros)}
        after = nnx.merge(graph, by_parameter, rest)
        return found | _of_state(after, aliases)

    images = _images(images, arrays)
    return Program(function, [*arrays, images], images.dtype)


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
        leaves, structure = jax.tree.flatten(state)
        order: list[Quantity] = []

        def step(*arguments: jax.Array) -> list[jax.Array]:
            *leaves, images, labels = arguments
            state = jax.tree.unflatten(structure, leaves)
            model, optimizer = nnx.merge(graph, state)
            probe, _ = nnx.merge(graph, renewed(state))
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
            after = jax.tree.leaves(nnx.state((model, optimizer)))
            return [*after, *found.values()]

        series = [
            np.stack([to_flax_layout(batch.images) for batch in batches]),
            np.stack([batch.labels.astype(np.int32) for batch in batches]),
        ]
        carried = [jax.device_get(leaf) for leaf in leaves]
        first = [array[0] for array in series]
        program = export.export(jax.jit(step), platforms=["cpu"])(*carried, *first)
    with computed_elsewhere([program], carried, series) as value_at:
        found = [np.array(value_at(index)) for index in range(len(program.out_avals))]
    with jax.enable_x64(True):
        leaves = jax.device_put(found[: len(leaves)])
    trained, _ = nnx.merge(graph, jax.tree.unflatten(structure, leaves))
    by_step = found[len(leaves) :]
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
            if isinstance(y, jax.Array) and not list(children(it.module)):
                found.append(
                    Call(
                        tap,
                        type(it.module).__name__,
                        _image_shape(it.x),
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


def _loss(output: jax.Array, objective: Objective) -> jax.Array:
    if objective.labels is not None:
        labels = jnp.asarray(objective.labels.astype(np.int32))
        smoothing = objective.label_smoothing
        loss = resnet_flax.optim.cross_entropy(
            output, labels, label_smoothing=smoothing
        )
    else:
        shape = _torch_shape(output.shape)
        weights = to_flax_layout(objective.weights_like(shape))
        loss = (output * jnp.asarray(weights.astype(output.dtype))).mean()
    return loss * objective.scale


def _of_state(model: nnx.Module, aliases: Aliases) -> dict[Quantity, jax.Array]:
    """Names what is left in a model after a run: gradients for parameters."""
    found = {}
    for name, _, variable in variables(model, aliases=aliases):
        learns = isinstance(variable, nnx.Param)
        kind = "parameter gradient" if learns else "statistic"
        found[Quantity(kind, name)] = variable.get_value()
    return found


def _images(images: np.ndarray, arrays: Sequence[np.ndarray]) -> np.ndarray:
    return to_flax_layout(images).astype(_dtype([array.dtype for array in arrays]))


def _dtype(dtypes: Sequence[np.dtype]) -> np.dtype:
    return next(dtype for dtype in dtypes if is_float(dtype))


def _torch_axes(x: jax.Array) -> jax.Array:
    return x.transpose(0, 3, 1, 2) if x.ndim == 4 else x


def _torch_shape(shape: Shape) -> Shape:
    if len(shape) == 4:
        n, h, w, c = shape
        return (n, c, h, w)
    return tuple(shape)


def _image_shape(x: jax.Array) -> Shape:
    return _torch_shape(x.shape)[1:]


def _last(value: Any) -> int | None:
    while isinstance(value, tuple):
        value = value[-1]
    return value


def duplicate(
    model: nnx.Module, *, training: bool = False, float64: bool = False
) -> nnx.Module:
    """Returns a copy in training or evaluation mode, raised to float64 where asked.

    A copy in float64 computes in JAX's x64 mode only.
    """
    graph, tree = nnx.split(model)
    # Mapped in either case: nnx.merge would share the variables with the original.
    tree = jax.tree.map(_raised if float64 else lambda value: value, tree)
    twin = nnx.merge(graph, tree)
    twin.train() if training else twin.eval()
    if float64:
        for _, module in modules(twin):
            if getattr(module, "dtype", None) is not None:
                cast(Any, module).dtype = jnp.float64
    return twin


def _raised(value: Any) -> Any:
    if not is_float(value.dtype):
        return value
    with jax.enable_x64(True):
        return jax.device_put(jax.device_get(value).astype(np.float64))
