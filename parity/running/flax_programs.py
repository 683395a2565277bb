"""Pure functions of arrays: run here, jitted or not, or in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from parity import machine
from parity.running import float64_worker
from parity.running.seen import Seen
from parity.running.taps import ModuleError, Quantity, blamed, path_of
from parity.weights.flax_state import is_float

ROOM = 2**31
"""Bytes of results that the other process holds at once."""

Values = Iterator[tuple[Quantity, np.ndarray]]


@dataclass(frozen=True)
class Program:
    """A pure function, and what it shall be called on.

    Args:
        function: of arrays, to quantities in the order of their computation.
        arrays: its arguments; :meth:`elsewhere` lets go of them.
        dtype: that it computes in; float64 in x64 mode.
        in_torch: names and lays out what it gives as torch does.
        seen: what is noted of its calls when it is traced.
    """

    function: Callable[..., dict[Quantity, jax.Array]]
    arrays: list[np.ndarray]
    dtype: np.dtype
    in_torch: Callable[[Values], Values]
    seen: Seen

    def here(self, *, jit: bool = True) -> Values:
        """Runs it in this process, and yields its values in torch's layout.

        Half types come as float32.

        Raises:
            ModuleError: a module raised.
        """
        with x64(self.dtype), blamed():
            places, listed = self._listed()
            arguments = jax.device_put(self.arrays)
            values = (jax.jit(listed) if jit else listed)(*arguments)
            jax.block_until_ready(values)
        yield from self.in_torch(
            (quantity, np.asarray(jax.device_get(wide(values[place]))))
            for quantity, place in places.items()
        )

    def elsewhere(self) -> Values:
        """Runs it in float64, in a process of its own, and yields its values.

        It is traced here, from the model as it is, whatever has been changed in it,
        and computed there, so that x64 mode never touches this process.

        Raises:
            ModuleError: a module raised, or does not compute in float64.
            RuntimeError: the other process failed.
        """
        with jax.enable_x64(True), blamed():
            places, listed = self._listed()
            values = jax.eval_shape(listed, *self.arrays)
            programs = [
                export.export(jax.jit(part), platforms=["cpu"])(*self.arrays)
                for part in _parts(listed, [v.size * v.dtype.itemsize for v in values])
            ]
        for quantity, place in places.items():
            dtype = values[place].dtype
            if is_float(dtype) and dtype != np.float64:
                error = TypeError(f"computes in {dtype}, not float64")
                raise ModuleError(path_of(quantity.name), error)
        with computed_elsewhere(programs, self.arrays) as value_at:
            yield from self.in_torch(
                (quantity, value_at(place)) for quantity, place in places.items()
            )

    def _listed(self) -> tuple[dict[Quantity, int], Callable[..., list[jax.Array]]]:
        """Returns the function with a list as result, and what is where in it.

        jit would hand a dict back sorted by key. What is the same, as a block's output
        and its last rectifier's, is there once.
        """
        places: dict[Quantity, int] = {}

        def listed(*arrays: jax.Array) -> list[jax.Array]:
            found = self.function(*arrays)
            distinct = {id(value): value for value in found.values()}
            order = {of: place for place, of in enumerate(distinct)}
            places.clear()
            for quantity, value in found.items():
                places[quantity] = order[id(value)]
            return list(distinct.values())

        return places, listed


def _parts(
    listed: Callable[..., list[jax.Array]], sizes: list[int]
) -> Iterator[Callable[..., list[jax.Array]]]:
    """Divides what gives more than there is room for; XLA leaves out the rest each."""
    count = sum(sizes) // ROOM + 1
    ends = np.cumsum(sizes)
    part_of = np.minimum(ends * count // max(ends[-1], 1), count - 1)
    for part in sorted(set(part_of.tolist())):
        chosen = np.flatnonzero(part_of == part).tolist()
        yield lambda *arrays, chosen=chosen: [
            value for i, value in enumerate(listed(*arrays)) if i in chosen
        ]


@contextmanager
def computed_elsewhere(
    programs: Sequence[export.Exported],
    arrays: list[np.ndarray],
    series: Sequence[np.ndarray] = (),
) -> Iterator[Callable[[int], np.ndarray]]:
    """Calls programs in a process of its own, in x64 mode; see ``float64_worker``.

    Args:
        programs: that the other process shall call, one after the other.
        arrays: its arguments. The list is empty afterwards: two processes need room.
        series: more of them, for one call after the other.

    Yields:
        A function that reads one of the values they gave, counted through.

    Raises:
        RuntimeError: the other process failed.
    """
    with tempfile.TemporaryDirectory(prefix="resnet-twins-") as folder:
        for index, program in enumerate(programs):
            Path(folder, f"program-{index:03}.bin").write_bytes(program.serialize())
        np.savez(Path(folder, "inputs.npz"), *arrays)
        np.savez(Path(folder, "series.npz"), *series)
        arrays.clear()
        machine.give_back()
        worker = subprocess.run(
            [sys.executable, float64_worker.__file__, folder],
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
        if worker.returncode != 0:
            raise RuntimeError(f"the float64 process failed:\n{worker.stderr}")
        yield lambda index: np.load(Path(folder, f"{index}.npy"), mmap_mode="r")


def wide(value: jax.Array) -> jax.Array:
    """Returns half types as float32."""
    half = is_float(value.dtype) and value.dtype.itemsize < 4
    return value.astype(jnp.float32) if half else value


def x64(dtype: np.dtype) -> AbstractContextManager[Any]:
    """Sets x64 mode for as long as a float64 program is traced or run."""
    return jax.enable_x64(True) if dtype == np.float64 else nullcontext()
