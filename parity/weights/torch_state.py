"""The state of a torch module, as arrays. ``flax_state`` has the same functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn

from parity.weights.names import Entry

FRAMEWORK = "torch"

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def entries(model: nn.Module) -> dict[str, Entry]:
    """Returns the shape and dtype of every entry of the state, in order."""
    return {
        name: Entry(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in _tensors(model)
    }


def state(model: nn.Module) -> dict[str, np.ndarray]:
    """Returns a copy of every entry of the state, in order."""
    return {name: to_numpy(tensor).copy() for name, tensor in _tensors(model)}


def unwrapped(model: nn.Module) -> nn.Module:
    """Returns the network in what only runs it, under names of its own."""
    around = (
        *(nn.DataParallel, nn.parallel.DistributedDataParallel),
        torch.optim.swa_utils.AveragedModel,
    )
    while True:
        if isinstance(model, around):
            model = model.module
        elif (inner := vars(model).get("_modules", {}).get("_orig_mod")) is not None:
            model = inner  # of torch.compile
        else:
            return model


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, value in unwrapped(model).state_dict().items():
        if not isinstance(value, Tensor) or value.is_quantized:
            raise TypeError(
                f"{name} is no plain tensor; a quantised model has no weights to "
                "move: take the model that it was made of"
            )
        yield name, value


def assign(model: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes entries that have been checked into the model; fills a meta model."""
    tensors = {name: to_torch(array) for name, array in arrays.items()}
    # Strictness has been seen to.
    model = unwrapped(model)
    model.load_state_dict(tensors, strict=False, assign=not has_data(model))


def has_data(model: nn.Module) -> bool:
    """Whether every entry of the state has values."""
    return not any(tensor.is_meta for _, tensor in _tensors(model))


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Returns a tensor bit for bit, sharing its memory where that is possible."""
    tensor = tensor.detach().cpu().resolve_neg().contiguous()
    if tensor.dtype == torch.bfloat16:  # numpy has none of its own
        return tensor.view(torch.int16).numpy().view(_BFLOAT16)
    return tensor.numpy()


def to_torch(array: np.ndarray) -> Tensor:
    """Returns a copy of an array, bit for bit."""
    array = np.array(array, order="C")
    if array.dtype == _BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
