"""Every tolerance of the project, in one table. NaN and shapes have none.

e is the distance to a float64 run over that run's norm (2-norm), m the same with
maximum norms. No figure here is absolute: a tolerance that is would hide small values.
"""

from __future__ import annotations

from math import sqrt

G1_FORWARD = 1e-12
"""Float64 against float64, e of every tap. Measured: about 1e-15 for resnet50."""

FLOAT64_BUFFERS = 1e-11
"""Float64 against float64, e of running statistics after training steps."""

UNIT_ROUNDOFF = {
    "bfloat16": 2.0**-8,
    "float16": 2.0**-11,
    "float32": 2.0**-24,
    "float64": 2.0**-53,
}

LARGE = 1000
"""Elements from which a tensor's error is an average, not a draw."""


def arithmetic_factor(dtype: str, size: int) -> float:
    """Returns k of gate G2: how many times worse one twin may be than the other."""
    return 2.0 if dtype in ("float32", "float64") and size >= LARGE else 3.0


def arithmetic_floor(dtype: str, depth: int) -> float:
    """Returns the error that gate G2 grants any implementation after so many layers.

    Rounding errors of layers add like a random walk; 4 covers sums within a layer.
    """
    return 4 * UNIT_ROUNDOFF[dtype] * sqrt(depth)
