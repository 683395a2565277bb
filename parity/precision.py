"""How exactly accelerators multiply float32, set for both frameworks alike."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal, get_args

Precision = Literal["strict", "tf32"]
"""``"strict"``: IEEE float32. ``"tf32"``: products of 11 bits, as NVIDIA's TF32.

The defaults differ: JAX uses TF32 for all float32 products, torch for convolutions.
"""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@contextmanager
def float32_precision(precision: Precision) -> Iterator[None]:
    """Sets both frameworks, those that are imported, and restores them.

    A CPU computes in IEEE float32 in either mode.

    Args:
        precision: how to multiply.

    Raises:
        ValueError: there is no such precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}"
        )
    tf32 = precision == "tf32"
    with ExitStack() as stack:
        if (torch := sys.modules.get("torch")) is not None:
            switches = torch.backends.cuda.matmul, torch.backends.cudnn
            before = [switch.allow_tf32 for switch in switches]

            def restore() -> None:
                for switch, value in zip(switches, before, strict=True):
                    switch.allow_tf32 = value

            stack.callback(restore)
            for switch in switches:
                switch.allow_tf32 = tf32
        if (jax := sys.modules.get("jax")) is not None:
            mode = "tensorfloat32" if tf32 else "highest"
            stack.enter_context(jax.default_matmul_precision(mode))
        yield
