"""The ceiling: how fast XLA multiplies large matrices here."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np

from benchmarks.measuring.worker import Job, Runner
from benchmarks.runners.products import SIDE, product_results


def build(job: Job) -> Runner:
    """Makes a product of square matrices ready."""
    side = SIDE[job.case.device]
    a, b = (
        jax.random.normal(jax.random.key(seed), (side, side), np.float32)
        for seed in range(2)
    )
    multiply = jax.jit(lambda a, b: a @ b)
    last: list[jax.Array] = []

    def call() -> None:
        last[:] = [multiply(a, b)]

    def results() -> dict[str, np.ndarray]:
        return product_results(*(np.asarray(v, np.float64) for v in (a, b, last[0])))

    wait = partial(jax.block_until_ready, last)
    return Runner(call, results, flops=2 * side**3, wait=wait)
