"""jax-resnet and flaxmodels (both Flax Linen) as they come, with our weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from benchmarks.measuring import inputs
from benchmarks.measuring.worker import Job, Runner
from benchmarks.plans.cases import DEPTHS
from benchmarks.runners.flax_twin import runner
from parity.weights.dialects.dialect import write
from parity.weights.dialects.recognising import require_dialect
from resnet_spec import get_config


def build(job: Job) -> Runner:
    """Makes the peer ready."""
    state = inputs.read_weights(job.folder)
    depth = int(job.case.network.removeprefix("resnet"))
    assert job.case.network in DEPTHS
    if "flaxmodels" in job.mode.options:
        model, variables = _flaxmodels(depth, state)
        more: dict[str, Any] = {"train": False}
    else:
        model, variables = _jax_resnet(depth, state)
        more = {"mutable": False}
    images, _ = inputs.read_batch(job.folder, job.case)
    x = jax.device_put(np.ascontiguousarray(images.transpose(0, 2, 3, 1)))
    variables = jax.device_put(variables)
    forward = jax.jit(lambda variables, x: model.apply(variables, x, **more))
    return runner(lambda x: forward(variables, x), x)


def _jax_resnet(depth: int, state: Mapping[str, np.ndarray]) -> tuple[Any, Any]:
    import jax_resnet  # type: ignore[import-not-found]  an extra
    import torch

    # Its own loader, made for torchvision's names.
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    make, variables = jax_resnet.pretrained_resnet(depth, tensors)
    return make(), variables


def _flaxmodels(depth: int, state: Mapping[str, np.ndarray]) -> tuple[Any, Any]:
    import flaxmodels  # type: ignore[import-not-found]  an extra

    make = getattr(flaxmodels, f"ResNet{depth}")
    model = make(output="logits", pretrained=None, normalize=False)
    config = get_config(f"resnet{depth}")
    theirs = write(require_dialect("flaxmodels"), config, state)
    return model, unflatten_dict(theirs, sep=".")
