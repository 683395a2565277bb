"""Runs of a Flax NNX module, with what its modules give. ``runs_torch`` has the same.

Most are made into a :class:`Program` first: a pure function of arrays, that runs here,
jitted or not, or in float64 in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export

import resnet_flax.optim
from parity import float64_worker, names
from parity.objective import Objective
from parity.on_flax import (
    Aliases,
    children,
    is_float,
    modules,
    to_flax_layout,
    to_torch_layout,
    variables,
)
from parity.taps import (
    LOSS,
    OUTPUT,
    Batch,
    Call,
    Calls,
    Experiment,
    ModuleError,
    Quantity,
    Shape,
    path_of,
)
from resnet_spec import OptimizerConfig

Around = Callable[[str, nnx.Module, Callable[[jax.Array], Any], jax.Array], Any]
"""Stands around a module's call: its path, itself, what it computes, its input."""

Visit = Callable[[Quantity, np.ndarray], None]
Values = Iterator[tuple[Quantity, np.ndarray]]

_NO_ALIASES: Aliases = MappingProxyType({})


@dataclass(frozen=True)
class Program:
    """A pure function, and what it shall be called on.

    Args:
        function: of arrays, to quantities in the order of their computation.
        arrays: its arguments.
        dtype: that it computes in; float64 in x64 mode.
    """

    function: Callable[..., dict[Quantity, jax.Array]]
    arrays: Sequence[np.ndarray]
    dtype: np.dtype

    def here(self, *, jit: bool = True) -> Values:
        """Runs it in this process, and yields its values in torch's layout.

        Half types come as float32.

        Raises:
            ModuleError: a module raised.
        """
        with _x64(self.dtype):
            order, listed = self._listed()
            arguments = jax.device_put(list(self.arrays))
            values = (jax.jit(listed) if jit else listed)(*arguments)
            values.reverse()
            for quantity in order:  # so that each can go when it has been looked at
                yield quantity, _to_torch(quantity, _wide(values.pop()))

    def elsewhere(self) -> Values:
        """Runs it in float64, in a process of its own, and yields its values.

        It is traced here, from the model as it is, whatever has been changed in it,
        and computed there, so that x64 mode never touches this process.

        Raises:
            ModuleError: a module raised, or does not compute in float64.
            RuntimeError: the other process failed.
        """
        with jax.enable_x64(True):
            order, listed = self._listed()
            program = export.export(jax.jit(listed), platforms=["cpu"])(*self.arrays)
        for quantity, aval in zip(order, program.out_avals, strict=True):
            if is_float(aval.dtype) and aval.dtype != np.float64:
                error = TypeError(f"computes in {aval.dtype}, not float64")
                raise ModuleError(path_of(quantity.name), error)
        values = _compute_elsewhere(program, self.arrays)
        for quantity, value in zip(order, values, strict=True):
            yield quantity, _to_torch(quantity, value)

    def _listed(self) -> tuple[list[Quantity], Callable[..., list[jax.Array]]]:
        order: list[Quantity] = []

        def listed(*arrays: jax.Array) -> list[jax.Array]:
            found = self.function(*arrays)
            order[:] = found  # jit would hand a dict back sorted by key
            return list(found.values())

        return order, listed


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
    model: nnx.Module, images: np.ndarray, *, aliases: Aliases = _NO_ALIASES
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

        def around(
            path: str,
            module: nnx.Module,
            compute: Callable[[jax.Array], Any],
            x: jax.Array,
        ) -> Any:
            with calls.enter(path) as tap:
                y = compute(x)
                if isinstance(y, jax.Array):
                    found[Quantity("output", tap)] = y
                return y

        _watch(copy, around, aliases=aliases)
        cast(Any, copy)(x)
        return found

    images = _images(images, arrays)
    return Program(function, [*arrays, images], images.dtype)


