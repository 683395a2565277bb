"""What a check could not have seen: inputs and weights that hide kinds of faults."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from parity.judging.evidence import Evidence, Phase
from parity.running.taps import path_of

BOUND = 6.0
"""Of relu6, the commonest activation that ends."""

_DEFAULTS = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}


def blind_spots(several: Sequence[Evidence], *, training: bool) -> list[str]:
    """Lists what the inputs, of every batch, and the weights hide.

    Args:
        several: the evidence of each batch.
        training: whether activations of training mode are looked at.
    """
    first, *others = (
        [
            *(line for x in evidence.images.values() for line in _of_inputs(x)),
            *_of_state(evidence.states["torch"], evidence.pair.torch.norms_at),
            *_of_activations(
                evidence, evidence.training if training else evidence.forward
            ),
        ]
        for evidence in several
    )
    found = [line for line in first if all(line in lines for lines in others)]
    return list(dict.fromkeys(found))


def _of_inputs(x: np.ndarray) -> Iterator[str]:
    if x.size and (x == x.flat[0]).all():
        yield "the inputs are one value throughout: no place or channel is told apart"
        return
    if x.ndim == 0:
        return
    if len(x) == 1:
        yield "one input: what mixes up a batch, or its statistics, does not show"
    elif len(x) and (x == x[:1]).all():
        yield "all inputs are equal: what mixes up a batch does not show"
    if x.ndim > 1 and x[:1].size > 1 and _constant(x, 1):
        yield "each input is one value throughout: no place or channel is told apart"
        return
    if x.ndim > 1 and x.shape[1] > 1 and (x == x[:, :1]).all():
        yield "all channels are equal: their order does not show"
    if x.ndim > 2 and x[:1, :1].size > 1 and _constant(x, 2):
        yield "each channel is one value throughout: no place is told apart"
        return
    if x.ndim == 4 and x.shape[2] == x.shape[3]:
        yield "the inputs are square: height and width mixed up may not show"


def _constant(x: np.ndarray, axes: int) -> bool:
    """Whether there is one value at each index of so many first axes."""
    flat = x.reshape(*x.shape[:axes], -1)
    return bool((flat == flat[..., :1]).all())


def _of_state(
    state: Mapping[str, np.ndarray], norms_at: Collection[str] = ()
) -> Iterator[str]:
    found = [n.removesuffix("running_var") for n in state if n.endswith("running_var")]
    norms = dict.fromkeys([*found, *(f"{path}." if path else "" for path in norms_at)])
    fresh = []
    for leaf, value in _DEFAULTS.items():
        found = [state[norm + leaf] for norm in norms if norm + leaf in state]
        if found and all((array == value).all() for array in found):
            fresh.append(leaf)
    if fresh:
        yield (
            f"every norm's {', '.join(fresh)} {'are' if len(fresh) > 1 else 'is'} as "
            "created: left out, or taken for another, it does not show"
        )
    zero = [n for n, v in state.items() if n.endswith("weight") and not v.any()]
    if zero:
        more = f" and {len(zero) - 3} more" if len(zero) > 3 else ""
        yield (
            f"{', '.join(zero[:3])}{more} is zero throughout: what comes before it "
            "does not show"
        )


def _of_activations(evidence: Evidence, phase: Phase) -> Iterator[str]:
    reference = phase.reference
    rectified = reference.calls.rectified
    paths = evidence.pair.jax.paths
    inside = [
        largest
        for tap, largest in rectified.items()
        if reference.has_state(tap) or path_of(tap) not in paths
    ]
    if inside and max(inside) <= BOUND:
        yield (
            f"no rectifier that is not judged alone gave more than {BOUND:g}: one that "
            "ends there, as relu6, does not show"
        )
    elif rectified and max(rectified.values()) <= BOUND:
        yield (
            f"no rectifier gave more than {BOUND:g}: one that ends there, as relu6, "
            "shows in the isolated gates alone"
        )
