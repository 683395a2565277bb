"""Runs an exported JAX program in x64 mode, in a process of its own.

x64 mode changes the dtype of every literal, so it has no place in a process that also
measures float32. Called as ``python float64_worker.py FOLDER`` with ``program.bin`` and
``inputs.npz`` (arguments in order) in the folder; leaves ``0.npy``, ``1.npy`` … there.
If ``series.npz`` has arrays, the program is called once for each of their slices, these
behind the arguments, and what it returns first takes the arguments' places for the next
call; what it returns behind that is left stacked, call by call.
Imports nothing of this project: the program is the caller's, traced by the caller.
"""

import os
import sys
from pathlib import Path


def main(folder: Path) -> None:
    """Runs the program in the folder on the arguments there; leaves its results."""
    os.environ["JAX_ENABLE_X64"] = "1"
    import jax
    import jax.export
    import numpy as np

    program = jax.export.deserialize(bytearray((folder / "program.bin").read_bytes()))
    call = jax.jit(program.call)  # compiled once, however often it is called
    with np.load(folder / "inputs.npz") as inputs, np.load(folder / "series.npz") as s:
        arguments = [jax.device_put(inputs[name]) for name in inputs.files]
        series = [s[name] for name in s.files]
    if not series:
        outputs = call(*arguments)
    else:
        carried, outputs = len(arguments), []
        for slices in zip(*series, strict=True):
            returned = call(*arguments, *slices)
            arguments = returned[:carried]
            outputs.append([np.asarray(value) for value in returned[carried:]])
        outputs = [*arguments, *map(np.stack, zip(*outputs, strict=True))]
    for index, output in enumerate(outputs):
        np.save(folder / f"{index}.npy", np.asarray(output))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
