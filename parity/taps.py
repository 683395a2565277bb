"""What parity notes of a network while it runs, in torch's names and layout."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

OUTPUT = "output"
"""Name of the tap on the network's own result."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """Shape and dtype of one entry of a state, as torch has it."""

    shape: Shape
    dtype: str


@dataclass(frozen=True)
class Call:
    """One call of a module without children; shapes of one image, (c, h, w)."""

    tap: str
    kind: str
    input: Shape
    output: Shape
    stride: int | None
    padding: int | None


class ModuleError(RuntimeError):
    """A module that raised instead of giving an output.

    Args:
        path: the innermost module's path.
        error: what it raised.
    """

    def __init__(self, path: str, error: Exception) -> None:
        self.path = path or OUTPUT
        first_line = str(error).strip().partition("\n")[0]
        self.what = f"raised {type(error).__name__}: {first_line}"
        super().__init__(f"{self.path} {self.what}")


class TapNames:
    """Names the outputs of modules: the path, and ``path@2`` for its second call."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()

    def next(self, path: str) -> str:
        """Returns the name of the output that the module at this path now gives."""
        self._calls[path] += 1
        call = self._calls[path]
        name = path or OUTPUT
        return name if call == 1 else f"{name}@{call}"
