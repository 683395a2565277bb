"""What the loop asks of a twin in training; each framework's engine is one of these."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from resnet_training.initial import State
from resnet_training.loader import Batch
from resnet_training.plan import Plan

Backend = Literal["torch", "flax"]

OPTIMIZER, AVERAGE = "optimizer/", "average/"
"""What the names begin with, in a checkpoint, of all that is not the network."""


@dataclass(frozen=True)
class Counts:
    """What an evaluation has counted, over all devices.

    Args:
        loss: sum of the images' cross-entropies.
        right: images whose likeliest class is theirs.
        images: that there were.
    """

    loss: float
    right: int
    images: int


class Engine(ABC):
    """One twin, its optimiser, and the average of its weights."""

    rank: int
    ranks: int
    """Of the processes that read images."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @property
    @abstractmethod
    def device(self) -> str:
        """What it computes on, in words."""

    @abstractmethod
    def step(self, batch: Batch) -> Any:
        """Learns from a batch; returns the loss as :meth:`losses` takes it."""

    @abstractmethod
    def losses(self, found: Sequence[Any]) -> list[float]:
        """Returns what several steps have returned as numbers, over all devices."""

    @abstractmethod
    def evaluate(self, batch: Batch) -> Any:
        """Counts over a batch, with the average of the weights if there is one."""

    @abstractmethod
    def counted(self, found: Sequence[Any]) -> Counts:
        """Returns the sum of what :meth:`evaluate` has returned, over all devices."""

    @abstractmethod
    def network(self) -> State:
        """Copies the network's state, by torch's names and layouts."""

    @abstractmethod
    def remembered(self) -> State:
        """Copies what the optimiser remembers, named ``slot/parameter``."""

    @abstractmethod
    def averaged(self) -> State:
        """Copies the average of the network's state; nothing if there is none."""

    def arrays(self) -> State:
        """Copies all that the next step depends on.

        The network's state has its plain names, of the optimiser's arrays the names
        begin with ``optimizer/``, of the average's with ``average/``.
        """
        found = self.network()
        found |= {OPTIMIZER + name: a for name, a in self.remembered().items()}
        return found | {AVERAGE + name: a for name, a in self.averaged().items()}

    @abstractmethod
    def restore(self, arrays: Mapping[str, np.ndarray], step: int) -> None:
        """Goes back to what :meth:`arrays` has returned after so many steps."""

    def deployed(self) -> State:
        """Copies the state that is evaluated."""
        return self.averaged() or self.network()

    @abstractmethod
    def any(self, asked: bool) -> bool:
        """Says whether any process asks for something: the same to all of them.

        All are to call it after the same steps.
        """

    @abstractmethod
    def close(self) -> None:
        """Lets go of other processes; it computes no more if there are some."""


def plain(arrays: Mapping[str, np.ndarray]) -> State:
    """Returns the network's state, of all arrays."""
    return {name: array for name, array in arrays.items() if "/" not in name}


def part(arrays: Mapping[str, np.ndarray], prefix: str) -> State:
    """Returns the arrays whose names begin so, without that."""
    return {n[len(prefix) :]: a for n, a in arrays.items() if n.startswith(prefix)}
