"""Runs of a torch module, with what its modules give. ``flax_runs`` has the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import sha256
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

import resnet_torch.optim
from parity.running.folds import Folding, Rectifying
from parity.running.norms import Lost
from parity.running.objective import Objective
from parity.running.perturbing import PERTURBATION
from parity.running.taps import (
    INPUT,
    LOSS,
    OUTPUT,
    Batch,
    Branch,
    Call,
    Calls,
    Inputs,
    Invocation,
    Quantity,
    Visit,
    blamed,
    called_with,
    parts,
    results,
)
from parity.running.torch_copies import unfreeze
from parity.running.torch_norms import lossy
from parity.running.torch_watching import watched
from parity.weights.names import Shape
from parity.weights.torch_state import to_numpy, to_torch
from resnet_spec import OptimizerConfig

NOTHING: Mapping[str, Lost] = MappingProxyType({})


def run(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """Runs the model as it is on images (n, c, h, w) and returns its result."""
    with torch.no_grad():
        return to_numpy(_called(model, {INPUT: images}))


def output_shapes(model: nn.Module, inputs: Inputs) -> dict[str, Shape]:
    """Runs the model as it is; returns the shape of its result, or of all its parts.

    Raises:
        ModuleError: a module raised.
    """
    with blamed(), torch.no_grad():
        y = _called(model, inputs)
    return {name: tuple(part.shape) for name, part in parts(y, Tensor, OUTPUT)}


def forward(
    model: nn.Module,
    inputs: Inputs | np.ndarray,
    visit: Visit,
    *,
    ask: Sequence[str] = (),
    lost: Mapping[str, Lost] = NOTHING,
) -> Calls:
    """Runs the model as it is; visits every module's input and output as they come.

    Args:
        model: any module that gives tensors, however they are nested.
        inputs: what it is given; one array is images (n, c, h, w).
        visit: called with the quantity and its value. Half types come as float32; the
            value is only good until the call returns.
        ask: what else it is asked for; see :func:`parity.running.taps.results`.
        lost: by the sums of norms, by tap: of float64, for float32.

    Raises:
        ModuleError: a module raised.
    """
    calls = Calls()
    before = _prints(model)

    def around(it: Invocation) -> Any:
        with calls.enter(it.path) as tap:
            if it.x is not None:
                # At once, not later: what follows may work in place on these.
                visit(Quantity("input", tap), value_of(it.x))
            y = it.result()
            if tap in lost and it.x is not None:
                y = lossy(y, it.x, lost[tap], PERTURBATION)
            for name, part in _tapped(calls, it, tap, y):
                visit(Quantity("output", name), value_of(part))
            return y

    with blamed(), torch.no_grad():
        with watched(model, around), Rectifying(calls):
            _called(model, inputs)
        _visit_changed(model, before, visit)
        for name, y in results(model, lambda it: _called(it, inputs), ask):
            for part, value in parts(y, Tensor, name):
                visit(Quantity("result", part), value_of(value))
    return calls


def _tapped(
    calls: Calls, it: Invocation, tap: str, y: Any
) -> Iterator[tuple[str, Tensor]]:
    if it.alone and isinstance(y, Tensor):
        calls.plain.add(tap)
    for name, part in parts(y, Tensor, tap):
        calls.dtypes[name] = str(part.dtype).removeprefix("torch.")
        yield name, part


def train(
    model: nn.Module,
    inputs: Inputs | np.ndarray,
    objective: Objective,
    visit: Visit,
    *,
    branch: Branch | None = None,
    lost: Mapping[str, Lost] = NOTHING,
) -> Calls:
    """Runs the model forwards and backwards, and visits what comes in that order.

    A gradient that does not reach a parameter or an output is zero there. Frozen
    parameters have theirs nevertheless.

    Args:
        model: a copy made for this run, in the mode that it shall have.
        inputs: see :func:`forward`.
        objective: what is differentiated.
        visit: see :func:`forward`.
        branch: where rectifiers and pools shall take the way of another run, and not
            their own: by tap, see :func:`way`.
        lost: see :func:`forward`.

    Raises:
        ModuleError: a module raised.
    """
    calls = Calls()
    before = _prints(model)
    unreached: dict[Quantity, Tensor] = {}

    def reached(quantity: Quantity, gradient: Tensor) -> None:
        unreached.pop(quantity, None)
        visit(quantity, value_of(gradient))

    def around(it: Invocation) -> Any:
        with calls.enter(it.path) as tap:
            version = None
            if it.x is not None:
                visit(Quantity("input", tap), value_of(it.x))
                version = it.x._version
            y = it.result()
            if tap in lost and it.x is not None:
                y = lossy(y, it.x, lost[tap], PERTURBATION)
            if isinstance(y, Tensor) and y.is_floating_point():
                if not y.requires_grad and torch.is_grad_enabled():
                    # Before the first parameter, or behind a detach in the module.
                    y = y.detach().clone().requires_grad_().clone()
                as_given = y is it.x and y._version == version
                if as_given or (y is not it.x and y._is_view()):
                    # An identity's gradient is not all that reaches x, and none
                    # reaches a view that is worked on in place.
                    y = y.clone()
            elif not isinstance(y, Tensor):  # its parts may be used within, too
                y = tree_map_only(Tensor, lambda part: part.clone(), y)
            for name, part in _tapped(calls, it, tap, y):
                visit(Quantity("output", name), value_of(part))
                if part.is_floating_point():
                    quantity = Quantity("gradient", name)
                    unreached[quantity] = torch.zeros_like(part)
                    if part.requires_grad:
                        part.register_hook(partial(reached, quantity))
            return y

    unfreeze(model)
    with blamed():
        given = _placed(model, inputs)
        for x in given.values():
            x.requires_grad_(objective.by_inputs and x.is_floating_point())
        folding = Folding(calls, dict(model.named_modules()), visit, branch)
        with watched(model, around), folding:
            # Clones: what is first may work in place.
            args, named = called_with({name: x.clone() for name, x in given.items()})
            output = model(*args, **named)
        loss = _loss(output, objective)
        visit(LOSS, value_of(loss))
        if loss.requires_grad:
            loss.backward()
    for quantity, zeros in reversed(list(unreached.items())):
        visit(quantity, value_of(zeros))
    for name, parameter in reversed(list(model.named_parameters())):
        visit(Quantity("parameter gradient", name), value_of(_gradient(parameter)))
    if objective.by_inputs:
        for name, x in given.items():
            if x.is_floating_point():
                visit(Quantity("input gradient", name), value_of(_gradient(x)))
    for name, buffer in model.named_buffers():
        visit(Quantity("statistic", name), value_of(buffer))
    _visit_changed(model, before, visit)
    return calls


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


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
    rectifiers = relus(model)
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
                if it.path in rectifiers:
                    found[Quantity("signs", tap)] = np.packbits(value_of(y) > 0)
                return y

        with blamed(), watched(model, around):
            loss = resnet_torch.optim.train_step(
                cast(Any, model),
                optimizer,
                _placed(model, batch.images)[INPUT],
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
            if (
                isinstance(y, Tensor)
                and it.x is not None
                and not list(it.module.children())
            ):
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


def relus(model: nn.Module) -> set[str]:
    """Lists where its rectifiers are."""
    return {path for path, m in model.named_modules() if isinstance(m, nn.ReLU)}


def _loss(output: Any, objective: Objective) -> Tensor:
    found = dict(parts(output, Tensor, OUTPUT))
    if objective.labels is not None:
        scores = found[OUTPUT]
        labels = to_torch(objective.labels).to(scores.device)
        smoothing = objective.label_smoothing
        loss = resnet_torch.optim.cross_entropy(
            scores, labels, label_smoothing=smoothing
        )
        return loss * objective.scale
    loss = torch.zeros(())
    for name, part in found.items():
        if part.is_floating_point():
            weights = to_torch(objective.weights_like(tuple(part.shape), name))
            loss = (part * weights.to(part)).mean() + loss.to(part)
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


def _placed(model: nn.Module, inputs: Inputs | np.ndarray) -> dict[str, Tensor]:
    device, dtype = place(model)
    inputs = inputs if isinstance(inputs, Mapping) else {INPUT: inputs}
    found = {name: to_torch(array).to(device) for name, array in inputs.items()}
    return {
        name: x.to(dtype) if x.is_floating_point() and dtype is not None else x
        for name, x in found.items()
    }


def _called(model: Callable[..., Any], inputs: Inputs | np.ndarray) -> Any:
    args, named = called_with(_placed(_owner(model), inputs))
    return model(*args, **named)


def _owner(model: Any) -> nn.Module:
    return getattr(model, "__self__", model)


def value_of(x: Tensor) -> np.ndarray:
    """Returns a tensor's values; half types come as float32."""
    x = x.detach()
    return to_numpy(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x)


def _last(value: Any) -> Any:
    return value[-1] if isinstance(value, tuple) else value


def place(model: nn.Module) -> tuple[torch.device, torch.dtype | None]:
    """Returns where a model computes, and in which dtype, if its state says so."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device("cpu"), None
