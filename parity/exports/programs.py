"""Every container by its name: a state goes in, a function of images comes back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import numpy as np

from parity.errors import InputError
from parity.exports import onnx_format, stablehlo_format, torch_format
from parity.exports.facts import Facts, Program
from parity.inputs import open_regular
from parity.weights.changes import cast
from parity.weights.digest import digest
from parity.weights.twins import require
from resnet_spec import Preprocessing, ResNetConfig, __version__

CONTAINERS: Mapping[str, ModuleType] = {
    "onnx": onnx_format,
    "stablehlo": stablehlo_format,
    "torch-export": torch_format,
}
"""Container → its module."""

DTYPES = ("float32", "bfloat16", "float16")

MOST_BYTES = 2**31
"""Of a program; ONNX has no larger one."""


def serialized(
    config: ResNetConfig,
    state: Mapping[str, np.ndarray],
    to: str,
    *,
    dtype: str = "float32",
    preprocessing: Preprocessing | None = None,
) -> bytes:
    """Returns a network in evaluation mode as a program.

    Args:
        config: the network.
        state: torchvision's names to arrays in its layouts.
        to: the container, one of ``CONTAINERS``.
        dtype: that the weights get, one of ``DTYPES``.
        preprocessing: whose mean and std go in, with a scale of 1/255: the program
            takes pixels, uint8 of shape (n, h, w, 3). Resizing and cutting to a square
            stay outside, for no runtime resizes as PIL does.

    Raises:
        CheckpointError: the state is not the network's.
        ModuleNotFoundError: what the container needs is not installed.
        ValueError: there is no such container or dtype, or pixels are no input of the
            network.
    """
    if to not in CONTAINERS:
        raise ValueError(f"to is {to!r}; it must be one of {', '.join(CONTAINERS)}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    if preprocessing is not None:
        require_colors(config)
    container = CONTAINERS[to]
    require(*container.NEEDS)
    state = cast(state, dtype)
    facts = Facts(
        container=to,
        config=config,
        dtype=dtype,
        weights=digest(state),
        preprocessing=preprocessing,
        versions={
            "resnet-twins": __version__,
            **{name: version(name) for name in ("numpy", *container.WRITTEN_BY)},
        },
    )
    return container.write(facts, state)


def require_colors(config: ResNetConfig) -> None:
    """Checks that pixels of photographs are an input of a network.

    Raises:
        ValueError: it takes other channels.
    """
    if config.in_channels != 3:
        raise ValueError(
            f"the network takes {config.in_channels} channels; preprocessing is for "
            "photographs, of 3"
        )


def container_of(path: str | os.PathLike[str]) -> str:
    """Returns the container that a file's name says.

    Raises:
        InputError: its extension says none.
    """
    for name, module in CONTAINERS.items():
        if Path(path).suffix == module.EXTENSION:
            return name
    known = ", ".join(module.EXTENSION for module in CONTAINERS.values())
    raise InputError(
        f"ends in {Path(path).suffix or 'nothing'}",
        path=path,
        advice=f"A program ends in one of {known}",
    )


def load_exported(
    path: str | os.PathLike[str], *, container: str | None = None
) -> Program:
    """Loads a program that ``resnet-twins export`` wrote, by its own runtime.

    Load what you trust: a stranger's program may do anything that its runtime lets it.

    Args:
        path: the file.
        container: what it is; by default what its extension says.

    Returns:
        A function of images (n, c, h, w), whatever the program's own layout is; of
        pixels (n, h, w, 3) if it normalises by itself. See :class:`Program`.

    Raises:
        InputError: there is no such file, or it is damaged, or no such program.
        ModuleNotFoundError: its runtime is not installed.
    """
    module = CONTAINERS[container or container_of(path)]
    require(*module.NEEDS)
    with open_regular(path, MOST_BYTES) as file:
        data = file.read()
    try:
        return module.read(data)
    except InputError as error:
        raise error.at(path) from error
