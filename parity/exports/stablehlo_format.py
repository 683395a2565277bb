"""StableHLO: the Flax twin, traced and serialised by ``jax.export``.

The file is what ``jax.export.deserialize`` takes. What the program says of itself
stands behind it, where JAX does not look: JSON, its length, and a mark.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from parity.errors import InputError
from parity.exports.facts import Facts, Program, free_sizes
from parity.weights.state import load_state_dict
from parity.weights.twins import abstract_flax

EXTENSION = ".stablehlo"
NEEDS = ("jax", "flax", "flatbuffers")
WRITTEN_BY = ("jax", "jaxlib", "flax")

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

_MARK = b"resnet-twins\0"


def write(facts: Facts, state: Mapping[str, np.ndarray]) -> bytes:
    """Returns the program of a state of these facts, with its weights as constants."""
    import jax
    import jax.numpy as jnp
    from flax import nnx
    from jax import export

    model = abstract_flax(facts.config, param_dtype=facts.dtype)
    load_state_dict(model, state)
    graph, weights = nnx.split(model)
    how = facts.preprocessing

    def resnet(images: jax.Array) -> jax.Array:
        if how is not None:
            mean, std = (
                jnp.array(v, jnp.float32).reshape(1, 1, 1, 3)
                for v in (how.mean, how.std)
            )
            images = images.astype(jnp.float32) / jnp.float32(255)
            images = (images - mean) / std
        network = nnx.merge(graph, weights)
        return network(images.astype(facts.dtype)).astype(jnp.float32)

    kind = jnp.float32 if how is None else jnp.uint8
    shape = jax.ShapeDtypeStruct(_shape(facts), kind)
    made = export.export(jax.jit(resnet), platforms=PLATFORMS)(shape)
    program = bytes(made.serialize())
    told = {
        "facts": facts.to_json(),
        "calling_convention_version": made.calling_convention_version,
        "platforms": made.platforms,
        "sha256": hashlib.sha256(program).hexdigest(),
    }
    text = json.dumps(told).encode()
    return program + text + len(text).to_bytes(8, "little") + _MARK


def _shape(facts: Facts) -> Sequence[Any]:
    from jax import export

    config, free = facts.config, free_sizes(facts.config)
    height, width = map(str, config.natural_size)
    limits = ["n >= 1"]
    if free is not None:
        height, width = (f"{free.step}*h", f"{free.step}*w")
        limits += [f"h >= {free.least}", f"w >= {free.least}"]
        if config.dimensions == 1:
            height = "1"
            del limits[1]
    text = f"n, {height}, {width}, {config.in_channels}"
    return export.symbolic_shape(text, constraints=limits)


def told_of(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """Returns a file's program, and what it says of itself.

    Raises:
        InputError: it is none, or damaged.
    """
    at = len(data) - len(_MARK) - 8
    if at < 0 or not data.endswith(_MARK):
        raise InputError(
            "is no program of this project, or cut off",
            advice="resnet-twins export writes one",
        )
    start = at - int.from_bytes(data[at : at + 8], "little")
    try:
        told = json.loads(data[max(start, 0) : at])
        wanted = told["sha256"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"is damaged ({error})") from error
    program = data[:start]
    if hashlib.sha256(program).hexdigest() != wanted:
        raise InputError("is damaged: its bytes are not those that were written")
    return program, told


def read(data: bytes) -> Program:
    """Loads a program by JAX.

    Raises:
        InputError: it is none, or damaged.
    """
    import jax
    from jax import export

    program, told = told_of(data)
    facts = Facts.from_json(told.get("facts"))
    try:
        loaded = export.deserialize(bytearray(program))
    except Exception as error:  # of a newer version, say
        raise InputError(f"JAX {jax.__version__} does not load it ({error})") from error
    call = jax.jit(loaded.call)

    def run(images: np.ndarray) -> np.ndarray:
        return np.asarray(call(images))

    return Program(facts, run, channels_last=True)
