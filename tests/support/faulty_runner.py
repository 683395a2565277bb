"""Modes that compute something else, or nothing; for the tests of the benchmarks."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from typing import Any

import torch

from benchmarks.measuring import inputs
from benchmarks.measuring.worker import Job, Runner
from benchmarks.plans.cases import JUDGED
from benchmarks.runners.torch_twin import runner
from parity.weights.twins import build as build_twin


def _dying(whole: Runner) -> Runner:
    left = [4]

    def call() -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        whole.call()

    return replace(whole, call=call)


def build(job: Job) -> Runner:
    """Builds the torch twin with the fault that the options name."""
    model: Any = build_twin("torch", job.case.spec, inputs.read_weights(job.folder))
    if "eps" in job.mode.options:
        model.layer1[0].bn2.eps = 1e-3
    if "relu6" in job.mode.options:
        model.layer1[0].relu = torch.nn.ReLU6()
    if "clips" in job.mode.options:
        model.layer1[0].relu = torch.nn.Hardtanh(0.0, 2.0)
    if "nan" in job.mode.options:
        model.fc.bias.data[0] = float("nan")
    if "raises" in job.mode.options:
        raise RuntimeError("the fault of\nthis mode")
    if "killed" in job.mode.options:
        os.kill(os.getpid(), signal.SIGKILL)
    if "dies" in job.mode.options:  # after it was judged
        return _dying(runner(job, model))
    if "tells" in job.mode.options:  # how many images it was given
        return replace(runner(job, model), flops=job.case.batch)
    if "overflows" in job.mode.options and job.case.batch > JUDGED["cpu"]:
        model.fc.bias.data[0] = float("nan")
    if "doubles" in job.mode.options:  # one gradient
        model.layer1[0].conv1.weight.register_hook(lambda gradient: 2 * gradient)
    if "decay" in job.mode.options:  # of the running statistics
        model.layer1[0].bn1.momentum = 0.2
    return runner(job, model)
