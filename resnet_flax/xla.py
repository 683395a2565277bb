"""Faster settings of XLA for convolutions on a CPU, which JAX does not choose itself.

jaxlib 0.10 hands convolutions to a library of kernels, YNNPACK, that is slower at those
of a ResNet, above all outside of 1x1, than what XLA had before. Here the library keeps
products and reductions only. Reductions must stay with it: XLA's own take ten to
twenty-five times as long over images, rows and columns, as batch normalisation sums.

For one function, at any time::

    jax.jit(function, compiler_options=resnet_flax.xla.compiler_options())

For a whole process, before JAX has computed anything::

    resnet_flax.xla.use_fast_cpu()

Neither changes more than the rounding of results, and neither concerns accelerators.
The option is XLA's experiment: a jaxlib that no longer has it says so and stops.
"""

from __future__ import annotations

import os

OPTION = "xla_cpu_experimental_ynn_fusion_type"
VALUE = "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"


def compiler_options() -> dict[str, str]:
    """Returns what ``jax.jit`` and ``nnx.jit`` take as ``compiler_options``.

    Empty where JAX's default backend is no CPU, and where ``XLA_FLAGS`` has the option
    already: then the user has chosen. Starts JAX's backend if nothing has yet.
    """
    import jax

    if _chosen() or jax.default_backend() != "cpu":
        return {}
    return {OPTION: VALUE}


def use_fast_cpu() -> None:
    """Sets the option for this process and those that it starts, in ``XLA_FLAGS``.

    What the variable has already stays, and if that is this option, all stays.

    Raises:
        RuntimeError: JAX's backend has started and would not read the variable again.
        ValueError: ``XLA_FLAGS`` is the name of a file, to which nothing can be added.
    """
    if _chosen():
        return
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if flags and not flags.startswith("-"):
        raise ValueError(
            f"XLA_FLAGS names the file {flags}; add --{OPTION}={VALUE} to it"
        )
    if _started():
        raise RuntimeError(
            "JAX has started and reads XLA_FLAGS no more. Call use_fast_cpu() before "
            "anything is computed, or give compiler_options() to jax.jit"
        )
    os.environ["XLA_FLAGS"] = f"{flags} --{OPTION}={VALUE}".strip()


def _chosen() -> bool:
    names = [flag.partition("=")[0] for flag in os.environ.get("XLA_FLAGS", "").split()]
    return f"--{OPTION}" in names


def _started() -> bool:
    # Importing jax starts nothing. JAX offers no public way to ask.
    from jax._src import xla_bridge

    return xla_bridge.backends_are_initialized()
