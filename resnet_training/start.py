"""The weights that a run starts from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from parity.files.download import Progress
from parity.files.sources import weights_for
from parity.weights.changes import adapt_in_channels
from parity.weights.digest import digest
from parity.weights.state import convertible
from resnet_spec import TrainingRecipe
from resnet_training.initial import State, initial_state
from resnet_training.plan import Plan


def start_of(
    plan: Plan,
    weights: Mapping[str, Any] | str | os.PathLike[str] | None,
    *,
    progress: Progress = lambda done, total: None,
) -> tuple[State, TrainingRecipe, list[str]]:
    """Returns what a run starts from, and the recipe with its digest.

    Args:
        plan: what is trained.
        weights: the network's whole state; published ones, or a path, of which is taken
            what fits; ``None`` for new ones.
        progress: told the bytes of a download.

    Returns:
        The state, the recipe, and what was new or changed.

    Raises:
        CheckpointError: the file is damaged, or is not this network's.
        DownloadError: the published file cannot be had.
        ValueError: the recipe is for other weights.
    """
    recipe, notes = plan.recipe, []
    if weights is None:
        if recipe.weights is not None:
            raise _others(recipe.weights, "none are given")
        return initial_state(plan.config, seed=recipe.seed), recipe, notes
    if isinstance(weights, Mapping):
        state, _ = convertible(weights)
    else:
        state, notes = _fitting(plan, os.fspath(weights), progress)
    found = digest(state)
    if recipe.weights not in (None, found):
        raise _others(recipe.weights or "", f"these have {found[:16]}")
    return state, replace(recipe, weights=found), notes


def _others(asked: str, found: str) -> ValueError:
    return ValueError(
        f"the recipe starts from weights with the digest {asked[:16]}, and {found}; "
        "give them (--weights), or take `weights` out of the recipe"
    )


def _fitting(plan: Plan, weights: str, progress: Progress) -> tuple[State, list[str]]:
    """Returns new weights, with others in their place wherever they fit."""
    config = plan.config
    chosen = weights_for(config, weights, fit=True, progress=progress)
    notes, found = list(chosen.notes), chosen.state
    if chosen.config.in_channels != config.in_channels:
        found = adapt_in_channels(found, config.in_channels)
        what = f"{chosen.config.in_channels} to {config.in_channels} channels"
        notes.append(f"the first convolution is adapted from {what}")
    state, new = initial_state(config, seed=plan.recipe.seed), []
    for name, array in state.items():
        if name in found and found[name].shape == array.shape:
            state[name] = found[name]
        else:
            new.append(name)
    if new:
        notes.append(f"{', '.join(new)} are new and random")
    return state, notes
