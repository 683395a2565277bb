"""``torch.export``: the torch twin, traced, in a file that torch alone loads."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from parity.errors import InputError
from parity.exports.facts import KEY, Facts, Program, free_sizes
from parity.weights.state import load_state_dict
from parity.weights.twins import abstract_torch
from resnet_spec import Preprocessing

EXTENSION = ".pt2"
NEEDS = ("torch",)
WRITTEN_BY = ("torch",)


def write(facts: Facts, state: Mapping[str, np.ndarray]) -> bytes:
    """Returns the program of a state of these facts."""
    import torch

    network = abstract_torch(facts.config, param_dtype=facts.dtype)
    load_state_dict(network, state)
    _without_ceilings(network)
    model = _wrapped(network, facts.preprocessing).eval()
    channels, how = facts.config.in_channels, facts.preprocessing
    (height, rows), (width, columns) = _sides(facts)
    example = torch.zeros(2, channels, height, width)
    axes = {0: torch.export.Dim("n", min=1), 2: rows, 3: columns}
    if how is not None:
        example = torch.zeros(2, height, width, channels, dtype=torch.uint8)
        axes = {0: axes[0], 1: rows, 2: columns}
    shapes = ({axis: dim for axis, dim in axes.items() if dim is not None},)
    with torch.no_grad():
        made = torch.export.export(model, (example,), dynamic_shapes=shapes)
    file = io.BytesIO()
    torch.export.save(made, file, extra_files={KEY: facts.to_json()})
    return file.getvalue()


def _without_ceilings(network: Any) -> None:
    """Pads what a last window hangs over: the tracer knows no size that is rounded up.

    The means stay what they are, bit for bit: one pixel or two of four are halves.
    """
    import torch
    from torch.nn.functional import avg_pool2d, pad

    class Padded(torch.nn.Module):
        """A mean over windows that do not overlap, and may hang over the rim."""

        def __init__(self, pool: torch.nn.AvgPool2d) -> None:
            super().__init__()
            self.pool = pool

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows, columns = self.pool.kernel_size  # type: ignore[misc]
            around = (0, columns - 1, 0, rows - 1)
            sums, counts = (
                avg_pool2d(pad(of, around), (rows, columns), self.pool.stride)
                for of in (x, torch.ones_like(x[:1, :1]))
            )
            return sums / counts

    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.AvgPool2d) and child.ceil_mode:
                setattr(module, name, Padded(child))


def _wrapped(network: Any, preprocessing: Preprocessing | None) -> Any:
    import torch

    class Resnet(torch.nn.Module):
        """A network that takes and gives float32, or takes pixels."""

        mean: torch.Tensor
        std: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.network = network
            for name in ("mean", "std") if preprocessing else ():
                values = torch.tensor(getattr(preprocessing, name))
                self.register_buffer(name, values[:, None, None])

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if preprocessing is not None:
                images = images.permute(0, 3, 1, 2).float() / 255
                images = (images - self.mean) / self.std
            dtype = next(self.network.parameters()).dtype
            return self.network(images.to(dtype)).float()

    return Resnet()


def _sides(facts: Facts) -> list[tuple[int, Any]]:
    """Returns height and width of an example, each with what may vary of it."""
    import torch

    config, free = facts.config, free_sizes(facts.config)
    sides: list[tuple[int, Any]] = []
    for name, natural, more in zip("hw", config.natural_size, (1, 2), strict=True):
        if free is None or (name == "h" and config.dimensions == 1):
            sides.append((natural, None))
        else:
            dim: Any = torch.export.Dim(name, min=free.least)
            dim = dim if free.step == 1 else free.step * dim
            sides.append((free.step * (free.least + more), dim))
    return sides


def read(data: bytes) -> Program:
    """Loads a program by torch.

    Raises:
        InputError: it is none.
    """
    import torch

    extra = {KEY: ""}
    log = logging.getLogger("torch.export")
    before, log.disabled = log.disabled, True  # it raises what else it would print too
    try:
        made = torch.export.load(io.BytesIO(data), extra_files=extra)
    except Exception as error:  # whatever a damaged archive makes it raise
        raise InputError(f"torch does not load it ({error})") from error
    finally:
        log.disabled = before
    facts = Facts.from_json(extra[KEY])
    model = made.module()

    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.tensor(images)).numpy()

    return Program(facts, run)
