"""The processes that torchrun has started. The mirror of ``ranks_flax.py``."""

from __future__ import annotations

import inspect
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from resnet_spec import TrainingRecipe
from resnet_torch.distributed import with_global_statistics
from resnet_training.order import check_devices

_OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

# torch 2.13 has another name for it, and warns of the old one.
_ARGUMENTS = inspect.signature(DistributedDataParallel).parameters
_SYNC = next(
    n for n in ("forward_sync_buffers", "broadcast_buffers") if n in _ARGUMENTS
)


class Ranks:
    """The processes that train together, of which this is one; each has one device.

    Args:
        recipe: of the run.
        device: that this process computes on; a GPU of its own by default, if there
            are some.

    Raises:
        ValueError: the recipe is for another number of devices, or there is no such
            device.
    """

    def __init__(self, recipe: TrainingRecipe, device: str | None = None) -> None:
        self.rank, self.ranks, local = 0, 1, 0
        if all(name in os.environ for name in _OF_TORCHRUN):
            self.rank, self.ranks, local = (
                int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
            )
        check_devices(recipe, self.ranks)
        usual = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = _device(device or usual)
        if self.device.type == "cuda" and self.device.index is None and self.ranks > 1:
            self.device = torch.device("cuda", local)
        if self.ranks > 1 and not dist.is_initialized():
            kind = "gloo"  # always, for what the processes say to each other
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
                kind = "cpu:gloo,cuda:nccl"
            dist.init_process_group(kind)
        self._groups = recipe.groups

    def spread(self, model: nn.Module) -> nn.Module:
        """Returns a model whose gradients are the mean over all devices.

        With global statistics its norms become others in place.
        """
        if self.ranks == 1:
            return model
        if not self._groups:
            with_global_statistics(model)
        # Training reads no running statistics: they need not be the same each step.
        options: dict[str, Any] = {_SYNC: False}
        if self.device.type == "cuda":
            options["device_ids"] = [self.device]
        return DistributedDataParallel(model, **options)

    def share_statistics(self, model: nn.Module) -> None:
        """Gives a model the first device's statistics, where each has its own."""
        if self.ranks > 1 and self._groups:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def total(self, values: Tensor) -> Tensor:
        """Returns the sum over all processes."""
        if self.ranks > 1:
            dist.all_reduce(values)
        return values

    def any(self, asked: bool) -> bool:
        """Says whether any process asks; the same to all of them, at the same call."""
        if self.ranks == 1:
            return asked
        votes = torch.tensor(int(asked))  # on the CPU: it waits for no step of a GPU
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return bool(votes)

    def close(self) -> None:
        """Lets go of the other processes."""
        if self.ranks > 1 and dist.is_initialized():
            dist.destroy_process_group()

    @property
    def name(self) -> str:
        """What is computed on, in words."""
        return (
            f"{self.ranks} x {self.device.type}" if self.ranks > 1 else str(self.device)
        )


def _device(name: str) -> torch.device:
    """Returns a device that is there."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        why = str(error).partition("\n")[0]
        raise ValueError(f"device is {name!r}, which cannot be used ({why})") from error
    return device
