"""Arrays that are kept on disk while a check runs: a deep network's do not fit."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, MutableMapping
from pathlib import Path

import numpy as np

from parity.running.taps import Quantity

_SMALL = 2**16


class KeptArrays(MutableMapping[Quantity, np.ndarray]):
    """Quantities in order; large ones in a folder of their own.

    What equals one of the last arrays put in is kept once: a module is mostly given
    what the one before it gave.

    Args:
        folder: where to make that folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = Path(tempfile.mkdtemp(dir=folder))
        self._places: dict[Quantity, np.ndarray | Path] = {}
        self._recent: list[tuple[np.ndarray, Path]] = []
        self._written = 0

    def __setitem__(self, quantity: Quantity, value: np.ndarray) -> None:
        if value.nbytes < _SMALL:
            self._places[quantity] = value.copy()
            return
        for array, path in reversed(self._recent):
            if array.dtype == value.dtype and np.array_equal(array, value):
                self._places[quantity] = path
                return
        path = Path(self._folder, f"{self._written}.npy")
        self._written += 1
        np.save(path, value)
        self._places[quantity] = path
        self._recent.append((value.copy(), path))
        del self._recent[:-3]

    def __getitem__(self, quantity: Quantity) -> np.ndarray:
        place = self._places[quantity]
        return np.load(place, mmap_mode="r") if isinstance(place, Path) else place

    def __delitem__(self, quantity: Quantity) -> None:
        del self._places[quantity]

    def __contains__(self, quantity: object) -> bool:
        return quantity in self._places  # without reading it

    def __iter__(self) -> Iterator[Quantity]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def finished(self) -> None:
        """Forgets the last arrays: nothing more will come that could equal them."""
        self._recent.clear()

    def drop(self) -> None:
        """Forgets everything, on disk too."""
        self._places.clear()
        self._recent.clear()
        shutil.rmtree(self._folder)
