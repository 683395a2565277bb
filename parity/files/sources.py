"""The weights that a user asks for: by name, by file or by seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parity.errors import CheckpointError
from parity.files.download import Progress, download
from parity.files.reading import load, require_config
from parity.weights.changes import cast
from parity.weights.digest import digest
from parity.weights.samples import random_state
from parity.weights.strict import require
from parity.weights.twins import entries_of
from resnet_spec import PublishedWeights, ResNetConfig, describe, find_name, get_weights


@dataclass(frozen=True)
class Chosen:
    """The weights that a user asked for.

    Args:
        state: names to float32 arrays in torch's layouts.
        what: where they come from, in words.
        sha256: of the values as they were found, before any cast.
        published: the table's row, if they are published ones.
        notes: what was accepted or changed on the way.
    """

    state: dict[str, np.ndarray]
    what: str
    sha256: str
    published: PublishedWeights | None = None
    notes: tuple[str, ...] = ()


def weights_for(
    config: ResNetConfig,
    weights: str,
    *,
    seed: int = 0,
    key: str | None = None,
    allow_nonfinite: bool = False,
    progress: Progress = lambda done, total: None,
) -> Chosen:
    """Finds the weights that a user names.

    Args:
        config: the network that they are for.
        weights: ``"random"``, a published name such as ``IMAGENET1K_V1``, or a path.
        seed: of random weights.
        key: entry of a file that has several states.
        allow_nonfinite: accept NaN and infinity in a file.
        progress: told the bytes of a download, done and in all.

    Raises:
        CheckpointError: the file is damaged, or is not this network's.
        DownloadError: the published file cannot be had.
        ValueError: no weights are published under this name.
    """
    expected = entries_of(config)
    if weights == "random":
        what = f"random weights, seed {seed} (not trained: its classes mean nothing)"
        state = random_state(expected, seed=seed)
        return Chosen(state, what, digest(state))
    published = None
    path = Path(weights)
    if weights.startswith("IMAGENET") or weights == "DEFAULT":
        name = find_name(config.as_function()) or describe(config)
        published = get_weights(name, weights)
        path = download(published, progress=progress)
        weights = f"{published.name} of torchvision ({path.name})"
    loaded = load(path, key=key, allow_nonfinite=allow_nonfinite)
    notes = list(loaded.notes)
    require_config(loaded, config, path)
    dtypes = {array.dtype.name for array in loaded.values()} - {"int64"}
    if dtypes != {"float32"}:
        notes.append(f"taken from {', '.join(sorted(dtypes))} to float32")
    with np.errstate(over="ignore"):  # judged by value below
        state = cast(loaded, "float32")
    require(state, expected, path)
    beyond = [
        name
        for name, array in state.items()
        if not allow_nonfinite and not np.isfinite(array).all()
    ]
    if beyond:
        raise CheckpointError({"too large for float32": beyond}, path=path)
    return Chosen(state, weights, digest(loaded), published, tuple(notes))
