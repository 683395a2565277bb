"""Where a derivative jumps, and which way each run took there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from parity.running.pair import Pair
from parity.running.taps import Quantity, path_of


@dataclass(frozen=True)
class Kink:
    """Units that took another way than the reference: beyond a jump of a derivative.

    Args:
        units: how many.
        size: the largest of the reference's values that decided them, over the largest
            of its map: what an error had to reach to turn them.
    """

    units: int
    size: float


class Kinks:
    """Finds them at rectifiers and pools.

    Args:
        pair: the networks.
        taps: of the reference, in order.
    """

    def __init__(self, pair: Pair, taps: Sequence[str]) -> None:
        self._pair = pair
        self._kinds = pair.torch.kinks()
        self.taps = [tap for tap in taps if path_of(tap) in self._kinds]
        self.pools = [path for path, kind in self._kinds.items() if kind == "maxpool"]

    def is_rectifier(self, tap: str) -> bool:
        """Whether it is a call of one, and not of a pool."""
        return path_of(tap) not in self.pools

    def way(
        self,
        values: Mapping[Quantity, np.ndarray],
        reference: Mapping[Quantity, np.ndarray],
    ) -> dict[str, np.ndarray]:
        """Returns which way a run took, by tap, wherever its shapes allow to say so.

        See :func:`parity.running.torch_runs.way`. What a pool was given must be among
        the values.
        """
        found = {}
        for tap in self.taps:
            output, given = (Quantity(kind, tap) for kind in ("output", "input"))
            pool = path_of(tap) in self.pools
            decisive = [given, output] if pool else [output]
            if all(_alike(quantity, values, reference) for quantity in decisive):
                y = values[output]
                x = values[given] if pool else y
                found[tap] = self._pair.torch.way(path_of(tap), x, y)
        return found

    def between(
        self, tap: str, ours: np.ndarray, other: np.ndarray, x: np.ndarray
    ) -> Kink:
        """Compares two ways.

        Args:
            tap: where.
            ours: the reference's.
            other: a run's, which is another.
            x: what the reference was given there.
        """
        turned = other != ours
        if path_of(tap) in self.pools:
            decided = np.abs(_taken(x, other) - _taken(x, ours))
        else:
            decided = np.abs(x)
        size = decided[turned].max() / np.abs(x).max()
        return Kink(int(turned.sum()), float(size))


def _alike(
    quantity: Quantity,
    values: Mapping[Quantity, np.ndarray],
    reference: Mapping[Quantity, np.ndarray],
) -> bool:
    if quantity not in values or quantity not in reference:
        return False
    return values[quantity].shape == reference[quantity].shape


def _taken(x: np.ndarray, winners: np.ndarray) -> np.ndarray:
    flat = x.reshape(*x.shape[:2], -1)
    places = winners.reshape(*winners.shape[:2], -1)
    return np.take_along_axis(flat, places, 2).reshape(winners.shape)
