"""What the gates judge: both twins run, measured against one float64 reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from parity.compare import Deviation, deviation
from parity.state import adapter, state_dict
from parity.taps import OUTPUT, Shape

FLOATS = ("bfloat16", "float16", "float32", "float64")


@dataclass(frozen=True)
class Run:
    """One twin's run: its distance from the reference at every tap, and its result.

    Args:
        deviations: by tap, in order; ``None`` where the reference has no such tap, or
            has one of another shape.
        output: the network's result.
    """

    deviations: Mapping[str, Deviation | None]
    output: np.ndarray


class Evidence:
    """Runs what the gates ask for, once, and only if one asks.

    A run raises :class:`parity.taps.ModuleError` if a module of its network does.

    Args:
        torch_model: the torch twin, in evaluation mode.
        flax_model: the Flax twin, in evaluation mode.
        images: float array (n, c, h, w).
        progress: told what is about to be computed.
    """

    def __init__(
        self,
        torch_model: Any,
        flax_model: Any,
        images: np.ndarray,
        progress: Callable[[str], None],
    ) -> None:
        self._models = {"torch": torch_model, "flax": flax_model}
        self._images = images
        self._progress = progress

    @cached_property
    def states(self) -> dict[str, dict[str, np.ndarray]]:
        """The state of each twin, by framework."""
        return {name: state_dict(model) for name, model in self._models.items()}

    @cached_property
    def dtype(self) -> str:
        """The widest floating-point dtype of the torch twin's parameters."""
        found = {array.dtype.name for array in self.states["torch"].values()}
        return max(found.intersection(FLOATS), key=FLOATS.index)

    @cached_property
    def reference(self) -> dict[str, np.ndarray]:
        """Every tap of the torch twin, run in float64, in the order of computation."""
        self._progress("torch in float64")
        torch_model = self._models["torch"]
        hands = adapter(torch_model)
        taps: dict[str, np.ndarray] = {}
        model = hands.in_eval(torch_model, float64=True)
        hands.trace(model, self._images, lambda tap, v: taps.update({tap: v.copy()}))
        return taps

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """The shape of every tap of the reference."""
        return {tap: value.shape for tap, value in self.reference.items()}

    @cached_property
    def depths(self) -> dict[str, int]:
        """How many layers with a kernel have run at each tap, at least one."""
        state = self.states["torch"]
        depths: dict[str, int] = {}
        depth = 0
        for tap in self.reference:
            kernel = state.get(f"{tap.partition('@')[0]}.weight")
            depth += kernel is not None and kernel.ndim > 1
            depths[tap] = max(depth, 1)
        return depths

    @cached_property
    def torch_run(self) -> Run:
        """The torch twin, as it is."""
        return self._run("torch", "trace", f"torch in {self.dtype}")

    @cached_property
    def flax_run(self) -> Run:
        """The Flax twin, as it is, jitted."""
        return self._run("flax", "trace", f"Flax, jitted, in {self.dtype}")

    @cached_property
    def flax_run_float64(self) -> Run:
        """The Flax twin, raised to float64, in a process of its own."""
        return self._run("flax", "trace_float64", "Flax in float64, in its own process")

    def _run(self, framework: str, trace: str, what: str) -> Run:
        reference = self.reference
        self._progress(what)
        model = self._models[framework]
        deviations: dict[str, Deviation | None] = {}
        output = [np.empty(0)]

        def visit(tap: str, value: np.ndarray) -> None:
            known = reference.get(tap)
            if known is None or known.shape != value.shape:
                deviations[tap] = None
            else:
                deviations[tap] = deviation(value, known)
            if tap == OUTPUT:
                output.append(np.array(value))

        getattr(adapter(model), trace)(model, self._images, visit)
        return Run(deviations, output[-1])
