"""The ceiling: how fast torch multiplies large matrices here."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from benchmarks.measuring.worker import Job, Runner
from benchmarks.runners.products import SIDE, product_results
from benchmarks.runners.torch_twin import synchronize


def build(job: Job) -> Runner:
    """Makes a product of square matrices ready."""
    torch.set_num_threads(job.threads)
    dtype = torch.bfloat16 if job.mode.arithmetic == "bfloat16" else torch.float32
    side = SIDE[job.case.device]
    generator = torch.Generator().manual_seed(0)
    a, b = (
        torch.randn(side, side, generator=generator).to(job.case.device, dtype)
        for _ in range(2)
    )
    out = torch.empty_like(a)

    def call() -> None:
        torch.mm(a, b, out=out)

    def results() -> dict[str, np.ndarray]:
        return product_results(*(t.double().cpu().numpy() for t in (a, b, out)))

    return Runner(call, results, flops=2 * side**3, wait=partial(synchronize, job))
