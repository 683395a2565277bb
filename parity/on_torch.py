"""parity's hands on a torch module. ``on_flax`` has the same functions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn

from parity.taps import Call, Entry, ModuleError, TapNames

FRAMEWORK = "torch"

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def entries(model: nn.Module) -> dict[str, Entry]:
    """Returns the shape and dtype of every entry of the state, in order."""
    return {
        name: Entry(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in model.state_dict().items()
    }


def state(model: nn.Module) -> dict[str, np.ndarray]:
    """Returns a copy of every entry of the state, in order."""
    return {
        name: to_numpy(tensor).copy() for name, tensor in model.state_dict().items()
    }


def assign(model: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes entries that have been checked into the model; fills a meta model."""
    tensors = {name: to_torch(array) for name, array in arrays.items()}
    # Strictness has been seen to.
    model.load_state_dict(tensors, strict=False, assign=not has_data(model))


def has_data(model: nn.Module) -> bool:
    """Whether every entry of the state has values."""
    return not any(tensor.is_meta for tensor in model.state_dict().values())


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Returns a tensor bit for bit, sharing its memory where that is possible."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:  # numpy has none of its own
        return tensor.view(torch.int16).numpy().view(_BFLOAT16)
    return tensor.numpy()


def to_torch(array: np.ndarray) -> Tensor:
    """Returns a copy of an array, bit for bit."""
    array = np.array(array, order="C")
    if array.dtype == _BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def in_eval(model: nn.Module, *, float64: bool = False) -> nn.Module:
    """Returns a copy in evaluation mode, upcast where asked."""
    twin = copy.deepcopy(model).eval()
    return twin.double() if float64 else twin


def run(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """Runs the model as it is on images (n, c, h, w) and returns its result."""
    with torch.no_grad():
        return to_numpy(model(to_torch(images).to(*_place(model))))


def trace(
    model: nn.Module, images: np.ndarray, visit: Callable[[str, np.ndarray], None]
) -> None:
    """Runs the model as it is and visits every module's output as it comes.

    Args:
        model: any module that maps images to a tensor.
        images: of shape (n, c, h, w).
        visit: called with the name of the tap and its value. Half types come as
            float32; the value is only good until the call returns.

    Raises:
        ModuleError: a module raised.
    """
    names = TapNames()

    def note(path: str, module: nn.Module, x: Tensor, y: Tensor) -> None:
        y = y.float() if y.dtype in (torch.bfloat16, torch.float16) else y
        visit(names.next(path), to_numpy(y))

    _watch(model, to_torch(images).to(*_place(model)), note)


def calls(model: nn.Module, shape: tuple[int, ...]) -> list[Call]:
    """Lists the calls of modules without children, in order.

    Args:
        model: any module that maps images to a tensor; a meta model is enough.
        shape: of the images, (n, c, h, w).
    """
    names = TapNames()
    found: list[Call] = []

    def note(path: str, module: nn.Module, x: Tensor, y: Tensor) -> None:
        if not list(module.children()):
            found.append(
                Call(
                    names.next(path),
                    type(module).__name__,
                    tuple(x.shape[1:]),
                    tuple(y.shape[1:]),
                    _last(getattr(module, "stride", None)),
                    _last(getattr(module, "padding", None)),
                )
            )

    device, dtype = _place(model)
    _watch(model, torch.zeros(shape, device=device, dtype=dtype), note)
    return found


def _watch(
    model: nn.Module, x: Tensor, note: Callable[[str, nn.Module, Tensor, Tensor], None]
) -> None:
    """Runs the model and notes each module's path, self, input and output."""
    inside: list[str] = []

    def before(path: str) -> Callable[..., None]:
        return lambda module, args: inside.append(path)

    def after(path: str) -> Callable[..., None]:
        # At once, not later: what follows may work in place on this output.
        def noted(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            inside.pop()
            if isinstance(output, Tensor):
                note(path, module, args[0], output)

        return noted

    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(before(path)))
        handles.append(module.register_forward_hook(after(path)))
    try:
        with torch.no_grad():
            model(x)
    except Exception as error:
        raise ModuleError(inside[-1] if inside else "", error) from error
    finally:
        for handle in handles:
            handle.remove()


def _place(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    parameter = next(model.parameters())
    return parameter.device, parameter.dtype


def _last(value: Any) -> int | None:
    return value[-1] if isinstance(value, tuple) else value
