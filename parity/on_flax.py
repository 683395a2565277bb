"""parity's hands on a Flax NNX module. ``on_torch`` has the same functions."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export

from parity import float64_worker, names
from parity.taps import Call, Entry, ModuleError, Shape, TapNames

FRAMEWORK = "flax"


def entries(model: nnx.Module) -> dict[str, Entry]:
    """Returns the shape and dtype of every entry of the state, in torch's terms."""
    return {
        name: Entry(
            names.torch_shape(leaf, variable.get_value().shape),
            "int64" if leaf == names.COUNTER else str(variable.get_value().dtype),
        )
        for name, leaf, variable in _variables(model)
    }


def state(model: nnx.Module) -> dict[str, np.ndarray]:
    """Returns a copy of every entry of the state, in torch's names and layout."""
    return {
        name: names.to_torch(leaf, jax.device_get(variable.get_value()))
        for name, leaf, variable in _variables(model)
    }


def assign(model: nnx.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes entries that have been checked into the model; fills an abstract one."""
    values = []
    for name, leaf, variable in _variables(model):
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
    values = (variable.get_value() for _, _, variable in _variables(model))
    return all(isinstance(value, jax.Array) for value in values)


def in_eval(model: nnx.Module) -> nnx.Module:
    """Returns a copy in evaluation mode."""
    twin = nnx.merge(*nnx.split(model))
    twin.eval()
    return twin


def run(model: nnx.Module, images: np.ndarray) -> np.ndarray:
    """Runs the model as it is, jitted, on images (n, c, h, w); returns its result."""
    graph, tree = nnx.split(model)

    @jax.jit
    def forward(tree: nnx.State, x: jax.Array) -> jax.Array:
        return cast(Any, nnx.merge(graph, tree))(x)

    result = forward(tree, _to_flax_images(images, tree))
    return to_torch_layout(jax.device_get(result))


def tapped(
    model: nnx.Module, *, float64: bool = False
) -> tuple[Callable[..., dict[str, jax.Array]], list[np.ndarray]]:
    """Makes a pure function of the model that returns every module's output.

    Args:
        model: any module that maps images to an array.
        float64: raise parameters and computation to float64; then the function must
            run in JAX's x64 mode.

    Returns:
        The function, of a list of arrays and the images (n, h, w, c), to the taps by
        name (see :class:`parity.taps.TapNames`) in the order of computation, and the
        list of arrays: the model's state.
    """
    graph, tree = nnx.split(model)
    leaves, structure = jax.tree.flatten(tree)
    arrays = [jax.device_get(leaf) for leaf in leaves]
    if float64:
        arrays = [a.astype(np.float64) if _is_float(a.dtype) else a for a in arrays]

    def run(leaves: list[jax.Array], images: jax.Array) -> dict[str, jax.Array]:
        copy = nnx.merge(graph, jax.tree.unflatten(structure, leaves))
        if float64:
            _compute_in_float64(copy)
        taps: dict[str, jax.Array] = {}
        tap_names = TapNames()

        def note(path: str, module: nnx.Module, x: jax.Array, y: jax.Array) -> None:
            taps[tap_names.next(path)] = y

        _watch(copy, images, note)
        return taps

    return run, arrays


def trace(
    model: nnx.Module, images: np.ndarray, visit: Callable[[str, np.ndarray], None]
) -> None:
    """Runs the model as it is, jitted, and visits every module's output in order.

    Args:
        model: any module that maps images to an array.
        images: of shape (n, c, h, w).
        visit: called with the name of the tap and its value, in torch's layout. Half
            types come as float32; the value is only good until the call returns.

    Raises:
        ModuleError: a module raised.
    """
    run, arrays = tapped(model)
    x = _to_flax_images(images, arrays)
    order: list[str] = []

    def ordered(leaves: list[jax.Array], x: jax.Array) -> list[jax.Array]:
        taps = run(leaves, x)
        order[:] = taps  # jit would hand a dict back sorted by key
        return list(taps.values())

    leaves = jax.device_put(arrays)
    for name, value in zip(order, jax.jit(ordered)(leaves, x), strict=True):
        if value.dtype.itemsize < 4:
            value = value.astype(jnp.float32)
        visit(name, to_torch_layout(jax.device_get(value)))


def trace_float64(
    model: nnx.Module, images: np.ndarray, visit: Callable[[str, np.ndarray], None]
) -> None:
    """Does what :func:`trace` does, raised to float64, in a process of its own.

    The program is traced here, from the model as it is, whatever has been changed in
    it, and computed there, so that x64 mode never touches this process.

    Raises:
        ModuleError: a module raised, or does not compute in float64.
        RuntimeError: the other process failed.
    """
    with jax.enable_x64(True):
        run, arrays = tapped(model, float64=True)
        order: list[str] = []

        def ordered(*arguments: jax.Array) -> list[jax.Array]:
            *leaves, x = arguments
            taps = run(leaves, x)
            order[:] = taps
            return list(taps.values())

        arrays.append(images.transpose(0, 2, 3, 1).astype(np.float64))
        program = export.export(jax.jit(ordered), platforms=["cpu"])(*arrays)
    for name, aval in zip(order, program.out_avals, strict=True):
        if aval.dtype != np.float64:
            raise ModuleError(name, TypeError(f"computes in {aval.dtype}, not float64"))
    with tempfile.TemporaryDirectory(prefix="resnet-twins-") as folder:
        Path(folder, "program.bin").write_bytes(program.serialize())
        np.savez(Path(folder, "inputs.npz"), *arrays)
        worker = subprocess.run(
            [sys.executable, float64_worker.__file__, folder],
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
        if worker.returncode != 0:
            raise RuntimeError(f"the float64 process failed:\n{worker.stderr}")
        for index, name in enumerate(order):
            value = np.load(Path(folder, f"{index}.npy"), mmap_mode="r")
            visit(name, to_torch_layout(value))


def calls(model: nnx.Module, shape: tuple[int, ...]) -> list[Call]:
    """Lists the calls of modules without children, in order.

    Args:
        model: any module that maps images to an array; an abstract one is enough.
        shape: of the images, (n, c, h, w).
    """
    tap_names = TapNames()
    found: list[Call] = []

    def note(path: str, module: nnx.Module, x: jax.Array, y: jax.Array) -> None:
        if not list(_children(module)):
            found.append(
                Call(
                    tap_names.next(path),
                    type(module).__name__,
                    _image_shape(x),
                    _image_shape(y),
                    _last(getattr(module, "strides", None)),
                    _last(getattr(module, "padding", None)),
                )
            )

    graph, tree = nnx.split(model)
    n, c, h, w = shape
    images = jax.ShapeDtypeStruct((n, h, w, c), jnp.float32)
    jax.eval_shape(
        lambda tree, x: _watch(nnx.merge(graph, tree), x, note), tree, images
    )
    return found


def to_torch_layout(array: np.ndarray) -> np.ndarray:
    """Returns maps (n, h, w, c) as (n, c, h, w), and anything else as it is."""
    return array.transpose(0, 3, 1, 2) if array.ndim == 4 else array


def _watch(
    model: nnx.Module,
    x: jax.Array,
    note: Callable[[str, nnx.Module, jax.Array, jax.Array], None],
) -> None:
    """Runs the model and notes each module's path, self, input and output.

    The modules become instances of a listening subclass, so the model must be a copy
    made for this run.
    """
    for path, module in list(_modules(model)):
        if callable(module):
            vars(module)["_note"] = (path, note)
            object.__setattr__(module, "__class__", _listening(type(module)))
    cast(Any, model)(x)


@cache
def _listening(cls: type[nnx.Module]) -> type[nnx.Module]:
    class Listening(cls):
        def __call__(self, x: jax.Array, *args: Any, **kwargs: Any) -> Any:
            path, note = vars(self)["_note"]
            try:
                y = cast(Any, super()).__call__(x, *args, **kwargs)
            except ModuleError:
                raise
            except Exception as error:
                raise ModuleError(path, error) from error
            if isinstance(y, jax.Array):
                note(path, self, x, y)
            return y

    Listening.__name__ = cls.__name__
    return Listening


def _modules(module: nnx.Module, path: str = "") -> Iterator[tuple[str, nnx.Module]]:
    yield path, module
    for name, child in _children(module):
        yield from _modules(child, f"{path}.{name}" if path else name)


def _children(module: nnx.Module) -> Iterator[tuple[str, nnx.Module]]:
    # In torch's order: what has been through nnx.merge, and so through nnx.jit, has its
    # attributes sorted by name.
    children = {k: v for k, v in vars(module).items() if isinstance(v, nnx.Module)}
    for name in names.in_torch_order(children, getattr(module, "layer_names", ())):
        yield name, children[name]


def _variables(
    model: nnx.Module,
) -> Iterator[tuple[str, str, nnx.Variable[Any]]]:
    """Yields the torch name, the Flax leaf's name and the variable, in order."""
    for path, module in _modules(model):
        leaves = {k: v for k, v in vars(module).items() if isinstance(v, nnx.Variable)}
        unknown = [leaf for leaf in leaves if leaf not in names.TORCH_LEAF]
        if unknown:
            raise ValueError(
                f"{path}.{unknown[0]} has no name in torch; parity knows the leaves "
                f"{', '.join(names.TORCH_LEAF)}"
            )
        for leaf, name in names.TORCH_LEAF.items():
            if leaf in leaves:
                yield (f"{path}.{name}" if path else name), leaf, leaves[leaf]


def _compute_in_float64(model: nnx.Module) -> None:
    for _, module in _modules(model):
        if getattr(module, "dtype", None) is not None:
            cast(Any, module).dtype = jnp.float64


def _to_flax_images(images: np.ndarray, tree: Any) -> jax.Array:
    dtypes = (leaf.dtype for leaf in jax.tree.leaves(tree))
    dtype = next(dtype for dtype in dtypes if _is_float(dtype))
    return jax.device_put(images.transpose(0, 2, 3, 1).astype(dtype))


def _is_float(dtype: np.dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def _image_shape(x: jax.Array) -> Shape:
    if len(x.shape) == 4:
        _, h, w, c = x.shape
        return (c, h, w)
    return tuple(x.shape[1:])


def _last(value: Any) -> int | None:
    while isinstance(value, tuple):
        value = value[-1]
    return value
