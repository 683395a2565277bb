"""What parity notes of a network while it runs, in torch's names and layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from parity.weights.names import Shape

OUTPUT = "output"
"""Name of the tap on the network's own result."""


@dataclass(frozen=True)
class Call:
    """One call of a module without children; shapes of one image, (c, h, w)."""

    tap: str
    kind: str
    input: Shape
    output: Shape
    stride: int | None
    padding: int | None


class Quantity(NamedTuple):
    """Something that a run gives.

    Args:
        kind: ``"input"`` and ``"output"`` of a module's call; ``"gradient"`` of the
            loss by that output, ``"input gradient"`` by what this call was given;
            ``"parameter gradient"``; ``"statistic"``, a buffer after training;
            ``"state"``, an entry that the run has changed though nothing learns;
            ``"loss"``.
        name: of the tap, or of the entry of the state.
    """

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} of {self.name}" if self.name else self.kind


LOSS = Quantity("loss", "")


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


class Calls:
    """The calls of one run: the path names the first, ``path@2`` the second.

    ``callers`` has, for the name of each call, that of the call that it was made in;
    ``dtypes`` what its output was computed in.
    """

    def __init__(self) -> None:
        self.callers: dict[str, str] = {}
        self.dtypes: dict[str, str] = {}
        self._open: list[str] = []
        self._counts: Counter[str] = Counter()

    @contextmanager
    def enter(self, path: str) -> Iterator[str]:
        """Names the call of the module at this path, for as long as it lasts.

        Raises:
            ModuleError: whatever was raised in it.
        """
        self._counts[path] += 1
        count = self._counts[path]
        tap = (path or OUTPUT) + (f"@{count}" if count > 1 else "")
        self.callers[tap] = self._open[-1] if self._open else ""
        self._open.append(tap)
        try:
            yield tap
        except ModuleError:
            raise
        except Exception as error:
            raise ModuleError(path, error) from error
        finally:
            self._open.pop()


@dataclass(frozen=True)
class Invocation:
    """A module that is being called; what stands around the call gets this.

    Args:
        path: the module's.
        module: itself.
        x: its input, an array of its framework.
        result: computes what it gives.
    """

    path: str
    module: Any
    x: Any
    result: Callable[[], Any]


Around = Callable[[Invocation], Any]
"""Stands around every module's call, and gives what the module shall have given."""


def path_of(tap: str) -> str:
    """Returns the path of the module whose output a tap is."""
    path = tap.partition("@")[0]
    return "" if path == OUTPUT else path


@dataclass(frozen=True)
class Batch:
    """What one training step learns from: images (n, c, h, w) and their classes."""

    images: np.ndarray
    labels: np.ndarray


Branch = Mapping[str, np.ndarray]
"""Which way a run took: the sign of each rectifier's output, each pool's winners."""

Visit = Callable[[Quantity, np.ndarray], None]
"""Is told each quantity of a run and its value, good until the call returns."""

Learnt = tuple[Any, list[dict[Quantity, np.ndarray]]]
"""A trained network, and what each step gave: the loss, and rectifiers' signs."""
