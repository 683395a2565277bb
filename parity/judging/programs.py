"""Whether a program that runs elsewhere computes what the torch twin does.

It is judged as a Flax network is, from outside: by its result alone, against the same
float64 reference, by the same gates and tolerances.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from parity.judging.evidence import Evidence
from parity.judging.gates import judge
from parity.judging.report import GateResult, Report
from parity.judging.wishes import together
from parity.machine import environment
from parity.running.pair import Pair
from parity.running.seen import Seen
from parity.running.taps import OUTPUT, Inputs, Quantity, blamed
from parity.running.translation import NAMES
from parity.weights.digest import digest
from resnet_spec import ResNetConfig

GATES = ("G2", "G3", "G5")
"""What is judged of a program: its arithmetic, its ceiling, its decisions."""

Call = Callable[[np.ndarray], np.ndarray]


def check_program(
    torch_model: Any,
    program: Call,
    batches: Sequence[np.ndarray],
    *,
    given: Sequence[np.ndarray] | None = None,
    dtype: str = "float32",
    seed: int = 0,
    progress: Callable[[str], None] = lambda what: None,
) -> Report:
    """Judges a function of numpy images by gates G2, G3 and G5, and no other.

    Args:
        torch_model: the torch twin, with the program's weights; it is not changed.
        program: from images to what the network gives, in torch's layouts.
        batches: images for the torch twin, float32 (n, c, h, w), as the dtype holds
            them.
        given: for each batch what the program is given instead, such as pixels.
        dtype: that it computes in, or its weights are of.
        seed: that the images were drawn by, for the report.
        progress: told in words what is about to be computed.

    Returns:
        The report. A program that raises has failed.
    """
    # Here, and not above: importing parity imports no framework.
    from parity.running.torch_network import TorchNetwork
    from parity.weights.torch_state import unwrapped

    network = TorchNetwork(unwrapped(torch_model))
    with tempfile.TemporaryDirectory(prefix="resnet-twins-") as folder:
        several = []
        for images, mine in zip(batches, given or batches, strict=True):
            jax: Any = _Runtime(program, mine, dtype)
            pair = Pair(network, jax, NAMES)
            evidence = Evidence(
                pair,
                {"input": images},
                seed=seed,
                precision="strict",
                folder=Path(folder),
                progress=lambda what: progress(_said(what)),
            )
            several.append(evidence)
        found = [[judge(gate, one) for gate in GATES] for one in several]
        shapes = several[0].forward.reference.shapes
    results = [_named(together(rows)) for rows in zip(*found, strict=True)]
    config = getattr(torch_model, "config", None)
    setting = {
        "config": config.to_json() if isinstance(config, ResNetConfig) else None,
        "dtype": dtype,
        "arithmetic": several[0].arithmetic,
        "precision": "strict",
        "seed": seed,
        "inputs": {
            "shapes": [list(mine.shape) for mine in given or batches],
            "sha256": digest({str(i): x for i, x in enumerate(given or batches)}),
        },
        "weights": {"torch": digest(several[0].states["torch"])},
        **environment(),
    }
    return Report(tuple(results), shapes, setting)


class _Runtime:
    """A program, where a pair has its second network; it shows its result alone.

    Args:
        call: the program.
        images: what it is given.
        dtype: that its result counts as.
    """

    def __init__(self, call: Call, images: np.ndarray, dtype: str) -> None:
        self._call, self._images = call, images
        self.seen = Seen(dtypes={OUTPUT: dtype})

    def state(self) -> dict[str, np.ndarray]:
        """Returns nothing: its weights are its own."""
        return {}

    def has(self, method: str) -> bool:
        """Whether it has a method of this name; none."""
        return False

    def forward(
        self, inputs: Inputs, shapes: Mapping[Quantity, Any], **how: Any
    ) -> _Runtime:
        """Returns what runs it."""
        return self

    def here(self, *, jit: bool = True) -> Iterator[tuple[Quantity, np.ndarray]]:
        """Runs it, and yields its result."""
        with blamed():
            result = np.asarray(self._call(self._images))
        yield Quantity("output", OUTPUT), result


def _said(what: str) -> str:
    return what.replace("Flax", "the program")


def _named(result: GateResult) -> GateResult:
    """Returns a gate's result in which the program is called one."""
    rows = tuple(replace(row, note=_said(row.note)) for row in result.rows)
    what = result.what.replace("every tap", "the result")
    return replace(result, rows=rows, what=what)
