"""jax-resnet and flaxmodels (both Flax Linen) as they come, with our weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from benchmarks.measuring import inputs
from benchmarks.measuring.worker import Job, Runner
from benchmarks.plans.cases import DEPTHS
from benchmarks.runners.flax_twin import runner


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
    return model, flaxmodels_variables(state)


def flaxmodels_variables(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns a torch state under flaxmodels' names: blocks and layers, counted."""
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    leaves = {
        "running_mean": ("batch_stats", "mean"),
        "running_var": ("batch_stats", "var"),
        "bias": ("params", "bias"),
    }
    blocks: list[str] = []
    kind = "Bottleneck" if "layer1.0.conv3.weight" in state else "BasicBlock"
    for name, array in state.items():
        path, _, leaf = name.rpartition(".")
        if leaf == "num_batches_tracked":
            continue
        top = {"params": variables["params"], "batch_stats": variables["batch_stats"]}
        if path.startswith("layer"):
            block = ".".join(path.split(".")[:2])
            if block not in blocks:
                blocks.append(block)
            place = f"{kind}_{blocks.index(block)}"
            top = {key: tree.setdefault(place, {}) for key, tree in top.items()}
        layer = path.split(".", 2)[-1] if path.startswith("layer") else path
        last = 3 if kind == "Bottleneck" else 2
        if layer == "fc":
            found = "Dense_0"
        elif layer.startswith("downsample"):
            found = ("Conv" if layer.endswith("0") else "BatchNorm") + f"_{last}"
        else:
            sort = "Conv" if layer.startswith("conv") else "BatchNorm"
            found = f"{sort}_{int(layer[-1]) - 1}"
        collection, key = leaves.get(leaf, ("params", "scale"))
        if leaf == "weight" and array.ndim > 1:
            key = "kernel"
            array = array.transpose((2, 3, 1, 0) if array.ndim == 4 else (1, 0))
        top[collection].setdefault(found, {})[key] = array
    return variables
