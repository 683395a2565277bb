"""A network with weights, in one call."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from parity.errors import CheckpointError, TransferWarning
from parity.files.download import Progress
from parity.files.hub_address import is_remote
from parity.files.selecting import Selection
from parity.files.sources import DILATION, MAPS, weights_for
from parity.weights.changes import adapt_in_channels
from parity.weights.state import entries, load_state_dict
from parity.weights.twins import build, create, load_frameworks
from resnet_spec import ResNetConfig, resolve
from resnet_spec.config import ENDS

Framework = Literal["torch", "flax"]


def create_model(
    name: str | ResNetConfig,
    framework: Framework = "torch",
    weights: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    key: str | None = None,
    prefix: str | None = None,
    ignore: str | Sequence[str] = (),
    rename: str | Sequence[str] = (),
    dialect: str | None = None,
    progress: Progress = lambda done, total: None,
    **overrides: Any,
) -> Any:
    """Makes either twin, with weights by name, from a file, or new ones.

    A file's numbers of classes and channels are the network's, unless others are asked
    for: then its body is kept, the head is new and random, the first convolution is
    adapted (:func:`parity.adapt_in_channels`), and a :class:`parity.TransferWarning`
    says so. ``include_top=False`` leaves the head out. Weights fit whatever the
    ``output_stride``: the one that is asked for is the network's. Those of a whole
    network fit one made with ``features_only=True`` too, which leaves out what its maps
    do not need.

    Args:
        name: from ``resnet_spec.list_models()``, or a configuration.
        framework: ``"torch"`` or ``"flax"``.
        weights: ``None`` for new ones as training starts from; a published name such as
            ``"DEFAULT"``, ``"IMAGENET1K_V2"`` or ``"timm:resnet50.a1_in1k"``, or
            ``"hf://owner/name"``, downloaded once; a path of any file that
            :func:`parity.load` reads; ``"random"`` for values that hide no fault.
        seed: of whatever is random.
        key: entry of a file that has several states; this and the next four as in
            :func:`parity.load`.
        prefix: of the names that are meant.
        ignore: patterns of names that are left out.
        rename: rules for names that no dialect knows.
        dialect: whose names the file has.
        progress: told the bytes of a download, done and in all.
        **overrides: fields of the configuration to change.

    Returns:
        The twin: in evaluation mode if it has weights, else in training mode.

    Raises:
        CheckpointError: the file is damaged, or is not this network's.
        DownloadError: the published file, or what is on the Hub, cannot be had.
        ValueError: the name, a field, the framework or the weights are not known.
    """
    if framework not in ("torch", "flax"):
        raise ValueError(f"framework is {framework!r}; it must be 'torch' or 'flax'")
    selected = Selection(key, prefix, ignore, rename, dialect)
    wanted = resolve(name, **overrides)
    if weights is None:
        return create(framework, wanted, seed=seed)
    load_frameworks(framework)
    weights = os.fspath(weights)
    if weights == "random":
        chosen = weights_for(wanted, weights, seed=seed)
        return build(framework, wanted, chosen.state)
    asked = {"output_stride", DILATION} & overrides.keys()
    apart = (*ENDS, MAPS, "features_only", *asked)
    ends = {field: overrides.pop(field) for field in apart if field in overrides}
    body = resolve(name, **overrides)
    if wanted.out_indices is not None:  # of a whole network's weights
        ends |= {"include_top": False, MAPS: wanted.out_indices}
        body = body.replace(features_only=False, include_top=True)
    chosen = weights_for(
        body,
        weights,
        chosen=selected,
        fit=(*ENDS, MAPS, DILATION) if asked else (*ENDS, MAPS),
        progress=progress,
    )
    wanted = chosen.config.replace(**ends)
    if wanted == chosen.config:
        return build(framework, wanted, chosen.state)
    state, notes = chosen.state, []
    if wanted.in_channels != chosen.config.in_channels:
        state = adapt_in_channels(state, wanted.in_channels)
        what = f"{chosen.config.in_channels} to {wanted.in_channels} channels"
        notes.append(f"the first convolution is adapted from {what}")
    model = create(framework, wanted, seed=seed)
    shapes = {name: entry.shape for name, entry in entries(model).items()}
    other = [
        name
        for name in {**shapes, **state}
        if name not in state or shapes.get(name) != state[name].shape
    ]
    new = [name for name in other if name in shapes]
    if new:
        are, them = ("are", "them") if len(new) > 1 else ("is", "it")
        notes.append(f"{', '.join(new)} {are} new and random: train {them}")
    if wanted.stage_count > chosen.config.stage_count:
        raise CheckpointError({"missing": new}, path=weights)
    load_state_dict(model, state, ignore=other)
    if notes:
        name = weights if is_remote(weights) else Path(weights).name
        said = f"{name}: {'; '.join(notes)}"
        warnings.warn(said, TransferWarning, stacklevel=2)
    model.eval()
    return model
