"""Faster settings of XLA for a CPU, which JAX does not choose itself.

jaxlib 0.10 hands convolutions, products and reductions to a library of kernels,
YNNPACK. Its convolutions outside of 1x1 are slower than those XLA had before, and for
it channels' scales and biases are written out at the size of the map. What is best
depends on what is done, so it is to be said:

- inference: without the library.
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

    They hold whatever :func:`use_fast_cpu` has set. Empty where JAX's default backend
    is no CPU, and where ``XLA_FLAGS`` has another value of the option: then the user
    has chosen. Starts JAX's backend if nothing has yet.

    Args:
        task: ``"inference"`` or ``"training"``; each is slow under the other's.

    Raises:
        ValueError: there is no such task.
    """
    import jax

    value = _value(task)
    if _users(_chosen()) or jax.default_backend() != "cpu":
        return {}
    return {OPTION: value}


def use_fast_cpu(task: Task) -> None:
    """Sets the option for this process and those that it starts, in ``XLA_FLAGS``.

    What the variable has already stays; if that is a value of this option that is
    none of these, all stays.

    Args:
        task: ``"inference"`` or ``"training"``; each is slow under the other's. In a
            process that does both, one of them, and :func:`compiler_options` for the
            functions of the other.

    Raises:
        RuntimeError: JAX's backend has started and would not read the variable again.
        ValueError: there is no such task; or ``XLA_FLAGS`` is the name of a file, to
            which nothing can be added.
    """
    value = _value(task)
    chosen = _chosen()
    if chosen == value or _users(chosen):
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
    others = [flag for flag in flags.split() if not flag.startswith(f"--{OPTION}=")]
    os.environ["XLA_FLAGS"] = " ".join([*others, f"--{OPTION}={value}"])


def _value(task: Task) -> str:
    if task not in VALUES:
        raise ValueError(f"task is {task!r}; it must be one of {get_args(Task)}")
    return VALUES[task]


def _chosen() -> str | None:
    """The option's value in XLA_FLAGS; of several the last, as XLA reads them."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    values = [value for flag in flags for value in flag.split(f"--{OPTION}=")[1:]]
    return values[-1] if values else None


def _users(chosen: str | None) -> bool:
    return chosen is not None and chosen not in VALUES.values()


def _started() -> bool:
    # Importing jax starts nothing. JAX offers no public way to ask.
    from jax._src import xla_bridge

    return xla_bridge.backends_are_initialized()
