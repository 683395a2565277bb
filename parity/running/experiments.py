"""One module, alone: what it is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from parity.running.taps import path_of


@dataclass(frozen=True)
class Callee:
    """What a module that another calls gives, instead of computing it.

    Args:
        tap: name of the call.
        output: what it gives.
        gradient: of the loss by what it is handed; ``None`` in evaluation mode.
    """

    tap: str
    output: np.ndarray
    gradient: np.ndarray | None


@dataclass(frozen=True)
class Experiment:
    """One module, alone: what it is given, and what the modules it calls give it.

    It computes with what the reference had there, so that its errors are its own.

    Args:
        tap: name of the module's call.
        input: of the call.
        gradient: of the loss by its output; ``None`` in evaluation mode.
        calls: the modules that it calls, in order.
    """

    tap: str
    input: np.ndarray
    gradient: np.ndarray | None
    calls: Sequence[Callee] = ()

    @property
    def training(self) -> bool:
        """Whether it is run backwards, too."""
        return self.gradient is not None

    def waiting(self) -> dict[str, list[int]]:
        """Lists, for each path that is called, which calls are to come, in order."""
        found: dict[str, list[int]] = {}
        for index, callee in enumerate(self.calls):
            found.setdefault(path_of(callee.tap), []).append(index)
        return found

    def owns(self, entry: str) -> bool:
        """Whether an entry of the state is the module's, and no callee's."""
        return not any(entry.startswith(f"{path_of(c.tap)}.") for c in self.calls)
