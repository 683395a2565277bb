"""The state of either twin as numpy arrays in torchvision's names and layouts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType, ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from parity.digest import digest
from parity.errors import CheckpointError
from parity.identify import closest_name
from parity.names import COUNTER
from parity.taps import Entry

DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "int64": np.dtype(np.int64),
}
"""The dtypes that a state may have, by the name that both frameworks give them."""


def adapter(model: Any) -> ModuleType:
    """Returns parity's hands on this model, importing no framework but the model's.

    Raises:
        TypeError: the model is neither a torch nor a Flax NNX module.
    """
    for cls in type(model).__mro__:
        if cls.__module__.startswith("torch.nn."):
            from parity import on_torch

            return on_torch
        if cls.__module__.startswith("flax.nnx."):
            from parity import on_flax

            return on_flax
    raise TypeError(
        f"got {type(model).__name__}; parity takes a torch.nn.Module or a "
        "flax.nnx.Module"
    )


def state_dict(model: Any) -> dict[str, np.ndarray]:
    """Copies the state of either twin.

    Args:
        model: a torch module, or a Flax NNX module made of layers named as torch's.

    Returns:
        torchvision's names, in its order, to arrays in torchvision's layouts: kernels
        OIHW, linear weights (out, in), ``num_batches_tracked`` a scalar int64. bfloat16
        is numpy's ``ml_dtypes.bfloat16``.

    Raises:
        TypeError: the model belongs to neither framework.
    """
    return adapter(model).state(model)


def entries(model: Any) -> dict[str, Entry]:
    """Lists names, shapes and dtypes of a model's state, in torch's terms and order.

    Args:
        model: a torch or Flax NNX module; one without data is enough.

    Raises:
        TypeError: the model belongs to neither framework.
    """
    return adapter(model).entries(model)


def digest_of(model: Any) -> str:
    """Returns the sha256 of a model's state; both twins of one network have the same.

    Args:
        model: a torch or Flax NNX module with data.
    """
    return digest(state_dict(model))


@dataclass(frozen=True)
class Loaded:
    """What :func:`load_state_dict` did with the entries that it was told to ignore.

    Args:
        left_out: entries of the mapping that were not loaded.
        kept: entries of the model that are as they were.
    """

    left_out: tuple[str, ...]
    kept: tuple[str, ...]

    def __str__(self) -> str:
        def names(group: tuple[str, ...]) -> str:
            return ", ".join(group) or "nothing"

        return f"left out {names(self.left_out)}; kept {names(self.kept)}"


def load_state_dict(
    model: Any, mapping: Mapping[str, Any], *, ignore: str | Sequence[str] = ()
) -> Loaded:
    """Writes a state into either twin, all of it or nothing, bit for bit.

    Args:
        model: a torch module or a Flax NNX module; one without data (on torch's meta
            device, or from ``nnx.eval_shape``) gets its data here.
        mapping: as :func:`state_dict` returns it. Tensors of torch and arrays of JAX
            are taken too.
        ignore: pattern or patterns of names, as ``"fc.*"``, that are not loaded,
            whether the mapping, the model or both have them: the way to another head.

    Returns:
        What was left out, and what the model kept; nothing without ``ignore``.

    Raises:
        CheckpointError: entries are missing, unexpected, of another shape or of another
            dtype. All of them are reported together, and the model is unchanged.
        TypeError: the model belongs to neither framework.
        ValueError: the model has no data for what is ignored.
    """
    hands = adapter(model)
    expected = hands.entries(model)
    patterns = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    arrays, bad = convertible(mapping)

    def ignored(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(n for n in names if any(fnmatchcase(n, p) for p in patterns))

    found = Loaded(left_out=ignored([*arrays, *bad]), kept=ignored(expected))
    if found.kept and not hands.has_data(model):
        raise ValueError(
            f"the model has no data, and none would come for {', '.join(found.kept)}. "
            "Make it with weights of its own"
        )
    for name in found.left_out:
        arrays.pop(name, None)
        bad.pop(name, None)
    wanted = {name: e for name, e in expected.items() if name not in found.kept}
    require(arrays, wanted, bad=bad)
    hands.assign(model, arrays)
    return found


def adapt_in_channels(
    mapping: Mapping[str, Any], in_channels: int, *, key: str | None = None
) -> dict[str, Any]:
    """Fits the first convolution to another number of channels, as timm does.

    One channel gets the sum of the kernels, so that a gray image gives what it gave as
    RGB. More channels repeat the kernels, scaled so that the sum stays. (timm,
    ``adapt_input_conv``.)

    Args:
        mapping: a state whose first convolution takes three channels.
        in_channels: how many it shall take.
        key: its weight; by default that of the stem.

    Raises:
        ValueError: there is no such kernel of three channels, or no such number.
    """
    if in_channels < 1:
        raise ValueError(f"in_channels is {in_channels}; it must be a positive integer")
    if key is None:
        key = "conv1.weight" if "conv1.weight" in mapping else "conv1.0.weight"
    kernel: np.ndarray = as_array(mapping[key]) if key in mapping else np.empty(0)
    if kernel.ndim != 4 or kernel.shape[1:2] != (3,):
        raise ValueError(
            f"{key} has shape {kernel.shape}; it must be a kernel of 3 input channels"
        )
    wide = kernel.astype(np.promote_types(kernel.dtype, np.float32))
    if in_channels == 1:
        adapted = wide.sum(1, keepdims=True)
    elif in_channels == 3:
        adapted = wide
    else:
        repeats = -(-in_channels // 3)
        adapted = np.tile(wide, (1, repeats, 1, 1))[:, :in_channels]
        adapted = adapted * wide.dtype.type(3 / in_channels)
    return {**mapping, key: adapted.astype(kernel.dtype)}


def cast(mapping: Mapping[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """Returns a copy with every floating-point entry converted; integers stay.

    Args:
        mapping: as :func:`state_dict` returns it.
        dtype: ``"float16"``, ``"bfloat16"``, ``"float32"`` or ``"float64"``.
    """
    return {
        name: array.copy() if array.dtype == np.int64 else array.astype(DTYPES[dtype])
        for name, array in mapping.items()
    }


def as_array(value: Any) -> np.ndarray:
    """Returns a value of any of the three libraries as a numpy array, bit for bit.

    Raises:
        ValueError: it is no dense tensor or array of numbers.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        if value.is_meta or value.layout != torch.strided:
            what = "without data" if value.is_meta else str(value.layout)
            raise ValueError(f"is a tensor {what}")
        from parity import on_torch

        try:
            return on_torch.to_numpy(value)
        except TypeError as error:  # numpy has no float8
            raise ValueError(f"is a tensor of {value.dtype}") from error
    array = np.asarray(value)
    if array.dtype.kind not in "fiubc" and array.dtype not in DTYPES.values():
        raise ValueError(f"is a {type(value).__name__}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def convertible(
    mapping: Mapping[str, Any],
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns a mapping's values as arrays, and what is wrong with the others."""
    arrays: dict[str, np.ndarray] = {}
    bad: dict[str, str] = {}
    for name, value in mapping.items():
        try:
            if not isinstance(name, str):
                raise ValueError("is a name that is no text")
            arrays[name] = as_array(value)
        except ValueError as error:
            bad[str(name)] = str(error)
    return arrays, bad


def require(
    arrays: Mapping[str, np.ndarray],
    expected: Mapping[str, Entry],
    path: str | os.PathLike[str] | None = None,
    *,
    bad: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Checks names, shapes and dtypes against what a model has.

    Args:
        arrays: the state.
        expected: what the model has.
        path: the file that the state is from, if there is one.
        bad: entries beside the arrays that could not be read as any, with the reason.

    Raises:
        CheckpointError: with every difference, about the file if there is one.
    """
    shapes, dtypes, advice = [], [], set()
    for name, entry in expected.items():
        if name not in arrays:
            continue
        shape, dtype = arrays[name].shape, arrays[name].dtype.name
        if shape != entry.shape:
            shapes.append(f"{name} {shape}, expected {entry.shape}")
            advice.add(_advice_on_shape(name, shape, entry.shape))
        if dtype != entry.dtype:
            dtypes.append(f"{name} {dtype}, expected {entry.dtype}")
            if name.rpartition(".")[2] != COUNTER:
                advice.add(f"Make the model in {dtype}, or use parity.cast")
    problems = {
        "missing": [n for n in expected if n not in arrays and n not in bad],
        "no weights": [f"{name} {what}" for name, what in bad.items()],
        "unexpected": [name for name in arrays if name not in expected],
        "wrong shape": shapes,
        "wrong dtype": dtypes,
    }
    if not any(problems.values()):
        return
    found = closest_name({name: array.shape for name, array in arrays.items()})
    wanted = closest_name({name: entry.shape for name, entry in expected.items()})
    if found is not None and found != wanted:
        advice = {f"It looks like {found}" + (f", not {wanted}" if wanted else "")}
    if problems["missing"]:
        advice.add("Nothing was loaded")
    raise CheckpointError(
        problems, path=path, advice=". ".join(sorted(advice - {""})) or None
    )


def _advice_on_shape(
    name: str, shape: tuple[int, ...], expected: tuple[int, ...]
) -> str:
    if len(shape) == 4 and (shape[3], shape[2], shape[0], shape[1]) == expected:
        return "The kernels look like Flax's HWIO; torch's names take OIHW"
    if name.startswith("fc.") and shape[:1] and shape[1:] == expected[1:]:
        return f"Make the model with num_classes={shape[0]}"
    if name == "conv1.weight" and shape[:1] + shape[2:] == expected[:1] + expected[2:]:
        return f"Make the model with in_channels={shape[1]}"
    return ""
