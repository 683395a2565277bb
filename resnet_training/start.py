"""Weights that a run starts from, other than new ones."""

from __future__ import annotations

from parity.files.download import Progress
from parity.files.sources import weights_for
from parity.weights.changes import adapt_in_channels
from parity.weights.digest import digest
from resnet_spec import TrainingRecipe
from resnet_training.initial import State, initial_state


def transferred(
    recipe: TrainingRecipe,
    classes: int,
    weights: str,
    *,
    progress: Progress = lambda done, total: None,
) -> tuple[State, str, list[str]]:
    """Returns the network's state with another's weights wherever they fit.

    Args:
        recipe: with the network.
        classes: that there are.
        weights: published ones, or a path.
        progress: told the bytes of a download.

    Returns:
        The state in float32, its sha256, and what was new or changed.

    Raises:
        CheckpointError: the file is damaged, or is not this network's.
        DownloadError: the published file cannot be had.
    """
    config = recipe.config(classes)
    chosen = weights_for(config, weights, fit=True, progress=progress)
    notes, found = list(chosen.notes), chosen.state
    if chosen.config.in_channels != config.in_channels:
        found = adapt_in_channels(found, config.in_channels)
        what = f"{chosen.config.in_channels} to {config.in_channels} channels"
        notes.append(f"the first convolution is adapted from {what}")
    state = initial_state(config, seed=recipe.seed)
    new = []
    for name, array in state.items():
        if name in found and found[name].shape == array.shape:
            state[name] = found[name]
        else:
            new.append(name)
    if new:
        notes.append(f"{', '.join(new)} are new and random")
    return state, digest(state), notes
