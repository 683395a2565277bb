"""Pure functions of arrays: run here, jitted or not, or in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from parity import float64_worker, names
from parity.on_flax import is_float, to_torch_layout
from parity.taps import ModuleError, Quantity, path_of

Values = Iterator[tuple[Quantity, np.ndarray]]


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
        with x64(self.dtype):
            order, listed = self._listed()
            arguments = jax.device_put(list(self.arrays))
            values = (jax.jit(listed) if jit else listed)(*arguments)
            values.reverse()
            for quantity in order:  # so that each can go when it has been looked at
                yield quantity, to_torch(quantity, wide(values.pop()))

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
        values = compute_elsewhere(program, self.arrays)
        for quantity, value in zip(order, values, strict=True):
            yield quantity, to_torch(quantity, value)

    def _listed(self) -> tuple[list[Quantity], Callable[..., list[jax.Array]]]:
        order: list[Quantity] = []

        def listed(*arrays: jax.Array) -> list[jax.Array]:
            found = self.function(*arrays)
            order[:] = found  # jit would hand a dict back sorted by key
            return list(found.values())

        return order, listed


def compute_elsewhere(
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


def to_torch(quantity: Quantity, value: jax.Array | np.ndarray) -> np.ndarray:
    """Returns what a quantity has in torch's layout."""
    array = value if isinstance(value, np.ndarray) else jax.device_get(value)
    if quantity.kind in ("parameter gradient", "statistic"):
        return names.to_torch(quantity.name.rpartition(".")[2], array)
    return to_torch_layout(array)


def wide(value: jax.Array) -> jax.Array:
    """Returns half types as float32."""
    half = is_float(value.dtype) and value.dtype.itemsize < 4
    return value.astype(jnp.float32) if half else value


def x64(dtype: np.dtype) -> AbstractContextManager[Any]:
    """Sets x64 mode for as long as a float64 program is traced or run."""
    return jax.enable_x64(True) if dtype == np.float64 else nullcontext()
