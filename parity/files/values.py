"""Names and values that a state in a file may have: read and written alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from parity.errors import CheckpointError
from parity.files.stages import stage
from parity.weights.names import COUNTER
from parity.weights.state import DTYPES

MOST_NAMES = 2**16
"""Of a state; the deepest network here has some 7,000."""

_MOST_AXES = 8


def require_names(names: Iterable[object]) -> None:
    """Checks that there are names, and that every one is a text that files can hold.

    Raises:
        CheckpointError: with those that are none; or there are more than any network's.
    """
    names = list(names)
    require_count(len(names))
    if not names:
        raise CheckpointError(
            "holds no weights at all", advice="Save model.state_dict()"
        )
    bad = [name for name in names if not _is_text(name)]
    if bad:
        raise CheckpointError(
            f"has names that are no text: {', '.join(map(repr, bad[:5]))}",
            advice="Save model.state_dict()",
        )


def require_count(entries: int) -> None:
    """Checks that a network may have so many entries.

    Raises:
        CheckpointError: none has.
    """
    if entries > MOST_NAMES:
        raise CheckpointError(
            f"has {entries} entries, and no network has over {MOST_NAMES}",
            advice="Check that it is the right file",
        )


def is_number(dtype: np.dtype) -> bool:
    """Whether values of a dtype are numbers or truths, as arrays in files may have."""
    numpys = dtype.type.__module__ == "numpy"  # ml_dtypes has smaller ones
    return dtype.name == "bfloat16" or (numpys and dtype.kind in "fiub")


def leaf_problem(dtype: str, shape: tuple[int, ...]) -> str:
    """Says why an array can be no weights; empty if it can."""
    if dtype not in DTYPES:
        return f"{dtype}, not one of {', '.join(DTYPES)}"
    # numpy refuses to make some of these at all.
    return f"of the shape {shape}" if 0 in shape or len(shape) > _MOST_AXES else ""


def _is_text(name: object) -> bool:
    try:
        return isinstance(name, str) and bool(name.encode())
    except UnicodeEncodeError:  # half a surrogate pair: no file could hold it again
        return False


@stage("validation")
def require_values(
    arrays: Mapping[str, np.ndarray], *, allow_nonfinite: bool = False
) -> None:
    """Checks every value.

    Raises:
        CheckpointError: NaN or infinity that is not allowed, a negative variance, a
            batch count that is none, integers where weights should be.
    """
    nonfinite, negative, counts, integers = [], [], [], []
    for name, array in arrays.items():
        leaf = name.rpartition(".")[2]
        if leaf == COUNTER:
            if array.dtype != np.int64 or array.shape != () or array < 0:
                value = "" if array.shape else f" {array.item()}"
                counts.append(
                    f"{name} is {array.dtype.name} {array.shape}{value}, expected one "
                    "int64 from 0"
                )
        elif array.dtype == np.int64:
            integers.append(name)
        else:
            finite = np.isfinite(array)
            if not finite.all():
                nan = int(np.isnan(array).sum())
                inf = int(array.size - finite.sum()) - nan
                nonfinite.append(f"{name} has {nan} NaN and {inf} Inf")
            if leaf == "running_var" and (array < 0).any():
                negative.append(f"{name} has {int((array < 0).sum())}")
    problems = {
        "values that are not finite": [] if allow_nonfinite else nonfinite,
        "negative variances": negative,
        "bad batch counts": counts,
        "integers where weights should be": integers,
    }
    if any(problems.values()):
        advice = "Use --allow-nonfinite to take them as they are"
        raise CheckpointError(
            problems, advice=advice if problems["values that are not finite"] else None
        )
