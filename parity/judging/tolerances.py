"""Every tolerance of the project, in one table. NaN and shapes have none.

e is the distance to a float64 run over that run's norm (2-norm), m the same with
maximum norms. No figure here is absolute: a tolerance that is would hide small values.
"""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

FLOAT64 = {
    "input": 1e-12,
    "output": 1e-12,
    "loss": 1e-12,
    "gradient": 1e-11,
    "input gradient": 1e-11,
    "parameter gradient": 1e-11,
    "statistic": 1e-11,
    "state": 1e-11,
}
"""Gate G1: float64 against float64, by kind of quantity."""


def algebra_limit(kind: str, growth: float) -> float:
    """Returns the error that gate G1 grants a quantity.

    Args:
        kind: see :class:`parity.running.taps.Quantity`.
        growth: how many times rounding errors have grown; see
            :meth:`parity.judging.reference.Reference.growth`. In training mode batch
            norms over few values magnify them so much in deep networks that no
            implementation in float64 meets the table; then it is sixteen roundings,
            grown.
    """
    return max(FLOAT64[kind], 16 * UNIT_ROUNDOFF["float64"] * growth)


AFTER_STEPS = 1e-10
"""Gate G1 after twenty training steps: parameters, buffers, losses, logits."""

AFTER_STEPS_PERTURBED = 1e-9
"""What a perturbation of one roundoff may move an entry by and still be believed.

A bias before a batch norm has no effect: its gradient is all rounding errors, which
Adam divides by their own size. Then the limit is sixteen times what that moves.
"""


def steps_limit(moved: float) -> float:
    """Returns the error that is granted after twenty steps, where one moves so much."""
    return max(AFTER_STEPS, 16 * min(moved, AFTER_STEPS_PERTURBED))


G1_FORWARD = FLOAT64["output"]

FLOAT64_BUFFERS = FLOAT64["statistic"]

UNIT_ROUNDOFF = {
    "bfloat16": 2.0**-8,
    "float16": 2.0**-11,
    "tf32": 2.0**-11,
    "float32": 2.0**-24,
    "float64": 2.0**-53,
}

LARGE = 1000
"""Elements from which a tensor's error is an average, not a draw."""


BLOCK = 64
"""Terms of a matrix product that cost no more than the rounding of its result."""

SERIAL = 24
"""Terms of a plain sum that do not: of equal ones each may lose half a roundoff."""


def arithmetic_factor(dtype: str, size: int) -> float:
    """Returns k of gate G2: how many times worse one twin may be than the other."""
    return 2.0 if dtype in ("float32", "float64") and size >= LARGE else 3.0


def arithmetic_floor(dtype: str, growth: float) -> float:
    """Returns the error that gate G2 grants any implementation.

    Args:
        dtype: that is computed in.
        growth: how many times rounding errors have grown; see
            :meth:`parity.judging.reference.Reference.growth`.
    """
    return 4 * UNIT_ROUNDOFF[dtype] * growth


HALVES = ("bfloat16", "float16")
"""Dtypes in which products are summed up in float32, and rounded once."""


def computed_twice(dtype: str) -> float:
    """Returns how far apart a value may be that a compiler computes twice.

    Over the largest value of its map: the roundings of one layer, in which no product
    of TF32 is. In half types none was seen, and nothing is granted.
    """
    if dtype in HALVES:
        return 0.0
    return arithmetic_floor("float32" if dtype == "tf32" else dtype, 1.0)


def scale_limit(dtype: str, values: int) -> float:
    """Returns how far a module's results may differ in scale, from torch's to Flax's.

    Rounding's errors average out where a wrong factor's do not: of so many values that
    are rounded apart from each other, the mean has the root of their number less.
    Measured on three small networks in both half types and modes: 2.3 roundoffs over
    that root, for running means 6.7.

    Args:
        dtype: one of ``HALVES``.
        values: the channels, as what is rounded may be common to all of one.
    """
    return UNIT_ROUNDOFF[dtype] * max(1.0, 16 / sqrt(values))


def growth_of_product(terms: int) -> float:
    """Returns the growth of rounding errors in a matrix product's sums.

    They add like a random walk, in blocks.
    """
    return sqrt(max(1.0, terms / BLOCK))


def growth_of_sum(terms: int) -> float:
    """Returns the growth of rounding errors in a plain sum.

    XLA adds serially on a CPU, and where all terms have one sign every rounding may
    have one too: 384 equal terms gave 58 roundoffs, and gave torch one and a half.
    """
    return max(1.0, terms / SERIAL)


GROWTH_MOST = 1e6
"""Growth that is believed: a network that is random gives any, and may not excuse all.

Small batches and small maps have been seen to reach some thousands.
"""


class Ceiling(NamedTuple):
    """What no good implementation exceeds, as e over the growth of rounding errors."""

    ceiling: float
    measured: float


CEILINGS = {
    "float32": Ceiling(1e-6, measured=1.4e-7),
    "float16": Ceiling(2e-3, measured=2.4e-4),
    "bfloat16": Ceiling(2e-2, measured=2.9e-3),
    "float64": Ceiling(2e-15, measured=2.8e-16),
    "tf32": Ceiling(2e-3, measured=1.4e-4),
}
"""Measured on resnet18 and resnet50 at 64x48, in both modes, every tap and gradient.

``tests/judging/test_ceilings.py`` measures again; a ceiling twenty times above what is
measured fails there. TF32 is an accelerator's (docs/accelerator.md: NVIDIA H200). For
resnet50 in evaluation mode, a growth of 7, float32's is 7e-6.
"""

# A certificate, verified on another machine.

CERTIFIED_ERROR = 10.0
"""How many times larger an error may be there, or smaller."""

CERTIFIED_LIMIT = 4.0
"""How many times larger a limit may be there, or smaller."""

CERTIFIED_ROUNDINGS = 8.0
"""Roundings that may be none there."""

CERTIFIED_SIZE = 0.01
"""Within which the reference's largest value is the same there, kinks and all."""

CERTIFIED_DIGITS = 1e-12
"""Of a value: a difference that is smaller is all rounding."""

SAME_FIGURE = 1e-9
"""Within which two figures are one, written down or computed."""

# Layouts that shapes do not tell.

WRONG_LAYOUT = 0.1
"""Error from which a map may lie otherwise than it was taken."""

OTHER_LAYOUT = 10.0
"""How many times smaller the other layout's error is, then."""

SHADES = 1.0, 1 + 1e-6, 1 + 3e-6
"""What a serial sum loses hangs on its terms' last bits: these are tried as well."""


def ceiling(dtype: str, growth: float) -> float:
    """Returns the error of gate G3 that even two equally bad twins must not have."""
    return CEILINGS[dtype].ceiling * growth


def gradient_ceiling(dtype: str, growth: float, layers: int) -> float:
    """Returns the error that a whole gradient must not have, kinks and all.

    Where a map is wrong by a share e of its size, about that share of its units is on
    the other side of a rectifier's kink, and these carry the root of e of the
    gradient's 2-norm; the layers' add up. Gate G4 looks at each kink; this is for a run
    seen from outside. Measured: 3.2e-3 for resnet18 in float32 at 224x224, of 1.1e-2.

    Args:
        dtype: that is computed in.
        growth: of rounding errors in the maps.
        layers: of the network.
    """
    return min(0.6, sqrt(layers * ceiling(dtype, growth)))
