"""Reading weights: every value checked before a model sees it.

The order of reading is the security property: file, container, pickle without code,
wrapper, names, every leaf, every value. ``parity.files.opening`` has the first three.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

import resnet_spec
from parity.errors import CheckpointError
from parity.files import opening
from parity.files.content import Content
from parity.files.download import Progress
from parity.files.hub import located
from parity.files.hub_address import is_remote
from parity.files.hub_config import (
    anti_aliased,
    labels_in,
    of_name,
    told_settings,
    untaken,
)
from parity.files.selecting import Selection, unwrapped
from parity.files.stages import stage
from parity.files.values import leaf_problem, require_names, require_values
from parity.text import counted
from parity.weights.dialects import DIALECTS
from parity.weights.dialects.recognising import OWN, Recognised, recognise
from parity.weights.digest import digest
from parity.weights.identify import guessed, identify
from parity.weights.names import COUNTER
from parity.weights.state import as_array, with_counts
from resnet_spec import ResNetConfig, describe

_FIELDS = {"output_stride": "replace_stride_with_dilation"}

_TRAINED = ("drop_path_rate", "drop_block_rate", "zero_init_residual")
"""Settings that no state of any network tells."""

_ASSUMED = "assumed, since nothing tells:"


class StateDict(dict[str, np.ndarray]):
    """A state read from a file: names to arrays in torch's layouts.

    Attributes:
        kind: the file's format, in words.
        notes: what was accepted, stripped or filled in, one clause each.
        metadata: what this project wrote into the file; empty for a file of others.
        dialect: whose names the file has; here they are torchvision's.
        config: the network that the metadata or the dialect tells, if one does.
        guessed: settings of it that are assumed.
        labels: what a run, or a config.json beside it, calls the classes.
        path: of the file; of what is on the Hub, where it was put.
        sha256: of the file.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        content: Content,
        found: Recognised,
        path: Path,
    ) -> None:
        super().__init__(arrays)
        self.path = path
        self.kind = content.kind
        self.notes = content.notes
        self.metadata = content.metadata or {}
        self.sha256 = content.sha256
        training = self.metadata.get("training") or {}
        self.labels = tuple(training.get("classes", ())) or labels_in(content.told)
        self.dialect = found.dialect
        self.config, self.guessed = _config_in(self.metadata), ()
        if self.config is not None:
            self.guessed = _guessed_in(self.metadata)
        elif found.config is not None:
            self.config, self.guessed = found.config, found.unsaid


def load(
    path: str | os.PathLike[str],
    *,
    key: str | None = None,
    prefix: str | None = None,
    ignore: str | Sequence[str] = (),
    rename: str | Sequence[str] = (),
    dialect: str | None = None,
    allow_nonfinite: bool = False,
) -> StateDict:
    """Reads a state from a file of weights, recognised by content.

    One wrapper such as ``{"state_dict": …}`` is taken off, so is a prefix that all
    names have; names and layouts of every library in ``parity.DIALECTS`` become
    torchvision's; batch counts are filled in where a file has none at all. The result's
    ``notes`` say so.

    Args:
        path: a regular file, or a folder of Orbax's or the Hub's;
            ``"hf://owner/name[@revision][/file]"`` or a name of timm's such as
            ``"timm:resnet50.a1_in1k"``, downloaded once.
        key: name of the wrapper's entry, where there are several; dots lead further in.
        prefix: of the names that are meant, as ``"teacher.backbone"``.
        ignore: patterns of names that are left out, as ``"head.*"``.
        rename: ``"OLD=NEW"``, with ``*`` for anything, for names that no dialect knows.
        dialect: whose names the file has; found out by default.
        allow_nonfinite: accept NaN and infinity.

    Raises:
        CheckpointError: there is no such file, it is damaged, holds more than plain
            tensors, or values that no network has. All problems of a kind are named.
        DownloadError: what is on the Hub cannot be had.
        ValueError: there is no such dialect, or name of timm's; or a rule to rename is
            none.
    """
    chosen = Selection(key, prefix, ignore, rename, dialect)
    return load_selected(path, chosen, allow_nonfinite=allow_nonfinite)


