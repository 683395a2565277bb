"""Runs of a torch module, with what its modules give. ``flax_runs`` has the same."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

import resnet_torch.optim
from parity.running.nudge import nudged
from parity.running.objective import Objective
from parity.running.taps import (
    LOSS,
    Batch,
    Branch,
    Call,
    Calls,
    Invocation,
    Quantity,
    Visit,
)
from parity.running.torch_watching import watched
from parity.weights.torch_state import to_numpy, to_torch
from resnet_spec import OptimizerConfig


def run(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """Runs the model as it is on images (n, c, h, w) and returns its result."""
    with torch.no_grad():
        return to_numpy(model(_images(model, images)))


def forward(model: nn.Module, images: np.ndarray, visit: Visit) -> Calls:
    """Runs the model as it is; visits every module's input and output as they come.

    Args:
        model: any module that maps images to a tensor.
        images: of shape (n, c, h, w).
        visit: called with the quantity and its value. Half types come as float32; the
            value is only good until the call returns.

    Raises:
        ModuleError: a module raised.
    """
    calls = Calls()
    before = _prints(model)

    def around(it: Invocation) -> Any:
        with calls.enter(it.path) as tap:
            # At once, not later: what follows may work in place on these.
            visit(Quantity("input", tap), value_of(it.x))
            y = it.result()
            if isinstance(y, Tensor):
                calls.dtypes[tap] = str(y.dtype).removeprefix("torch.")
                visit(Quantity("output", tap), value_of(y))
            return y

    with watched(model, around), torch.no_grad():
        model(_images(model, images))
    _visit_changed(model, before, visit)
    return calls


def train(
    model: nn.Module,
    images: np.ndarray,
    objective: Objective,
    visit: Visit,
    *,
    branch: Branch | None = None,
) -> Calls:
    """Runs the model forwards and backwards, and visits what comes in that order.

    Args:
        model: a copy made for this run, in training mode.
        images: of shape (n, c, h, w).
        objective: what is differentiated.
        visit: see :func:`forward`.
        branch: where rectifiers and pools shall take the way of another run, and not
            their own: by tap, see :func:`way`.

    Raises:
        ModuleError: a module raised.
    """
    calls = Calls()
    before = _prints(model)

    def around(it: Invocation) -> Any:
        with calls.enter(it.path) as tap:
            visit(Quantity("input", tap), value_of(it.x))
            version = it.x._version
            if branch is not None and tap in branch:
                y = _forced(it.x, branch[tap])
            else:
                y = it.result()
            if y is it.x and y._version == version:
                y = y.view_as(y)  # an identity's gradient is not all that reaches x
            if isinstance(y, Tensor):
                calls.dtypes[tap] = str(y.dtype).removeprefix("torch.")
                visit(Quantity("output", tap), value_of(y))
                if y.requires_grad:
                    quantity = Quantity("gradient", tap)
                    y.register_hook(lambda g: visit(quantity, value_of(g)))
            return y

    x = _images(model, images)
    # So that frozen parameters, too, leave a gradient by every output.
    x.requires_grad_(not all(p.requires_grad for p in model.parameters()))
    with watched(model, around):
        output = model(x)
    loss = _loss(output, objective)
    visit(LOSS, value_of(loss.detach()))
    loss.backward()
    parameters = list(model.named_parameters())
    for name, parameter in reversed(parameters):
        gradient = (
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        )
        visit(Quantity("parameter gradient", name), value_of(gradient))
    for name, buffer in model.named_buffers():
        visit(Quantity("statistic", name), value_of(buffer))
    _visit_changed(model, before, visit)
    return calls


def learn(
    model: nn.Module,
    batches: Sequence[Batch],
    config: OptimizerConfig,
    *,
    label_smoothing: float,
    loss_scale: float,
) -> list[dict[Quantity, np.ndarray]]:
    """Trains the model, a copy in training mode, one step for each batch.

    Returns:
        For each step the loss, and each rectifier's signs, in bits.
    """
    optimizer = resnet_torch.optim.create_optimizer(model, config)
    relus = {path for path, kind in kinks(model).items() if kind == "relu"}
    steps: list[dict[Quantity, np.ndarray]] = []
    for batch in batches:
        calls = Calls()
        found: dict[Quantity, np.ndarray] = {}

        def around(
            it: Invocation,
            calls: Calls = calls,
            found: dict[Quantity, np.ndarray] = found,
        ) -> Any:
            with calls.enter(it.path) as tap:
                y = it.result()
                if it.path in relus:
                    found[Quantity("signs", tap)] = np.packbits(value_of(y) > 0)
                return y

        with watched(model, around):
            loss = resnet_torch.optim.train_step(
                cast(Any, model),
                optimizer,
                _images(model, batch.images),
                to_torch(batch.labels).to(place(model)[0]),
                label_smoothing=label_smoothing,
                loss_scale=loss_scale,
            )
        found[LOSS] = value_of(loss)
        steps.append(found)
    return steps


def calls(model: nn.Module, shape: tuple[int, ...]) -> list[Call]:
    """Lists the calls of modules without children, in order.

    Args:
        model: any module that maps images to a tensor; a meta model is enough.
        shape: of the images, (n, c, h, w).
    """
    tree = Calls()
    found: list[Call] = []

    def around(it: Invocation) -> Any:
        with tree.enter(it.path) as tap:
            y = it.result()
            if isinstance(y, Tensor) and not list(it.module.children()):
                found.append(
                    Call(
                        tap,
                        type(it.module).__name__,
                        tuple(it.x.shape[1:]),
                        tuple(y.shape[1:]),
                        _last(getattr(it.module, "stride", None)),
                        _last(getattr(it.module, "padding", None)),
                    )
                )
            return y

    device, dtype = place(model)
    with watched(model, around), torch.no_grad():
        model(torch.zeros(shape, device=device, dtype=dtype))
    return found


def kinks(model: nn.Module) -> dict[str, str]:
    """Lists the modules whose derivative jumps: path → ``"relu"`` or ``"maxpool"``."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.ReLU):
            found[path] = "relu"
        elif isinstance(module, nn.MaxPool2d):
            found[path] = "maxpool"
    return found


