"""Random weights that are drawn by numpy, whatever traces the network's creation.

JAX compiles a program for every shape that it draws, and a ResNet has thirty: seconds,
where the drawing takes a tenth of one. Philox (Salmon et al. 2011), the counter-based
generator drawn from here, takes JAX's key as its own. Traced, by ``nnx.jit`` or
``nnx.vmap``, the same function is called back from the program, so that the numbers are
the same bit for bit; under ``nnx.eval_shape`` nothing is drawn.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

Sample = Callable[[np.random.Generator, np.ndarray], None]
"""Fills an array with random numbers."""


@dataclass(frozen=True)
class Draws:
    """A key's random numbers, for one array of weights after the other.

    To nnx's layers it is an ``nnx.Rngs``. Of that itself, a key per layer would be
    taken: traced, in a time that grows with the square of their number.

    Args:
        key: JAX's, of any kind, traced or not.
    """

    key: Array
    _index: count[int] = field(default_factory=count)

    def params(self) -> Stream:
        """Returns the next array's numbers."""
        return Stream(self.key, next(self._index))


@dataclass(frozen=True)
class Stream:
    """The random numbers of one array.

    Args:
        key: of the network.
        index: of the array.
    """

    key: Array
    index: int

    def draw(
        self, sample: Sample, shape: tuple[int, ...], dtype: DTypeLike
    ) -> Float[Array, "*shape"]:
        """Returns what is sampled in this dtype; half types from float32."""
        key = self.key
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            key = jax.random.key_data(key)
        dtype = jnp.dtype(dtype)
        draw = partial(_draw, sample, self.index, shape, dtype)
        if not isinstance(key, Tracer):
            return jax.device_put(draw(np.asarray(key)))
        if dtype.itemsize < 8:
            result = jax.ShapeDtypeStruct(shape, dtype)
            return jax.pure_callback(draw, result, key, vmap_method="expand_dims")

        def draw_words(key: Any) -> np.ndarray:
            return draw(key)[..., None].view(np.uint32)

        # Where x64 mode is one thread's, JAX would round float64 from another.
        result = jax.ShapeDtypeStruct((*shape, 2), np.uint32)
        words = jax.pure_callback(draw_words, result, key, vmap_method="expand_dims")
        return jax.lax.bitcast_convert_type(words, dtype)


def kaiming_normal(stream: Stream, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Draws torchvision's kernels: N(0, 2/(k·k·out)), not truncated.

    Flax's own he_normal is truncated, and by the fan-in.
    """
    deviation = (2 / prod((*shape[:-2], shape[-1]))) ** 0.5

    def sample(generator: np.random.Generator, out: np.ndarray) -> None:
        generator.standard_normal(dtype=out.dtype.type, out=out)
        out *= out.dtype.type(deviation)

    return stream.draw(sample, shape, dtype)


def uniform(bound: float) -> Callable[..., Array]:
    """Returns what draws from ±bound, as torch does biases and linear layers."""

    def sample(generator: np.random.Generator, out: np.ndarray) -> None:
        generator.random(dtype=out.dtype.type, out=out)
        out *= 2
        out -= 1
        out *= out.dtype.type(bound)

    def init(stream: Stream, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        return stream.draw(sample, shape, dtype)

    return init


def first_key(seed: int) -> Array:
    """Returns what ``nnx.Rngs(seed).params()`` gives first, without compiling it.

    JAX compiles five programs for a seed's key, longer than a resnet50 is drawn.
    """
    config: Any = jax.config
    plain = config.jax_default_prng_impl == "threefry2x32"
    plain &= not getattr(config, "jax_random_seed_offset", 0)
    if not (plain and 0 <= seed < 2**31):
        return nnx.Rngs(seed).params()
    words: Any = np.array(_threefry((0, seed), (0, 0)), np.uint32)
    return jax.random.wrap_key_data(words, impl="threefry2x32")


def _threefry(key: tuple[int, int], block: tuple[int, int]) -> tuple[int, int]:
    """Threefry-2x32 with twenty rounds (Salmon et al. 2011), JAX's generator."""
    keys = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    low, high = block[0] + keys[0], block[1] + keys[1]
    for turn in range(5):
        for by in ((13, 15, 26, 6), (17, 29, 16, 24))[turn % 2]:
            low = (low + high) % 2**32
            high %= 2**32
            high = (high << by | high >> (32 - by)) % 2**32 ^ low
        low += keys[(turn + 1) % 3]
        high += keys[(turn + 2) % 3] + turn + 1
    return low % 2**32, high % 2**32


_BLOCK = 2**18
"""Values that one thread draws at a time. The numbers depend on it."""


def _draw(
    sample: Sample, index: int, shape: tuple[int, ...], dtype: np.dtype, key: Any
) -> np.ndarray:
    """Samples for one key, or for an array of keys where a transformation has them."""
    keys = np.asarray(key)
    if keys.ndim > 1:
        each = [_draw(sample, index, shape, dtype, key) for key in keys]
        return np.stack(each)
    words = np.zeros(4, np.uint32)
    words[: keys.size] = keys  # JAX's kinds of keys have two or four
    values = np.empty(prod(shape), np.float64 if dtype.itemsize == 8 else np.float32)

    def fill(block: int) -> None:
        # Counters that are far apart, so that no two blocks of any arrays meet.
        counter = [0, 0, block, index]
        philox = np.random.Philox(key=words.view(np.uint64), counter=counter)
        part = values[block * _BLOCK : (block + 1) * _BLOCK]
        sample(np.random.Generator(philox), part)

    blocks = range(-(-values.size // _BLOCK))
    if len(blocks) == 1:
        fill(0)
    else:
        with ThreadPoolExecutor(min(len(blocks), os.cpu_count() or 1)) as threads:
            list(threads.map(fill, blocks))
    return values.reshape(shape).astype(dtype, copy=False)
