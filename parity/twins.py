"""Twins without data, and the weights that a user asks for by name, file or seed."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from parity.checkpoint import load, require_config
from parity.digest import digest
from parity.download import Progress, download
from parity.errors import CheckpointError
from parity.samples import random_state
from parity.state import cast, entries, load_state_dict, require
from parity.taps import Entry
from resnet_spec import PublishedWeights, ResNetConfig, describe, find_name, get_weights


def abstract_torch(config: ResNetConfig, *, param_dtype: str = "float32") -> Any:
    """Returns the torch twin on the meta device; loading a state gives it data."""
    import torch

    import resnet_torch

    with torch.device("meta"):
        model = resnet_torch.create_model(config).eval()
        return model.to(getattr(torch, param_dtype))


def abstract_flax(
    config: ResNetConfig, *, dtype: str | None = None, param_dtype: str = "float32"
) -> Any:
    """Returns the Flax twin without arrays; loading a state gives it data."""
    import jax
    from flax import nnx

    import resnet_flax

    def create() -> resnet_flax.ResNet:
        # One key for all: nothing is drawn, and nnx.Rngs, traced, takes time that grows
        # with the square of the draws (85 s for cifar_resnet1202).
        rngs: Any = SimpleNamespace(params=lambda: jax.random.key(0))
        return resnet_flax.create_model(
            config, rngs=rngs, dtype=dtype, param_dtype=param_dtype
        )

    model = nnx.eval_shape(create)
    model.eval()
    return model


ABSTRACT = {"torch": abstract_torch, "flax": abstract_flax}


def entries_of(config: ResNetConfig) -> dict[str, Entry]:
    """Lists names, shapes and dtypes of a network's state, from whichever twin is here.

    Raises:
        ModuleNotFoundError: neither framework is installed.
    """
    framework = "torch" if find_spec("torch") is not None else "flax"
    return entries(ABSTRACT[framework](config))


def build(framework: str, config: ResNetConfig, state: dict[str, np.ndarray]) -> Any:
    """Returns a twin in evaluation mode, with this state.

    Args:
        framework: ``"torch"`` or ``"flax"``.
        config: the network.
        state: in float32, as :func:`weights_for` returns it.
    """
    model = ABSTRACT[framework](config)
    load_state_dict(model, state)
    return model


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