def function(
    call: Callable[..., Any],
    images: np.ndarray,
    *,
    aliases: Aliases = _NO_ALIASES,
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
    aliases: Aliases = _NO_ALIASES,
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
            copy = nnx.merge(graph, parameters, _renewed(rest))
            found: dict[Quantity, jax.Array] = {}
            calls = Calls()

            def around(
                path: str,
                module: nnx.Module,
                compute: Callable[[jax.Array], Any],
                x: jax.Array,
            ) -> Any:
                with calls.enter(path) as tap:
                    if path in inputs_of:
                        found[Quantity("input", tap)] = x
                    y = compute(x)
                    if not isinstance(y, jax.Array):
                        return y
                    found[Quantity("output", tap)] = y
                    # The gradient by this zero is the one by the output.
                    return y + zeros[tap] if tap in zeros else y

            _watch(copy, around, aliases=aliases)
            loss = _loss(cast(Any, copy)(x), objective)
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
    aliases: Aliases = _NO_ALIASES,
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
            probe, _ = nnx.merge(graph, _renewed(state))
            calls = Calls()
            found: dict[Quantity, jax.Array] = {}

            def around(
                path: str,
                module: nnx.Module,
                compute: Callable[[jax.Array], Any],
                x: jax.Array,
            ) -> Any:
                with calls.enter(path) as tap:
                    y = compute(x)
                    if path in relus:
                        signs = (_torch_axes(y) > 0).ravel()
                        found[Quantity("signs", tap)] = jnp.packbits(signs)
                    return y

            # Apart from the step, out of which nothing can be taken; XLA computes what
            # both have in common once.
            _watch(probe, around, aliases=aliases)
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
    found = list(_compute_elsewhere(program, carried, series))
    with jax.enable_x64(True):
        leaves = [jax.device_put(np.array(value)) for value in found[: len(carried)]]
    trained, _ = nnx.merge(graph, jax.tree.unflatten(structure, leaves))
    by_step = [np.array(value) for value in found[len(carried) :]]
    return trained, [
        dict(zip(order, values, strict=True)) for values in zip(*by_step, strict=True)
    ]


def experiment(
    model: nnx.Module,
    setup: Experiment,
    *,
    jit: bool = False,
    aliases: Aliases = _NO_ALIASES,
) -> dict[Quantity, np.ndarray]:
    """Runs one module alone; what it calls gives what the experiment says.

    Args:
        model: the whole network.
        setup: the module's call, and what it and its callees are given.
        jit: compile it.
        aliases: the names of its modules in torch.

    Returns:
        Its output, what it hands on, and with gradients given those by its own input,
        by what its callees gave, and by its own parameters; its statistics.

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
        copy = nnx.merge(graph, parameters, _renewed(rest))
        calls, waiting = Calls(), setup.waiting()
        handed: dict[int, jax.Array] = {}

        def around(
            path: str,
            module: nnx.Module,
            compute: Callable[[jax.Array], Any],
            x: jax.Array,
        ) -> Any:
            if module is not copy and waiting.get(path):
                index = waiting[path].pop(0)
                handed[index] = x
                return given[index]
            with calls.enter(path):
                return compute(x)

        _watch(copy, around, place, aliases=aliases)
        y = cast(Any, copy)(x)
        order[:] = handed
        return (y, list(handed.values())), own_state(copy, learns=False)

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
        by_parameter = own_state(nnx.merge(graph, by_parameter, rest), learns=True)
        return values, after, (by_parameter, by_input, by_given)

    def own_state(module: nnx.Module, *, learns: bool) -> dict[str, jax.Array]:
        return {
            name: variable.get_value()
            for name, _, variable in variables(module, place, aliases=aliases)
            if setup.owns(name) and isinstance(variable, nnx.Param) == learns
        }

    def put(array: np.ndarray) -> jax.Array:
        return jax.device_put(to_flax_layout(array).astype(dtype))

    names = [callee.tap for callee in setup.calls]
    gradients = [c.gradient for c in setup.calls if c.gradient is not None]
    with _x64(dtype):
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
            for name, value in after.items():
                found[Quantity("statistic", name)] = value
        return {q: _to_torch(q, _wide(value)) for q, value in found.items()}


def calls(model: nnx.Module, shape: tuple[int, ...]) -> list[Call]:
    """Lists the calls of modules without children, in order.

    Args:
        model: any module that maps images to an array; an abstract one is enough.
        shape: of the images, (n, c, h, w).
    """
    tree = Calls()
    found: list[Call] = []

    def around(
        path: str,
        module: nnx.Module,
        compute: Callable[[jax.Array], Any],
        x: jax.Array,
    ) -> Any:
        with tree.enter(path) as tap:
            y = compute(x)
            if isinstance(y, jax.Array) and not list(children(module)):
                found.append(
                    Call(
                        tap,
                        type(module).__name__,
                        _image_shape(x),
                        _image_shape(y),
                        _last(getattr(module, "strides", None)),
                        _last(getattr(module, "padding", None)),
                    )
                )
            return y

    graph, state = nnx.split(model)
    n, c, h, w = shape

    def forward(state: nnx.State, x: jax.Array) -> Any:
        copy = nnx.merge(graph, state)
        _watch(copy, around)
        return cast(Any, copy)(x)

    images = jax.ShapeDtypeStruct((n, h, w, c), jnp.float32)
    jax.eval_shape(forward, state, images)
    return found


def _compute_elsewhere(
    program: export.Exported,
    arrays: Sequence[np.ndarray],
    series: Sequence[np.ndarray] = (),
) -> Iterator[np.ndarray]:
    """Calls a program in a process of its own, in x64 mode; see ``float64_worker``."""
    with tempfile.TemporaryDirectory(prefix="resnet-twins-") as folder:
        Path(folder, "program.bin").write_bytes(program.serialize())
        np.savez(Path(folder, "inputs.npz"), *arrays)
        np.savez(Path(folder, "series.npz"), *series)
        worker = subprocess.run(
            [sys.executable, float64_worker.__file__, folder],
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
        if worker.returncode != 0:
            raise RuntimeError(f"the float64 process failed:\n{worker.stderr}")
        for index in range(len(program.out_avals)):
            file = Path(folder, f"{index}.npy")
            yield np.load(file, mmap_mode="r")
            file.unlink()


def _watch(
    model: nnx.Module,
    around: Around,
    path: str = "",
    *,
    aliases: Aliases = _NO_ALIASES,
) -> None:
    """Puts something around the call of every module.

    They become instances of a listening subclass, so the model must be a copy made for
    one run.
    """
    for name, module in list(modules(model, path, aliases=aliases)):
        if callable(module):
            vars(module)["_around"] = partial(around, name, module)
            object.__setattr__(module, "__class__", _listening(type(module)))


@cache
def _listening(cls: type[nnx.Module]) -> type[nnx.Module]:
    class Listening(cls):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            inner = cast(Any, super()).__call__
            if not args or not isinstance(args[0], jax.Array):
                return inner(*args, **kwargs)
            x, *rest = args
            around = vars(self)["_around"]
            return around(lambda x: inner(x, *rest, **kwargs), x)

    Listening.__name__ = cls.__name__
    Listening.__qualname__ = cls.__qualname__
    return Listening


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


def _renewed(state: nnx.State) -> nnx.State:
    # nnx changes variables only at the level of tracing that they were made at.
    return jax.tree.map(lambda value: value, state)


def _of_state(model: nnx.Module, aliases: Aliases) -> dict[Quantity, jax.Array]:
    """Names what is left in a model after a run: gradients for parameters."""
    found = {}
    for name, _, variable in variables(model, aliases=aliases):
        learns = isinstance(variable, nnx.Param)
        kind = "parameter gradient" if learns else "statistic"
        found[Quantity(kind, name)] = variable.get_value()
    return found


def _to_torch(quantity: Quantity, value: jax.Array | np.ndarray) -> np.ndarray:
    array = value if isinstance(value, np.ndarray) else jax.device_get(value)
    if quantity.kind in ("parameter gradient", "statistic"):
        return names.to_torch(quantity.name.rpartition(".")[2], array)
    return to_torch_layout(array)


def _wide(value: jax.Array) -> jax.Array:
    half = is_float(value.dtype) and value.dtype.itemsize < 4
    return value.astype(jnp.float32) if half else value


def _images(images: np.ndarray, arrays: Sequence[np.ndarray]) -> np.ndarray:
    return to_flax_layout(images).astype(_dtype([array.dtype for array in arrays]))


def _dtype(dtypes: Sequence[np.dtype]) -> np.dtype:
    return next(dtype for dtype in dtypes if is_float(dtype))


def _x64(dtype: np.dtype) -> AbstractContextManager[Any]:
    return jax.enable_x64(True) if dtype == np.float64 else nullcontext()


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
