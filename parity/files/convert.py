"""From one file of weights to another, strictly, and nothing else changed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from parity.errors import CheckpointError, OutputError
from parity.files.hub_address import is_remote
from parity.files.preprocessing import preprocessing_of
from parity.files.reading import (
    StateDict,
    load_selected,
    notes_of,
    require_config,
)
from parity.files.selecting import Selection
from parity.files.stages import measured, stage
from parity.files.writing import (
    CARDED,
    USUAL_DIALECT,
    format_of,
    require_target,
    save,
)
from parity.text import counted
from parity.weights.changes import cast
from parity.weights.dialects.recognising import (
    ADVICE,
    OWN,
    refuse_foreign,
    refuse_strangers,
    require_dialect,
    what_it_looks_like,
)
from parity.weights.identify import guessed, identify
from parity.weights.strict import require
from parity.weights.twins import entries_in
from resnet_spec import Preprocessing, ResNetConfig, describe, is_timm, resolve


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Args:
        source: the file read; of what is on the Hub, where it was put.
        kind: its format, in words.
        target: the file written.
        network: what it is, in words.
        config: its configuration.
        entries: how many entries were written.
        bytes: how many bytes of values.
        sha256: of the values (names, dtypes, shapes and bytes).
        notes: what was accepted, stripped or filled in, and what was left out.
        seconds: what ``"validation"`` took (digests, checksums, every value, names and
            shapes, the file read back) and ``"fsync"``; all else moves bytes.
    """

    source: Path
    kind: str
    target: Path
    network: str
    config: ResNetConfig
    entries: int
    bytes: int
    sha256: str
    notes: tuple[str, ...]
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    config: str | ResNetConfig | None = None,
    key: str | None = None,
    prefix: str | None = None,
    ignore: str | Sequence[str] = (),
    rename: str | Sequence[str] = (),
    dialect: str | None = None,
    to: str | None = None,
    dtype: str | None = None,
    allow_nonfinite: bool = False,
    overwrite: bool = False,
) -> Conversion:
    """Converts a file of weights; the target's extension tells the format.

    A folder of the Hub's gets a card, and, if it is known for the source, what is to be
    done to photographs.

    Args:
        source: a file of weights, recognised by content, a folder of Orbax's or the
            Hub's, or what else :func:`parity.load` takes.
        target: the file to write.
        config: the network that this must be, or its name; read off names and shapes by
            default. A file of others does not say where a bottleneck strides: v1.5 is
            assumed.
        key: name of the wrapper's entry, where the source has several; this and the
            next four as in :func:`parity.load`.
        prefix: of the names that are meant.
        ignore: patterns of names that are left out.
        rename: rules for names that no dialect knows.
        dialect: whose names the source has; found out by default.
        to: whose names the target gets, as in :func:`parity.save`; or ``"timm"`` for a
            folder as timm has it on the Hub.
        dtype: what every floating-point entry becomes; by default what it is.
        allow_nonfinite: accept NaN and infinity.
        overwrite: replace a target that is there.

    Raises:
        CheckpointError: the source is damaged, or is not the state of the network.
        DownloadError: what is on the Hub cannot be had.
        OutputError: the target cannot be written, or is the source.
    """
    named = os.fspath(source) if is_remote(source) else Path(source)
    target = Path(target)
    chosen = Selection(key, prefix, ignore, rename, dialect)
    config = None if config is None else resolve(config)
    format = format_of(target, to)
    to = OWN if to == "timm" else to  # a form of folder; the names are torchvision's
    speech = require_dialect(to or USUAL_DIALECT.get(format, OWN))
    here = isinstance(named, Path) and named.exists()
    if here and target.exists() and target.samefile(named):
        raise OutputError(target, "is the source itself", "Name another file")
    if dtype is not None:
        cast({}, dtype)  # refuses one that there is not
    if here or is_remote(named):
        require_target(target, format, overwrite=overwrite)
    with measured() as seconds:
        state = load_selected(named, chosen, allow_nonfinite=allow_nonfinite)
        found = config or state.config or _identify(state, named)
        if config is not None:
            unsaid: Sequence[str] = ()
        else:
            unsaid = state.guessed if state.config is not None else guessed(found)
        if sum(found.layers) > len(state):  # before anything is built for them
            raise CheckpointError(
                f"has {len(state)} entries, fewer than {describe(found)} has blocks",
                path=named,
            )
        require_config(state, found, named)
        if "config" not in state.metadata:
            refuse_foreign(state.dialect, found, named)
        arrays: Mapping[str, np.ndarray] = state
        if dtype is not None:
            with np.errstate(over="ignore"):  # judged by value when it is saved
                arrays = cast(state, dtype)
        arrays = in_order(arrays, found, named)
        preprocessing, unread = None, ""
        if format in CARDED:
            preprocessing, unread = _preprocessing(named, state.path)
        sha256 = save(
            target,
            arrays,
            config=found,
            overwrite=overwrite,
            source=(getattr(named, "name", str(named)), state.sha256),
            guessed=unsaid,
            format=format,
            dialect=speech.name,
            preprocessing=preprocessing,
            allow_nonfinite=allow_nonfinite,
        )
    notes = notes_of(state, named=config is not None)
    before = sorted({a.dtype.name for a in state.values() if a.dtype.kind != "i"})
    if dtype is not None and before != [dtype]:
        notes.append(f"taken from {', '.join(before)} to {dtype}")
    if unread:
        notes.append(f"no preprocessing is written: {unread}")
    if speech.name != OWN:
        notes.append(f"written as {speech.name} ({speech.what})")
    kept = speech.names(found)
    if len(kept) < len(arrays):
        dropped = len(arrays) - len(kept)
        counts = counted(dropped, "batch count")
        notes.append(f"left out {counts}, which {speech.name} has not")
    return Conversion(
        source=state.path,
        kind=state.kind,
        target=target,
        network=describe(found),
        config=found,
        entries=len(kept),
        bytes=sum(arrays[name].nbytes for name in kept),
        sha256=sha256,
        notes=tuple(notes),
        seconds=seconds,
    )


def _preprocessing(
    named: str | os.PathLike[str], path: Path
) -> tuple[Preprocessing | None, str]:
    """Returns what is done to photographs, or what stands in the way of knowing it."""
    by_name = isinstance(named, str) and is_timm(named)
    try:
        return preprocessing_of(named if by_name else path), ""
    except CheckpointError as error:
        return None, "; ".join(error.problems)


@stage("validation")
def in_order(
    state: Mapping[str, np.ndarray],
    config: ResNetConfig,
    path: str | os.PathLike[str],
) -> dict[str, np.ndarray]:
    """Returns a file's state in the network's order, if it is this network's.

    Whatever floating-point dtype the file has is kept, if it is one for all.

    Raises:
        CheckpointError: with every difference.
    """
    expected = entries_in(config, state)
    refuse_strangers(state, expected, path)
    require(state, expected, path)
    return {name: state[name] for name in expected}


def _identify(state: StateDict, path: str | os.PathLike[str]) -> ResNetConfig:
    config = identify({name: array.shape for name, array in state.items()})
    if config is None:
        raise CheckpointError(what_it_looks_like(state), path=path, advice=ADVICE)
    return config
