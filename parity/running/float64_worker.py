"""Runs exported JAX programs in x64 mode, in a process of its own.

x64 mode changes the dtype of every literal, so it has no place in a process that also
measures float32. Called as ``python float64_worker.py FOLDER`` with
``program-000.bin``, ``program-001.bin`` … and ``inputs.npz`` (the arguments of each, in
order) in the folder; leaves ``0.npy``, ``1.npy`` … there, what the first gave and then
what the others did.
If ``series.npz`` has arrays, a program is called once for each of their slices, these
behind the arguments, and what it returns first takes the arguments' places for the next
call; what it returns behind that is left stacked, call by call.
Imports nothing of this project: the program is the caller's, traced by the caller.
"""

import os
import sys
from pathlib import Path


def main(folder: Path) -> None:
    """Runs the programs in the folder on the arguments there; leaves their results."""
    os.environ["JAX_ENABLE_X64"] = "1"
    import jax
    import jax.export
    import numpy as np

    with np.load(folder / "inputs.npz") as inputs, np.load(folder / "series.npz") as s:
        arguments = [jax.device_put(inputs[name]) for name in inputs.files]
        series = [s[name] for name in s.files]
    left = 0
    for file in sorted(folder.glob("program-*.bin")):
        program = jax.export.deserialize(bytearray(file.read_bytes()))
        call = jax.jit(program.call)  # compiled once, however often it is called
        for output in _called(call, arguments, series):
            np.save(folder / f"{left}.npy", np.asarray(output))
            left += 1


def _called(call, arguments, series):
    import numpy as np

    if not series:
        return call(*arguments)
    carried, outputs = len(arguments), []
    for slices in zip(*series, strict=True):
        returned = call(*arguments, *slices)
        arguments = returned[:carried]
        outputs.append([np.asarray(value) for value in returned[carried:]])
    return [*arguments, *map(np.stack, zip(*outputs, strict=True))]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
