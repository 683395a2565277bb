"""The torch twin in its modes."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
import torch._inductor.config as inductor

import resnet_torch
from benchmarks.measuring import inputs
from benchmarks.measuring.worker import Job, Runner
from parity.weights.twins import build as build_twin
from resnet_torch.optim import create_optimizer, train_step


def build(job: Job) -> Runner:
    """Makes the torch twin ready."""
    model = build_twin("torch", job.case.spec, inputs.read_weights(job.folder))
    made = "compiled" in job.mode.options or job.mode.engine
    if "fused" in job.mode.options and not made:
        model = resnet_torch.fuse(model)
    return runner(job, model)


def runner(job: Job, model: torch.nn.Module) -> Runner:
    """Makes any torch module with torchvision's names ready."""
    case, options = job.case, job.mode.options
    torch.set_num_threads(job.threads)
    # As training scripts do where all batches have one shape.
    torch.backends.cudnn.benchmark = case.device == "cuda"
    images, labels = inputs.read_batch(job.folder, job.case)
    model = model.to(case.device)
    x = torch.from_numpy(images).to(case.device)
    y = torch.from_numpy(labels).to(case.device)
    if "channels_last" in options:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.contiguous(memory_format=torch.channels_last)
    half = job.mode.arithmetic == "bfloat16"

    def cast() -> Any:
        return torch.autocast(case.device, torch.bfloat16) if half else nullcontext()

    if case.task == "training":
        return _training(job, model, x, y, cast)
    return _inference(job, model, x, cast)


def _inference(job: Job, model: Any, x: torch.Tensor, cast: Any) -> Runner:
    model.eval()
    run = model
    if job.mode.engine is not None:
        run = resnet_torch.compile(model, engine=job.mode.engine)  # type: ignore
    elif {"fused", "compiled"} <= job.mode.options:
        run = resnet_torch.compile(model)
    elif "compiled" in job.mode.options:
        # Weights become constants of the program; only then are they laid out for it.
        inductor.freezing = True
        # For this batch alone, whatever batch was compiled for before.
        run = torch.compile(model, dynamic=False)
    last: list[torch.Tensor] = []

    def call() -> None:
        with torch.no_grad(), cast():
            last[:] = [run(x)]

    return Runner(
        call,
        lambda: {"logits": last[0].float().cpu().numpy()},
        wait=partial(synchronize, job),
    )


def _training(
    job: Job, model: Any, x: torch.Tensor, y: torch.Tensor, cast: Any
) -> Runner:
    before = inputs.read_weights(job.folder)
    model.train()
    optimizer = create_optimizer(model, inputs.OPTIMIZER)
    run: Any = model
    if "compiled" in job.mode.options:
        run = torch.compile(model, dynamic=False)
    losses: list[torch.Tensor] = []

    def call() -> None:
        # Autocast around the backward pass too: it has the types of the forward one.
        with cast():
            losses.append(train_step(run, optimizer, x, y))

    def results() -> dict[str, np.ndarray]:
        after = {k: v.float().cpu().numpy() for k, v in model.state_dict().items()}
        return inputs.changes([loss.item() for loss in losses], before, after)

    return Runner(call, results, wait=partial(synchronize, job))


def synchronize(job: Job) -> None:
    """Waits for the accelerator, if it is one."""
    if job.case.device == "cuda":
        torch.cuda.synchronize()