def load_selected(
    path: str | os.PathLike[str],
    chosen: Selection,
    *,
    allow_nonfinite: bool = False,
    progress: Progress = lambda done, total: None,
) -> StateDict:
    """Does what :func:`load` does; ``progress`` is told the bytes of a download."""
    verified = is_remote(path)
    named: str | os.PathLike[str] = path if verified else Path(path)
    path = located(path, progress)
    try:
        content = opening.read(path)
        # A cache without links keeps no hashes: nothing could be compared.
        content.checked |= verified and path.is_symlink()
        notes = content.notes
        _check_published_name(path.name, content.sha256)
        limit = 2 * content.size + 2**28
        value = unwrapped(content.value, chosen.key, notes)
        _check_digest(value, limit, content)
        if "training" in (content.metadata or {}):
            value = _without_slots(value, notes)
        arrays, bad = _arrays(chosen.within(value, notes), limit)
        if not arrays:
            _require_plain(bad)
        own = (content.metadata or {}).get("dialect")
        if own not in (None, *DIALECTS):
            raise CheckpointError(
                f"its metadata name the dialect {own!r}, unknown here",
                advice=f"Use the version that wrote it: {_tool(content.metadata)}",
            )
        said, by = ({}, "") if content.metadata else _said(content.told, path.name)
        told = _config_in(content.metadata or {})
        shortcut = said.get("shortcut") if told is None else told.shortcut
        found = recognise(arrays, chosen.dialect or own, bad, shortcut)
        _require_plain({name: bad[name] for name in bad if name not in found.beside})
        notes.extend(found.notes)
        if content.metadata is None:
            found = _told(found, said, by, notes)
            notes.extend(untaken(content.told))
            notes.extend(_assumed(found, path.name))
        arrays, filled = with_counts(found.arrays)
        notes.extend(filled)
        require_values(arrays, allow_nonfinite=allow_nonfinite)
        return StateDict(arrays, content, found, path)
    except CheckpointError as error:
        raise error.at(named) from error.__cause__
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # what nobody thought of is the file's fault too
        what = f"cannot be understood ({type(error).__name__}: {error!s:.200})"
        raise CheckpointError(what, path=named) from error


def _without_slots(value: Mapping[Any, Any], notes: list[str]) -> dict[Any, Any]:
    """Returns a run's network alone; what else is in its file has slashes."""
    own = {name: leaf for name, leaf in value.items() if "/" not in str(name)}
    if len(own) < len(value):
        notes.append(f"left {counted(len(value) - len(own), 'array')} of its training")
    return own


