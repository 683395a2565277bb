"""One module of a torch network, run alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from parity.running.experiments import Experiment
from parity.running.taps import (
    Calls,
    Invocation,
    Quantity,
    blamed,
    path_of,
)
from parity.running.torch_runs import place, same_bits, value_of
from parity.running.torch_watching import watched
from parity.weights.torch_state import to_torch


def experiment(
    model: nn.Module, setup: Experiment, dtype: torch.dtype = torch.float32
) -> dict[Quantity, np.ndarray]:
    """Runs one module alone; what it calls gives what the experiment says.

    Args:
        model: the whole network, a copy made for this.
        setup: the module's call, and what it and its callees are given.
        dtype: that it computes in, if its state does not say so.

    Returns:
        Its output, what it hands on, and with gradients given those by its own input,
        by what its callees gave, and by its own parameters; its statistics; whatever
        else of its state it has changed.

    Raises:
        ModuleError: the module raised.
    """
    place_of = path_of(setup.tap)
    prefix = f"{place_of}." if place_of else ""
    inside = model.get_submodule(place_of)
    device, own_dtype = place(model)
    dtype = own_dtype or dtype
    training = setup.training
    calls, waiting = Calls(), setup.waiting()
    handed: dict[int, Tensor] = {}

    def leaf(array: np.ndarray) -> Tensor:
        x = to_torch(array).to(device)
        return x.to(dtype).requires_grad_(training) if x.is_floating_point() else x

    def around(it: Invocation) -> Any:
        if it.module is not inside and waiting.get(it.path):
            index = waiting[it.path].pop(0)
            handed[index] = it.x.clone()
            return given[index].clone()  # it may be worked on in place
        with calls.enter(it.path):
            return it.result()

    x, given = leaf(setup.input), [leaf(callee.output) for callee in setup.calls]
    own = {
        prefix + name: tensor
        for name, tensor in [*inside.named_parameters(), *inside.named_buffers()]
        if setup.owns(prefix + name)
    }
    before = {name: tensor.detach().clone() for name, tensor in own.items()}
    with watched(model, around), torch.set_grad_enabled(training):
        y = inside(x.clone())
    names = [callee.tap for callee in setup.calls]
    found = {Quantity("output", setup.tap): y}
    found |= {Quantity("input", names[i]): value for i, value in handed.items()}
    ends: list[tuple[Tensor, np.ndarray]] = []
    if setup.gradient is not None:
        ends = [(y, setup.gradient)]
        for index, value in handed.items():
            gradient = setup.calls[index].gradient
            if gradient is not None and value.is_floating_point():
                ends.append((value, gradient))
    if ends and all(end.shape == gradient.shape for end, gradient in ends):
        wanted = {Quantity("input gradient", setup.tap): x}
        wanted |= {Quantity("gradient", names[i]): given[i] for i in handed}
        for name, tensor in own.items():
            if isinstance(tensor, nn.Parameter):
                quantity = Quantity("parameter gradient", name)
                wanted[quantity] = tensor
        wanted = {q: leaf for q, leaf in wanted.items() if leaf.requires_grad}
        ends = [(end, gradient) for end, gradient in ends if end.requires_grad]
        with blamed(place_of):
            by = (
                torch.autograd.grad(
                    [end for end, _ in ends],
                    list(wanted.values()),
                    [to_torch(gradient).to(end) for end, gradient in ends],
                    allow_unused=True,
                    materialize_grads=True,
                )
                if ends
                else [torch.zeros_like(leaf) for leaf in wanted.values()]
            )
        found |= dict(zip(wanted, by, strict=True))
    for name, tensor in own.items():
        if training and not isinstance(tensor, nn.Parameter):
            found[Quantity("statistic", name)] = tensor
        elif not same_bits(tensor, before[name]):
            found[Quantity("state", name)] = tensor
    values = {quantity: value_of(value).copy() for quantity, value in found.items()}
    with torch.no_grad():  # the next experiment starts where this one did
        for name, tensor in own.items():
            tensor.copy_(before[name])
    return values