def way(model: nn.Module, path: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the way that a rectifier or a pool took, from its input and output.

    The sign of a rectifier's output as bools, or the place of each of a pool's winners
    in its map, counted by rows.
    """
    module = model.get_submodule(path)
    if not isinstance(module, nn.MaxPool2d):
        return y > 0
    _, winners = nn.functional.max_pool2d(
        to_torch(x),
        module.kernel_size,
        module.stride,
        module.padding,
        module.dilation,
        module.ceil_mode,
        return_indices=True,
    )
    return winners.numpy()


def _forced(x: Tensor, way: np.ndarray) -> Tensor:
    chosen = torch.from_numpy(way).to(x.device)
    if chosen.dtype == torch.bool:
        return torch.where(chosen, x, torch.zeros((), dtype=x.dtype, device=x.device))
    return x.flatten(2).gather(2, chosen.flatten(2)).view(chosen.shape)


def _loss(output: Tensor, objective: Objective) -> Tensor:
    if objective.labels is not None:
        labels = to_torch(objective.labels).to(output.device)
        smoothing = objective.label_smoothing
        loss = resnet_torch.optim.cross_entropy(
            output, labels, label_smoothing=smoothing
        )
    else:
        weights = to_torch(objective.weights_like(tuple(output.shape)))
        loss = (output * weights.to(output)).mean()
    return loss * objective.scale


def _lasting(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields what a run must not change: all but the statistics of training mode."""
    yield from model.named_parameters()
    if not model.training:
        yield from model.named_buffers()


def _prints(model: nn.Module) -> dict[str, bytes]:
    return {
        name: sha256(to_numpy(tensor).tobytes()).digest()
        for name, tensor in _lasting(model)
    }


def _visit_changed(model: nn.Module, before: dict[str, bytes], visit: Visit) -> None:
    after = _prints(model)
    for name, tensor in _lasting(model):
        if after[name] != before[name]:
            visit(Quantity("state", name), value_of(tensor))


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same, NaN and the sign of zero included."""
    return to_numpy(a).tobytes() == to_numpy(b).tobytes()


def _images(model: nn.Module, images: np.ndarray) -> Tensor:
    return to_torch(images).to(*place(model))


def value_of(x: Tensor) -> np.ndarray:
    """Returns a tensor's values; half types come as float32."""
    x = x.detach()
    return to_numpy(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x)


def _last(value: Any) -> int | None:
    return value[-1] if isinstance(value, tuple) else value


def duplicate(
    model: nn.Module, *, training: bool = False, float64: bool = False
) -> nn.Module:
    """Returns a copy in training or evaluation mode, raised to float64 where asked."""
    twin = copy.deepcopy(model).train(training)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        for hook in (ours._backward_hooks or {}).values():  # no copy has its tensors'
            theirs.register_hook(hook)
    return twin.double() if float64 else twin


def nudge(model: nn.Module, images: np.ndarray, draw: int) -> np.ndarray:
    """Moves the state of a float64 model, and images, by about one roundoff."""
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.from_numpy(nudged(to_numpy(tensor), draw)))
    return nudged(images, draw)


def place(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Returns where a model computes, and in which dtype."""
    parameter = next(model.parameters())
    return parameter.device, parameter.dtype
