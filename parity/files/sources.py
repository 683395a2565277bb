"""The weights that a user asks for: by name, by file or by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parity.errors import CheckpointError
from parity.files.download import Progress, download
from parity.files.hub_address import is_remote
from parity.files.reading import (
    StateDict,
    load_selected,
    notes_of,
    require_config,
)
from parity.files.selecting import ALL, Selection
from parity.weights.changes import cast
from parity.weights.dialects.recognising import refuse_foreign, refuse_strangers
from parity.weights.digest import digest
from parity.weights.samples import random_state
from parity.weights.strict import require
from parity.weights.twins import entries_of
from resnet_spec import (
    ResNetConfig,
    get_timm_weights,
    get_weights,
    is_published,
    is_timm,
)
from resnet_spec.config import ENDS

DILATION = "replace_stride_with_dilation"
"""The setting in which a network may differ from its weights, and have all of them."""

MAPS = "out_indices"
"""The setting by which a network may have only the first of its weights."""


@dataclass(frozen=True)
class Chosen:
    """The weights that a user asked for.

    Args:
        state: names to float32 arrays in torch's layouts.
        config: the network that they are for.
        what: where they come from, in words.
        sha256: of the values as they were found, before any cast.
        notes: what was accepted or changed on the way.
        labels: what its classes are called, if that lies beside the weights.
    """

    state: dict[str, np.ndarray]
    config: ResNetConfig
    what: str
    sha256: str
    notes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


def weights_for(
    config: ResNetConfig,
    weights: str,
    *,
    seed: int = 0,
    chosen: Selection = ALL,
    allow_nonfinite: bool = False,
    fit: bool | Sequence[str] = False,
    named: bool = True,
    progress: Progress = lambda done, total: None,
) -> Chosen:
    """Finds the weights that a user names.

    Args:
        config: the network that they are for.
        weights: ``"random"``, a published name such as ``IMAGENET1K_V1`` or
            ``timm:resnet50.a1_in1k``, a path, or ``hf://owner/name``.
        seed: of random weights.
        chosen: what of a file is meant.
        allow_nonfinite: accept NaN and infinity in a file.
        fit: take the number of channels and of classes, and whether there is a head,
            from the file; or which settings are.
        named: whether a user named the network, so that nothing is assumed.
        progress: told the bytes of a download, done and in all.

    Raises:
        CheckpointError: the file is damaged, or is not this network's.
        DownloadError: the published file, or what is on the Hub, cannot be had.
        ValueError: no weights are published under this name.
    """
    expected = entries_of(config)
    if weights == "random":
        what = f"random weights, seed {seed} (not trained: its classes mean nothing)"
        state = random_state(expected, seed=seed)
        return Chosen(state, config, what, digest(state))
    undilated = config.replace(**{DILATION: ()})  # the same weights
    path: str | Path = weights if is_remote(weights) else Path(weights)
    if is_timm(weights):
        get_timm_weights(weights, undilated)  # are they for it?
    elif is_published(weights):
        published = get_weights(undilated, weights)
        path = download(published, progress=progress)
        weights = f"{published.name} of torchvision ({path.name})"
    loaded = load_selected(
        path, chosen, allow_nonfinite=allow_nonfinite, progress=progress
    )
    notes = notes_of(loaded, named=named)
    if fit:
        config = _as_found(config, loaded, ENDS if fit is True else fit)
        expected = entries_of(config)
    require_config(loaded, config, path)
    if "config" not in loaded.metadata:
        refuse_foreign(loaded.dialect, config, path)
    dtypes = {array.dtype.name for array in loaded.values()} - {"int64"}
    if dtypes != {"float32"}:
        notes.append(f"taken from {', '.join(sorted(dtypes))} to float32")
    with np.errstate(over="ignore"):  # judged by value below
        state = cast(loaded, "float32")
    refuse_strangers(state, expected, path)
    require(state, expected, path)
    beyond = [
        name
        for name, array in state.items()
        if not allow_nonfinite and not np.isfinite(array).all()
    ]
    if beyond:
        raise CheckpointError({"too large for float32": beyond}, path=path)
    return Chosen(state, config, weights, digest(loaded), tuple(notes), loaded.labels)


def _as_found(
    config: ResNetConfig, loaded: StateDict, fit: Sequence[str]
) -> ResNetConfig:
    """Returns the network with the ends that a file has, as far as it shows them."""
    told = loaded.config
    if told is not None:
        if len(told.layers) != len(config.layers):  # another network
            fit = [name for name in fit if name not in (DILATION, MAPS)]
        return config.replace(**{name: getattr(told, name) for name in fit})
    first, last = (
        next((loaded[name] for name in names if name in loaded), None)
        for names in (("conv1.weight", "conv1.0.weight"), ("fc.weight", "fc2.weight"))
    )
    if first is not None and first.ndim == 4 and first.shape[1]:
        config = config.replace(in_channels=first.shape[1])
    if last is None:
        return config.replace(include_top=False)
    return config.replace(num_classes=len(last)) if last.size else config
