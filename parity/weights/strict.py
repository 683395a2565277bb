"""Whether a state is that of a network, with everything that is wrong in one error."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from parity.errors import CheckpointError
from parity.text import told_apart
from parity.weights.beside import advice_on, within_blocks
from parity.weights.identify import closest_name
from parity.weights.names import COUNTER, Entry


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
            advice.add(_advice_on_shape(name, shape, entry.shape, arrays))
        if dtype != entry.dtype:
            dtypes.append(f"{name} {dtype}, expected {entry.dtype}")
            if name.rpartition(".")[2] != COUNTER:
                advice.add(f"Make the model in {dtype}, or use parity.cast or --dtype")
    problems = {
        "missing": [n for n in expected if n not in arrays and n not in bad],
        "no weights": [f"{name} {what}" for name, what in bad.items()],
        "unexpected": [told_apart(name) for name in arrays if name not in expected],
        "wrong shape": shapes,
        "wrong dtype": dtypes,
    }
    if not any(problems.values()):
        return
    found = closest_name({name: array.shape for name, array in arrays.items()})
    wanted = closest_name({name: entry.shape for name, entry in expected.items()})
    if found is not None and found != wanted:
        advice = {f"It looks like {found}" + (f", not {wanted}" if wanted else "")}
    unexpected = [name for name in arrays if name not in expected]
    alone = len(unexpected) == sum(map(len, problems.values()))
    if path and alone and not within_blocks(unexpected, {n: n for n in expected}):
        advice.add(advice_on(unexpected, expected))
    if problems["missing"]:
        advice.add("Nothing was loaded")
    raise CheckpointError(
        problems, path=path, advice=". ".join(sorted(advice - {""})) or None
    )


def _advice_on_shape(
    name: str,
    shape: tuple[int, ...],
    expected: tuple[int, ...],
    arrays: Mapping[str, np.ndarray],
) -> str:
    if len(shape) == 4 and (shape[3], shape[2], shape[0], shape[1]) == expected:
        return "The kernels look like Flax's HWIO; torch's names take OIHW"
    # A bias of one value alone is no head of one class.
    head = {arrays[n].shape[:1] for n in ("fc.weight", "fc.bias") if n in arrays}
    alike = shape != () and head == {shape[:1]}
    if name.startswith("fc.") and alike and shape[1:] == expected[1:]:
        return f"Make the model with num_classes={shape[0]}"
    if name == "conv1.weight" and shape[:1] + shape[2:] == expected[:1] + expected[2:]:
        return f"Make the model with in_channels={shape[1]}"
    return ""
