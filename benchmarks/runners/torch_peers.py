"""torchvision's and timm's networks, with our weights under the same names."""

from __future__ import annotations

import torch

from benchmarks.measuring import inputs
from benchmarks.measuring.worker import Job, Runner
from benchmarks.runners.torch_twin import runner
from benchmarks.torchvision_import import import_torchvision


def build(job: Job) -> Runner:
    """Makes the peer ready."""
    torchvision = import_torchvision()  # timm asks for it too
    if "timm" in job.mode.options:
        import timm

        model = timm.create_model(job.case.network)
    else:
        model = torchvision.models.get_model(job.case.network)
    state = inputs.read_weights(job.folder)
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    model.load_state_dict(tensors)
    return runner(job, model)