def _said(told: Mapping[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """Returns what a config.json, or else the file's name, says; and which of them."""
    said = told_settings(told)
    if said:
        return said, "config.json beside it"
    said = of_name(name)
    # A name of ours is no promise; that of one of timm's anti-aliased cannot be chance.
    return ({} if said.get("anti_alias") == "none" else said), "its name"


def _told(
    found: Recognised, said: Mapping[str, Any], by: str, notes: list[str]
) -> Recognised:
    """Returns it with what was said of settings that nothing in it tells."""
    config, unsaid = found.config, found.unsaid
    if config is None:
        config = identify({n: array.shape for n, array in found.arrays.items()})
        unsaid = () if config is None else guessed(config)
    fields = {s: _FIELDS.get(s, s) for s in said}
    settings = {s: v for s, v in said.items() if fields[s] in (*unsaid, *_TRAINED)}
    if config is None or not settings:
        return found
    told_of = ", ".join(f"{s}={value!r}" for s, value in settings.items())
    try:
        config = config.replace(**settings)
    except ValueError as error:
        raise CheckpointError(
            f"{by} says {told_of}, which its weights are not for ({error})",
            advice="Check that they belong together",
        ) from error
    left = tuple(s for s in unsaid if s not in map(fields.get, settings))
    notes.append(f"{by} says {told_of}")
    return replace(found, config=config, unsaid=left)


def _assumed(found: Recognised, name: str) -> Iterator[str]:
    """Says what is assumed where nothing tells."""
    if found.config is not None:
        settings = [f"{s}={getattr(found.config, s)!r}" for s in found.unsaid]
        if settings and found.dialect != OWN:
            yield f"{_ASSUMED} {', '.join(settings)}"
        return
    network = identify({n: array.shape for n, array in found.arrays.items()})
    if network is not None and network.norm == "group":
        yield (
            f"{_ASSUMED} that its norms, without running statistics, are GroupNorm of "
            f"{network.norm_groups} groups, not BatchNorm whose statistics are missing"
        )
    alike = anti_aliased(network) if network is not None else []
    if alike and not of_name(name):
        what, have = " or ".join(alike), "has" if len(alike) == 1 else "have"
        yield f"{_ASSUMED} that it is not timm's {what}, which {have} the same names"


def notes_of(state: StateDict, *, named: bool) -> list[str]:
    """Returns a state's notes.

    Args:
        state: as :func:`load` returns it.
        named: whether its network is named, so that nothing need be assumed.
    """
    return [note for note in state.notes if not (named and note.startswith(_ASSUMED))]


def require_config(
    state: StateDict, config: ResNetConfig, path: str | os.PathLike[str]
) -> None:
    """Checks that a file of this project was written for this network.

    Weights of v1 fit v1.5 without complaint, and give other numbers; so do those for
    another eps. How a network is initialised or trained does not matter here.

    Raises:
        CheckpointError: its metadata names another network.
    """
    told = state.config
    if told is None:
        return
    known = told.replace(**{field: getattr(config, field) for field in state.guessed})
    if known.as_function() == config.as_function():
        return
    if state.metadata.get("config") is None:
        other = [
            f"{field.name}={getattr(known, field.name)!r}"
            for field in fields(ResNetConfig)
            if getattr(known, field.name) != getattr(config, field.name)
        ]
        raise CheckpointError(
            f"read as {state.dialect} it belongs to {describe(known)}",
            path=path,
            advice=f"Make the network with {', '.join(other)}",
        )
    raise CheckpointError(
        f"its metadata says that it belongs to {describe(told)} ({told.to_json()})",
        path=path,
        advice=f"Make that network, not {describe(config)}",
    )


def _config_in(metadata: Mapping[str, Any]) -> ResNetConfig | None:
    text = metadata.get("config")
    if not isinstance(text, str):
        return None
    try:
        return ResNetConfig.from_json(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"its metadata names a network that this version does not know ({error})",
            advice=f"Use the version that wrote it: {_tool(metadata)}",
        ) from error


def _tool(metadata: Mapping[str, Any] | None) -> str:
    return f"{(metadata or {}).get('tool', 'it does not say which')!s:.80}"


def _guessed_in(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    found = metadata.get("guessed")
    known = {field.name for field in fields(ResNetConfig)}
    return (
        tuple(name for name in found if name in known)
        if isinstance(found, list)
        else ()
    )


def _check_published_name(name: str, sha256: str) -> None:
    promised = resnet_spec.published_sha256(name)
    if promised is not None and not sha256.startswith(promised):
        raise CheckpointError(
            f"its name is that of a published file with sha256 {promised}, and its "
            f"content has {sha256[: len(promised)]}",
            advice="Get the file again, or rename it if you changed it",
        )


def _arrays(
    value: Mapping[Any, Any], limit: int
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns a state's arrays, and what is wrong with other entries."""
    require_names(value)
    leaves = {name: _leaf_problem(name, leaf) for name, leaf in value.items()}
    bad = {name: problem for name, problem in leaves.items() if problem}
    good = {name: leaf for name, leaf in value.items() if name not in bad}
    size = sum(leaf.nbytes for leaf in good.values())
    if size > limit:
        raise CheckpointError(
            f"its tensors claim {size} bytes, which the file cannot hold"
        )
    return _apart(good), bad


def _apart(leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns leaves as arrays of which none shares its memory with another.

    Tensors in a .pth may: each would change with the other, and a slice would keep all
    of what it was cut from.
    """
    arrays, seen = {}, set()
    for name, leaf in leaves.items():
        arrays[name] = as_array(leaf)
        if not isinstance(leaf, np.ndarray):
            storage = leaf.untyped_storage()
            if storage.nbytes() != leaf.nbytes or storage.data_ptr() in seen:
                arrays[name] = arrays[name].copy()
            seen.add(storage.data_ptr())
    return arrays


def _require_plain(bad: Mapping[str, str]) -> None:
    if bad:
        problems = [f"{name} is {problem}" for name, problem in bad.items()]
        raise CheckpointError(
            {"not plain tensors": problems}, advice="Save model.state_dict()"
        )


def _leaf_problem(name: str, leaf: object) -> str:
    if isinstance(leaf, np.ndarray):
        words = leaf.dtype == np.uint32 and leaf.shape == (2,)
        if words and name.replace("/", ".").endswith(f".{COUNTER}"):
            return ""  # the Flax twin's
        return leaf_problem(leaf.dtype.name, leaf.shape)
    import torch

    if type(leaf) not in (torch.Tensor, torch.nn.Parameter):
        return f"a {type(leaf).__name__}"
    assert isinstance(leaf, torch.Tensor)
    if leaf.layout != torch.strided:
        return f"sparse ({leaf.layout})"
    if leaf.is_quantized:
        return "quantised"
    if leaf.is_nested:
        return "nested"
    if leaf.is_meta:
        return "without data (meta)"
    return leaf_problem(str(leaf.dtype).removeprefix("torch."), tuple(leaf.shape))


@stage("validation")
def _check_digest(value: Mapping[Any, Any], limit: int, content: Content) -> None:
    promised = (content.metadata or {}).get("sha256")
    if promised is not None and promised != digest(_arrays(value, limit)[0]):
        raise CheckpointError(
            "its values are not those that were written (sha256 differs)"
        )
    if promised is None and not content.checked:
        content.notes.append("it has no checksums; its values are unverified")
    if content.metadata is not None and "digest" not in content.metadata:
        content.notes.append(
            "an earlier version wrote it; what it says of its network is unverified"
        )
