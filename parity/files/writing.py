"""Writing weights: a file is complete and read back, or it is not there."""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np

from parity.errors import CheckpointError, OutputError
from parity.files import opening
from parity.files.atomic import replacing, replacing_folder, require_place, sync
from parity.files.content import TOOL, written_metadata
from parity.files.hub_folder import (
    require_folder,
    write_timm,
    write_transformers,
)
from parity.files.keras_format import write_h5, write_weights_h5
from parity.files.msgpack_format import write_msgpack
from parity.files.npz import write_npz
from parity.files.orbax_format import require_orbax, write_orbax
from parity.files.safetensors_format import write_safetensors
from parity.files.stages import stage
from parity.files.values import leaf_problem, require_names, require_values
from parity.weights.dialects import DIALECTS
from parity.weights.dialects.dialect import Dialect
from parity.weights.dialects.dialect import write as translate
from parity.weights.dialects.recognising import OWN, require_dialect
from parity.weights.digest import differing_bits, digest
from parity.weights.identify import guessed as guessed_of
from parity.weights.identify import identify
from parity.weights.state import as_array, convertible, state_dict
from parity.weights.strict import require
from parity.weights.twins import entries_in
from resnet_spec import Preprocessing, ResNetConfig, __version__, resolve

Format = Literal[
    "pth",
    "pth-legacy",
    "safetensors",
    "npz",
    "msgpack",
    "h5",
    "weights.h5",
    "orbax",
    "huggingface",
    "timm",
]

_EXTENSIONS: dict[str, Format] = {
    ".pth": "pth",
    ".pt": "pth",
    ".safetensors": "safetensors",
    ".npz": "npz",
    ".msgpack": "msgpack",
    ".h5": "h5",
    ".weights.h5": "weights.h5",
}


def save(
    path: str | os.PathLike[str],
    state: Any,
    *,
    config: str | ResNetConfig | None = None,
    format: Format | None = None,
    overwrite: bool = False,
    source: tuple[str, str] | None = None,
    guessed: Sequence[str] = (),
    dialect: str | None = None,
    preprocessing: Preprocessing | None = None,
    allow_nonfinite: bool = False,
    training: Mapping[str, Any] | None = None,
) -> str:
    """Writes a state, atomically: the file is complete and verified, or is not there.

    Beside the weights it carries the configuration, the sha256 of the values and where
    they came from; to torchvision it is an ordinary file of weights.

    Args:
        path: the target. Through a symbolic link its target is written.
        state: a model of either framework, or a mapping as ``state_dict`` returns it.
        config: what network this is, or its name; a twin brings its own.
        format: ``"pth"``, ``"pth-legacy"`` (as before torch 1.6), ``"safetensors"``,
            ``"npz"``, ``"msgpack"`` (Flax's), ``"h5"`` and ``"weights.h5"`` (Keras's,
            which take no other names than Keras's), or a folder, ``"orbax"``,
            ``"huggingface"`` or ``"timm"``, of which the last two are what
            ``huggingface_hub`` uploads; by default what the path's extension says, or
            else the dialect. npz, msgpack and orbax have no room for what it carries
            beside.
        overwrite: replace a file that is there.
        source: name and sha256 of the file that the state was read from, if any.
        guessed: settings of the configuration that nobody has said.
        dialect: whose names the file gets, of ``parity.DIALECTS``; by default
            torchvision's, and in Keras's, Flax's and Hugging Face's own formats theirs.
        preprocessing: what is done to photographs for these weights; only the last two
            formats have room for it.
        allow_nonfinite: accept NaN and infinity, as :func:`parity.load` must then too.
        training: what a run says of itself. Arrays whose names have a slash are the
            run's own then, and no weights to :func:`parity.load`.

    Returns:
        The sha256 of the values as they were written, as the file's metadata have it.

    Raises:
        CheckpointError: the state has names or values that :func:`parity.load` would
            refuse, or the dialect has no words for the network.
        OutputError: the file cannot be written; what stood there stands there still.
        ValueError: there is no such format, dialect or network.
    """
    path = Path(path)
    config = None if config is None else resolve(config)
    format = format or format_of(path, dialect)
    _require_known(format)
    speech = require_dialect(dialect or USUAL_DIALECT.get(format, OWN))
    bad: dict[str, str] = {}
    if isinstance(state, Mapping):
        arrays, bad = convertible(state)
    else:
        arrays = state_dict(state)
        config = config or cast(ResNetConfig | None, getattr(state, "config", None))
    bad |= {
        name: f"is {problem}"
        for name, array in arrays.items()
        if (problem := leaf_problem(array.dtype.name, array.shape))
    }
    try:
        if bad:
            problems = [f"{name} {what}" for name, what in bad.items()]
            raise CheckpointError({"no weights": problems})
        require_names(arrays)
        require_values(arrays, allow_nonfinite=allow_nonfinite)
        foreign = speech.name != OWN
        if foreign and format == "timm":
            raise CheckpointError(
                "is to be written for timm, whose names are torchvision's",
                advice="Leave out whose names it gets",
            )
        if config is None and (foreign or format == "timm"):
            config = _identified(arrays, speech)
            guessed = guessed_of(config)
        if foreign and config is not None:
            arrays = _spoken(arrays, speech, config, format)
    except CheckpointError as error:
        raise error.at(path) from None
    with stage("validation"):
        sha256 = digest(arrays)
    metadata = {
        "tool": f"{TOOL} {__version__}",
        "layout": speech.kernel,
        "dtype": ", ".join(sorted({a.dtype.name for a in arrays.values()})),
        "sha256": sha256,
        "config": config.to_json() if config is not None else None,
        "guessed": list(guessed),
    }
    if training is not None:
        metadata["training"] = dict(training)
    if speech.name != OWN:
        metadata["dialect"] = speech.name
    if source is not None:
        metadata["source"] = dict(zip(("name", "sha256"), source, strict=True))
    write(
        path,
        arrays,
        written_metadata(metadata),
        format,
        preprocessing=preprocessing,
        overwrite=overwrite,
    )
    return sha256


