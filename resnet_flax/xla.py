"""Faster settings of XLA for a CPU, which JAX does not choose itself.

jaxlib 0.10 hands convolutions, products and reductions to a library of kernels,
YNNPACK. Its convolutions outside of 1x1 are slower than those XLA had before, and for
it channels' scales and biases are written out at the size of the map. What is best
depends on what is done, so it is to be said:

- inference: without the library. Of resnet50, batch 8, it takes half of the time with
  batch norms and an eighth with these folded.
- training: without its convolutions only. XLA's own sums over images, rows and columns,
  of which batch normalisation is made, take ten to twenty-five times as long.

For one function, at any time::

    jax.jit(function, compiler_options=resnet_flax.xla.compiler_options("inference"))

For a whole process, before JAX has computed anything::

    resnet_flax.xla.use_fast_cpu("inference")

Neither changes more than the rounding of results, and neither concerns accelerators.
The option is XLA's experiment: a jaxlib that no longer has it says so and stops.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal, get_args

Task = Literal["inference", "training"]

OPTION = "xla_cpu_experimental_ynn_fusion_type"
VALUES: Mapping[Task, str] = {
    "inference": "",
    "training": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE",
}
"""What is left to the library."""


def compiler_options(task: Task) -> dict[str, str]:
    """Returns what ``jax.jit`` and ``nnx.jit`` take as ``compiler_options``.

    Empty where JAX's default backend is no CPU, and where ``XLA_FLAGS`` has the option
    already: then the user has chosen. Starts JAX's backend if nothing has yet.

    Args:
        task: ``"inference"`` or ``"training"``; each is slow under the other's.

    Raises:
        ValueError: there is no such task.
    """
    import jax

    value = _value(task)
    if _chosen() or jax.default_backend() != "cpu":
        return {}
    return {OPTION: value}


def use_fast_cpu(task: Task) -> None:
    """Sets the option for this process and those that it starts, in ``XLA_FLAGS``.

    What the variable has already stays, and if that is this option, all stays.

    Args:
        task: ``"inference"`` or ``"training"``; each is slow under the other's. For a
            process that does both, ``"training"``, and :func:`compiler_options` instead
            where only the fastest will do.

    Raises:
        RuntimeError: JAX's backend has started and would not read the variable again.
        ValueError: there is no such task; or ``XLA_FLAGS`` is the name of a file, to
            which nothing can be added.
    """
    value = _value(task)
    if _chosen():
        return
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if flags and not flags.startswith("-"):
        raise ValueError(
            f"XLA_FLAGS names the file {flags}; add --{OPTION}={value} to it"
        )
    if _started():
        raise RuntimeError(
            "JAX has started and reads XLA_FLAGS no more. Call use_fast_cpu() before "
            "anything is computed, or give compiler_options() to jax.jit"
        )
    os.environ["XLA_FLAGS"] = f"{flags} --{OPTION}={value}".strip()


def _value(task: Task) -> str:
    if task not in VALUES:
        raise ValueError(f"task is {task!r}; it must be one of {get_args(Task)}")
    return VALUES[task]


def _chosen() -> bool:
    names = [flag.partition("=")[0] for flag in os.environ.get("XLA_FLAGS", "").split()]
    return f"--{OPTION}" in names


def _started() -> bool:
    # Importing jax starts nothing. JAX offers no public way to ask.
    from jax._src import xla_bridge

    return xla_bridge.backends_are_initialized()
