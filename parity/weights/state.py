"""The state of either twin as numpy arrays in torchvision's names and layouts."""

from __future__ import annotations

import sys
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from parity.weights.digest import digest
from parity.weights.names import COUNTER, Entry
from parity.weights.strict import require
from resnet_spec import ResNetConfig
from resnet_spec.plan import left_out

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
            from parity.weights import torch_state

            return torch_state
        if cls.__module__.startswith("flax.nnx."):
            from parity.weights import flax_state

            return flax_state
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
        notes: what was taken off the names, or filled in.
    """

    left_out: tuple[str, ...]
    kept: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        def names(group: tuple[str, ...]) -> str:
            return ", ".join(group) or "nothing"

        said = f"left out {names(self.left_out)}; kept {names(self.kept)}"
        return "; ".join((said, *self.notes))


def load_state_dict(
    model: Any, mapping: Mapping[str, Any], *, ignore: str | Sequence[str] = ()
) -> Loaded:
    """Writes a state into either twin, all of it or nothing, bit for bit.

    A prefix that all of the mapping's names have is taken off; where it has no batch
    counts at all they become 0. A network made with ``features_only`` takes a whole
    one's, and leaves out what it has not.

    Args:
        model: a torch module, ``DataParallel`` and ``torch.compile`` looked through, or
            a Flax NNX module; one without data (on torch's meta device, or from
            ``nnx.eval_shape``) gets its data here.
        mapping: as :func:`state_dict` returns it. Tensors of torch and arrays of JAX
            are taken too.
        ignore: pattern or patterns of names, as ``"fc.*"``, that are not loaded,
            whether the mapping, the model or both have them: the way to another head.
            The mapping's match with their prefix or without it.

    Returns:
        What was left out, and what the model kept.

    Raises:
        CheckpointError: entries are missing, unexpected, of another shape or of another
            dtype. All of them are reported together, and the model is unchanged.
        TypeError: the model belongs to neither framework, or the mapping is none.
        ValueError: the model has no data for what is ignored.
    """
    hands = adapter(model)
    expected = hands.entries(model)
    patterns = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    arrays, bad = convertible(mapping)

    def ignored() -> tuple[str, ...]:
        out = _like([*arrays, *bad], patterns)
        for name in out:
            arrays.pop(name, None)
            bad.pop(name, None)
        return out

    kept = _like(expected, patterns)
    wanted = {name: e for name, e in expected.items() if name not in kept}
    out = ignored()  # before a prefix is looked for, which these need not have
    notes: list[str] = []
    if prefix := _common_prefix([*arrays, *bad], expected):
        notes.append(f"took the prefix {prefix!r} off every name")
        arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
        bad = {name.removeprefix(prefix): problem for name, problem in bad.items()}
        out += ignored()
    parts = _parts_left_out(model)
    spare = tuple(name for name in arrays if name.partition(".")[0] in parts)
    arrays = {name: array for name, array in arrays.items() if name not in spare}
    out += spare
    if not any(map(is_count, bad)) and any(map(is_count, wanted)):
        arrays, note = with_counts(arrays)
        notes += note
    if kept and not hands.has_data(model):
        raise ValueError(
            f"the model has no data, and none would come for {', '.join(kept)}. "
            "Make it with weights of its own"
        )
    require(arrays, wanted, bad=bad)
    hands.assign(model, arrays)
    return Loaded(out, kept, notes=tuple(notes))


def _parts_left_out(model: Any) -> tuple[str, ...]:
    """Returns the parts that a network of maps does without; none of any other."""
    config = getattr(getattr(model, "module", model), "config", None)
    if not isinstance(config, ResNetConfig) or config.out_indices is None:
        return ()
    return left_out(config)


def _like(names: Iterable[str], patterns: Sequence[str]) -> tuple[str, ...]:
    return tuple(n for n in names if any(fnmatchcase(n, p) for p in patterns))


def _common_prefix(names: Sequence[str], expected: Container[str]) -> str:
    """Returns what stands before every name, if what is behind it is expected."""
    prefixes = {before for name in names for before in _before(name, expected)}
    prefix = min(prefixes, key=len, default="")
    return prefix if all(name.startswith(prefix) for name in names) else ""


def _before(name: str, expected: Container[str]) -> Iterator[str]:
    """Yields what stands before the longest end of a name that is expected."""
    parts = name.split(".")
    ends = (".".join(parts[first:]) for first in range(len(parts)))
    end = next((end for end in ends if end in expected), None)
    if end is not None:
        yield name.removesuffix(end)


def is_count(name: str) -> bool:
    """Whether an entry counts the batches that a norm has seen."""
    return name.rpartition(".")[2] == COUNTER


def with_counts(
    arrays: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns a state with batch counts of 0, if it has none at all, and a note.

    torch before 0.4.1 has none, nor have most other libraries.

    Args:
        arrays: the state, under torch's names.
    """
    if any(map(is_count, arrays)):
        return dict(arrays), []
    filled: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        filled[name] = array
        path, dot, leaf = name.rpartition(".")
        if leaf == "running_var":
            filled[f"{path}{dot}{COUNTER}"] = np.zeros((), np.int64)
    many = len(filled) > len(arrays)
    return filled, [f"it has no {COUNTER}: set to 0"] if many else []


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
        from parity.weights import torch_state

        try:
            return torch_state.to_numpy(value)
        except TypeError as error:  # numpy has no float8
            raise ValueError(f"is a tensor of {value.dtype}") from error
    if isinstance(value, Mapping):
        raise ValueError(
            f"is a {type(value).__name__}, with entries of its own; "
            "parity.state_dict(model) has flat names"
        )
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:  # of quantised tensors, or ragged
        raise ValueError(f"is a {type(value).__name__}") from error
    if array.dtype.kind not in "fiubc" and array.dtype not in DTYPES.values():
        raise ValueError(f"is a {type(value).__name__}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def require_mapping(mapping: object) -> None:
    """Checks that a state is one.

    Raises:
        TypeError: it is something else, such as a file's name.
    """
    if not isinstance(mapping, Mapping):
        raise TypeError(
            f"got a {type(mapping).__name__}; it must be a mapping of names to arrays: "
            "parity.load(path) reads one, parity.state_dict(model) copies one"
        )


def convertible(
    mapping: Mapping[str, Any],
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns a mapping's values as arrays, and what is wrong with the others.

    Raises:
        TypeError: it is no mapping.
    """
    require_mapping(mapping)
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