def write(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    metadata: dict[str, str] | None,
    format: Format,
    *,
    preprocessing: Preprocessing | None = None,
    overwrite: bool = False,
) -> None:
    """Writes arrays as they are, under any names that the format can hold.

    A temporary file is written, synced, read back, compared bit for bit and renamed.

    Args:
        path: the target. Through a symbolic link its target is written.
        arrays: what to write, in the order that is written.
        metadata: what to write beside them, where the format has room for it.
        format: as for :func:`save`.
        preprocessing: as for :func:`save`.
        overwrite: replace a file that is there, or a folder of the same kind.

    Raises:
        CheckpointError: the format cannot hold these names or values.
        OutputError: the file cannot be written; what stood there stands there still.
        ValueError: there is no such format.
    """
    path = Path(path)
    _require_known(format)
    if format in _FOLDERS:
        target = replacing_folder(path, overwrite, _FOLDERS[format])
    else:
        target = replacing(path, overwrite)
    writer = _WRITERS[format]
    if format in CARDED:
        writer = partial(writer, preprocessing=preprocessing)
    with target as temporary:
        try:
            writer(temporary, arrays, metadata)
            sync(temporary)
            if not _holds(temporary, arrays):
                raise OutputError(
                    path, "was not read back as written", "Check the disk"
                )
        except CheckpointError as error:
            raise error.at(path) from error.__cause__


def require_target(
    path: str | os.PathLike[str], format: Format, *, overwrite: bool = False
) -> None:
    """Checks, before anything is fetched or read for it, that a target can be written.

    Args:
        path: the target.
        format: as for :func:`save`.
        overwrite: replace a file that is there, or a folder of the same kind.

    Raises:
        OutputError: it cannot.
        ValueError: there is no such format.
    """
    _require_known(format)
    require_place(Path(path), overwrite, _FOLDERS.get(format))


def _require_known(format: str) -> None:
    if format not in _WRITERS:
        known = ", ".join(_WRITERS)
        raise ValueError(f"format is {format!r}; it must be one of {known}")


@stage("validation")
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


