"""Writing weights: a file is complete and read back, or it is not there."""

from __future__ import annotations

import json
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from parity.errors import CheckpointError, OutputError
from parity.files import opening
from parity.files.atomic import replacing, sync
from parity.files.content import METADATA_KEY
from parity.weights.digest import differing_bits, digest
from parity.weights.state import DTYPES, as_array, convertible, state_dict
from resnet_spec import ResNetConfig

Format = Literal["pth", "pth-legacy", "safetensors"]

FORMAT_VERSION = 1

_EXTENSIONS: dict[str, Format] = {
    ".pth": "pth",
    ".pt": "pth",
    ".safetensors": "safetensors",
}


def save(
    path: str | os.PathLike[str],
    state: Any,
    *,
    config: ResNetConfig | None = None,
    format: Format | None = None,
    overwrite: bool = False,
    source: tuple[str, str] | None = None,
    guessed: Sequence[str] = (),
) -> str:
    """Writes a state, atomically: the file is complete and verified, or is not there.

    Beside the weights it carries the configuration, the sha256 of the values and where
    they came from; to torchvision it is an ordinary file of weights.

    Args:
        path: the target. Through a symbolic link its target is written.
        state: a model of either framework, or a mapping as ``state_dict`` returns it.
        config: what network this is; a twin brings its own.
        format: ``"pth"``, ``"pth-legacy"`` (as before torch 1.6) or ``"safetensors"``;
            by default what the path's extension says.
        overwrite: replace a file that is there.
        source: name and sha256 of the file that the state was read from, if any.
        guessed: settings of the configuration that nobody has said.

    Returns:
        The sha256 of the values, as the file's metadata have it.

    Raises:
        CheckpointError: the state has entries that are no weights.
        OutputError: the file cannot be written; what stood there stands there still.
        ValueError: there is no such format.
    """
    path = Path(path)
    format = format or format_of(path)
    if format not in _WRITERS:
        known = ", ".join(_WRITERS)
        raise ValueError(f"format is {format!r}; it must be one of {known}")
    bad: dict[str, str] = {}
    if isinstance(state, Mapping):
        arrays, bad = convertible(state)
    else:
        arrays, config = state_dict(state), config or getattr(state, "config", None)
    bad |= {
        name: f"is {array.dtype.name}, not one of {', '.join(DTYPES)}"
        for name, array in arrays.items()
        if array.dtype.name not in DTYPES
    }
    if bad or not arrays:
        problems = [f"{name} {what}" for name, what in bad.items()]
        raise CheckpointError({"no weights": problems or ["the state is empty"]})
    sha256 = digest(arrays)
    metadata = {
        "format_version": FORMAT_VERSION,
        "tool": f"resnet-twins {version('resnet-twins')}",
        "layout": "OIHW",
        "dtype": ", ".join(sorted({a.dtype.name for a in arrays.values()})),
        "sha256": sha256,
        "config": config.to_json() if config is not None else None,
        "guessed": list(guessed),
    }
    if source is not None:
        metadata["source"] = dict(zip(("name", "sha256"), source, strict=True))
    before = sys.exception()  # the caller may save because of an interrupt
    with replacing(path, overwrite) as temporary:
        try:
            _WRITERS[format](temporary, arrays, json.dumps(metadata, sort_keys=True))
        except ModuleNotFoundError:  # whose names and ways out are told as such
            raise
        except Exception as error:  # each library has its own for a full disk
            while_at_it = error.__context__
            if isinstance(while_at_it, KeyboardInterrupt) and while_at_it is not before:
                raise while_at_it from None  # and torch failed to close its archive
            raise OSError(str(error)) from error
        sync(temporary)
        if not _holds(temporary, arrays):
            raise OutputError(path, "was not read back as written", "Check the disk")
    return sha256


def _holds(path: Path, arrays: Mapping[str, np.ndarray]) -> bool:
    """Reads a file back: whether it has exactly these arrays, bit for bit."""
    names = set(arrays)
    for name, value in opening.each(path):
        if name not in names:
            return False
        names.remove(name)
        if differing_bits({name: arrays[name]}, {name: as_array(value)}):
            return False
    return not names


def format_of(path: str | os.PathLike[str]) -> Format:
    """Returns the format that a target's extension stands for.

    Raises:
        OutputError: it stands for none.
    """
    extension = Path(path).suffix
    if extension not in _EXTENSIONS:
        raise OutputError(
            path,
            f"the extension {extension!r} names no format",
            f"Use one of {', '.join(_EXTENSIONS)}",
        )
    return _EXTENSIONS[extension]


def _write_safetensors(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: str
) -> None:
    from safetensors.numpy import save_file

    mode = path.stat().st_mode
    # One key only: safetensors writes several in random order.
    dense = {name: np.array(a, order="C", copy=None) for name, a in arrays.items()}
    save_file(dense, path, metadata={METADATA_KEY: metadata})
    path.chmod(mode)  # safetensors makes a file of its own, for the owner alone


def _write_pth(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: str, *, legacy: bool = False
) -> None:
    import torch

    from parity.weights.torch_state import to_torch

    state = OrderedDict((name, to_torch(array)) for name, array in arrays.items())
    # Where torch itself keeps the versions of modules; load_state_dict looks up modules
    # in it by name, and no module has this one.
    state._metadata = OrderedDict({METADATA_KEY: metadata})  # type: ignore[attr-defined]
    with open(path, "wb") as file:  # by its name, torch would put that into the archive
        torch.save(state, file, _use_new_zipfile_serialization=not legacy)


def _write_legacy_pth(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: str
) -> None:
    _write_pth(path, arrays, metadata, legacy=True)


_WRITERS: dict[Format, Callable[[Path, Mapping[str, np.ndarray], str], None]] = {
    "safetensors": _write_safetensors,
    "pth": _write_pth,
    "pth-legacy": _write_legacy_pth,
}
