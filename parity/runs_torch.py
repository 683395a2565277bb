"""Runs of a torch module, with what its modules give. ``runs_flax`` has the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from hashlib import sha256
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

import resnet_torch.optim
from parity.objective import Objective
from parity.on_torch import place, to_numpy, to_torch
from parity.taps import (
    LOSS,
    Around,
    Batch,
    Branch,
    Call,
    Calls,
    Experiment,
    Invocation,
    Quantity,
    path_of,
)
from resnet_spec import OptimizerConfig

Visit = Callable[[Quantity, np.ndarray], None]


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
            visit(Quantity("input", tap), _value(it.x))
            y = it.result()
            if isinstance(y, Tensor):
                calls.dtypes[tap] = str(y.dtype).removeprefix("torch.")
                visit(Quantity("output", tap), _value(y))
            return y

    with _watched(model, around), torch.no_grad():
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
            visit(Quantity("input", tap), _value(it.x))
            version = it.x._version
            if branch is not None and tap in branch:
                y = _forced(it.x, branch[tap])
            else:
                y = it.result()
            if y is it.x and y._version == version:
                y = y.view_as(y)  # an identity's gradient is not all that reaches x
            if isinstance(y, Tensor):
                calls.dtypes[tap] = str(y.dtype).removeprefix("torch.")
                visit(Quantity("output", tap), _value(y))
                if y.requires_grad:
                    quantity = Quantity("gradient", tap)
                    y.register_hook(lambda g: visit(quantity, _value(g)))
            return y

    x = _images(model, images)
    # So that frozen parameters, too, leave a gradient by every output.
    x.requires_grad_(not all(p.requires_grad for p in model.parameters()))
    with _watched(model, around):
        output = model(x)
    loss = _loss(output, objective)
    visit(LOSS, _value(loss.detach()))
    loss.backward()
    parameters = list(model.named_parameters())
    for name, parameter in reversed(parameters):
        gradient = (
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        )
        visit(Quantity("parameter gradient", name), _value(gradient))
    for name, buffer in model.named_buffers():
        visit(Quantity("statistic", name), _value(buffer))
    _visit_changed(model, before, visit)
    return calls


def experiment(model: nn.Module, setup: Experiment) -> dict[Quantity, np.ndarray]:
    """Runs one module alone; what it calls gives what the experiment says.

    Args:
        model: the whole network, a copy made for this.
        setup: the module's call, and what it and its callees are given.

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
    device, dtype = place(model)
    training = setup.gradient is not None
    calls, waiting = Calls(), setup.waiting()
    handed: dict[int, Tensor] = {}

    def leaf(array: np.ndarray) -> Tensor:
        return to_torch(array).to(device, dtype).requires_grad_(training)

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
    with _watched(model, around), torch.set_grad_enabled(training):
        y = inside(x.clone())
    names = [callee.tap for callee in setup.calls]
    found = {Quantity("output", setup.tap): y}
    found |= {Quantity("input", names[i]): value for i, value in handed.items()}
    ends: list[tuple[Tensor, np.ndarray]] = []
    if setup.gradient is not None:
        gradients = [callee.gradient for callee in setup.calls]
        ends = [(y, setup.gradient)]
        ends += [(v, g) for i, v in handed.items() if (g := gradients[i]) is not None]
    if ends and all(end.shape == gradient.shape for end, gradient in ends):
        wanted = {Quantity("input gradient", setup.tap): x}
        wanted |= {Quantity("gradient", names[i]): given[i] for i in handed}
        for name, tensor in own.items():
            if isinstance(tensor, nn.Parameter):
                quantity = Quantity("parameter gradient", name)
                found[quantity] = torch.zeros_like(tensor)
                if tensor.requires_grad:
                    wanted[quantity] = tensor
        ends = [(end, gradient) for end, gradient in ends if end.requires_grad]
        by = torch.autograd.grad(
            [end for end, _ in ends],
            list(wanted.values()),
            [to_torch(gradient).to(end) for end, gradient in ends],
            allow_unused=True,
            materialize_grads=True,
        )
        found |= dict(zip(wanted, by, strict=True))
    for name, tensor in own.items():
        if training and not isinstance(tensor, nn.Parameter):
            found[Quantity("statistic", name)] = tensor
        elif not _same_bits(tensor, before[name]):
            found[Quantity("state", name)] = tensor
    values = {quantity: _value(value).copy() for quantity, value in found.items()}
    with torch.no_grad():  # the next experiment starts where this one did
        for name, tensor in own.items():
            tensor.copy_(before[name])
    return values


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
                    found[Quantity("signs", tap)] = np.packbits(_value(y) > 0)
                return y

        with _watched(model, around):
            loss = resnet_torch.optim.train_step(
                cast(Any, model),
                optimizer,
                _images(model, batch.images),
                to_torch(batch.labels).to(place(model)[0]),
                label_smoothing=label_smoothing,
                loss_scale=loss_scale,
            )
        found[LOSS] = _value(loss)
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
    with _watched(model, around), torch.no_grad():
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


@contextmanager
def _watched(model: nn.Module, around: Around) -> Iterator[None]:
    """Puts something around the call of every module, hooks of its own included."""
    modules = dict(model.named_modules())
    try:
        for path, module in modules.items():
            vars(module)["_watched_by"] = around, path
            module.__class__ = _listening(type(module))
        yield
    finally:
        for module in modules.values():
            if vars(module).pop("_watched_by", None) is not None:
                module.__class__ = type(module).__mro__[1]


@cache
def _listening(cls: type[nn.Module]) -> type[nn.Module]:
    class Listening(cls):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            result = partial(super().__call__, *args, **kwargs)
            if not args or not isinstance(args[0], Tensor):
                return result()
            around, path = vars(self)["_watched_by"]
            return around(Invocation(path, self, args[0], result))

    Listening.__name__ = cls.__name__
    Listening.__qualname__ = cls.__qualname__
    return Listening


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
            visit(Quantity("state", name), _value(tensor))


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return to_numpy(a).tobytes() == to_numpy(b).tobytes()


def _images(model: nn.Module, images: np.ndarray) -> Tensor:
    return to_torch(images).to(*place(model))


def _value(x: Tensor) -> np.ndarray:
    x = x.detach()
    return to_numpy(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x)


def _last(value: Any) -> int | None:
    return value[-1] if isinstance(value, tuple) else value