def format_of(path: str | os.PathLike[str], dialect: str | None = None) -> Format:
    """Returns the format that a target's extension stands for.

    Args:
        path: the target; one without an extension may be a folder's.
        dialect: whose names the target gets.

    Raises:
        OutputError: it stands for none.
    """
    if dialect == "timm" and Path(path).suffix.lower() not in _EXTENSIONS:
        return "timm"
    if dialect in DIALECTS and not Path(path).suffix:
        usual: Any = DIALECTS[dialect].formats[0]
        if usual in _FOLDERS:
            return usual
    *_, before, last = ("", "", *Path(path).suffixes)
    extension = last.lower()
    if f"{before}{last}".lower() in _EXTENSIONS:
        extension = f"{before}{last}".lower()
    if extension == ".keras":
        raise OutputError(
            path,
            "is a .keras, which holds a model of Keras's, too",
            "Write .weights.h5, and give that to the model's load_weights",
        )
    if extension not in _EXTENSIONS:
        raise OutputError(
            path,
            f"the extension {extension!r} names no format",
            f"Use one of {', '.join(_EXTENSIONS)}; a folder's dialects are nnx, jaxnn, "
            "bonsai, huggingface and timm",
        )
    return _EXTENSIONS[extension]


def _write_pth(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    metadata: dict[str, str] | None,
    *,
    legacy: bool = False,
) -> None:
    import torch

    from parity.weights.torch_state import to_torch

    state = OrderedDict((name, to_torch(array)) for name, array in arrays.items())
    # Where torch itself keeps the versions of modules; load_state_dict looks up modules
    # in it by name, and no module has this one.
    state._metadata = OrderedDict(metadata or {})  # type: ignore[attr-defined]
    before = sys.exception()  # the caller may save because of an interrupt
    with open(path, "wb") as opened:  # torch would put its name into the archive
        file: Any = _Told(opened)
        try:
            torch.save(state, file, _use_new_zipfile_serialization=not legacy)
        except Exception as error:  # torch tells neither a full disk nor an interrupt
            met = file.error or error.__context__
            if file.error is None and (isinstance(met, Exception) or met is before):
                met = OSError(" ".join(str(error).split()))
            raise met or error from None


class _Told:
    """A file that remembers what went wrong in it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: BaseException | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except BaseException as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _write_legacy_pth(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str] | None
) -> None:
    _write_pth(path, arrays, metadata, legacy=True)


_WRITERS: dict[Format, Callable[..., None]] = {
    "safetensors": write_safetensors,
    "pth": _write_pth,
    "pth-legacy": _write_legacy_pth,
    "npz": write_npz,
    "msgpack": write_msgpack,
    "h5": write_h5,
    "weights.h5": write_weights_h5,
    "orbax": write_orbax,
    "huggingface": write_transformers,
    "timm": write_timm,
}

_FOLDERS: dict[str, Callable[[Path], None]] = {
    "orbax": require_orbax,
    "huggingface": require_folder,
    "timm": require_folder,
}
"""Formats that are folders, and what refuses one that is not to be replaced."""

CARDED = ("huggingface", "timm")
"""Those of the Hub's, which say what is done to photographs, and have a card."""

USUAL_DIALECT: dict[str, str] = {
    "h5": "keras",
    "weights.h5": "keras",
    "msgpack": "nnx",
    "orbax": "nnx",
    "huggingface": "huggingface",
}
"""Whose names go into a format, if nobody says."""

_TREES = ("h5", "weights.h5", "msgpack", "orbax")


def _identified(arrays: Mapping[str, np.ndarray], dialect: Dialect) -> ResNetConfig:
    config = identify({name: array.shape for name, array in arrays.items()})
    if config is None:
        raise CheckpointError(
            f"is to be written as {dialect.name}, and is the state of no network known "
            "here",
            advice="Say with config which network it is",
        )
    return config


def _spoken(
    arrays: Mapping[str, np.ndarray],
    dialect: Dialect,
    config: ResNetConfig,
    format: str,
) -> dict[str, np.ndarray]:
    """Returns a state under the names of a dialect."""
    require(arrays, entries_in(config, arrays))
    found = translate(dialect, config, arrays)
    if format in _TREES or dialect.slashed:
        found = {name.replace(".", "/"): array for name, array in found.items()}
    return found
