"""Batches of a run, the same ones for any number of processes, devices and stops."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np

from parity.errors import InputError
from resnet_spec import TrainingRecipe
from resnet_training.making import Piece, make
from resnet_training.mixing import mix_of_step
from resnet_training.order import Order, Places, share
from resnet_training.sources import Source
from resnet_training.workers import Made, Workers, pieces_of

_PADDING = -1


@dataclass(frozen=True, eq=False)
class Batch:
    """What one process trains on in one step, or evaluates.

    Pixels go to the device as they are. There, ``x / 255`` less mean over std; then
    what is erased becomes 0; then ``own * x + (1 - own) * partner``.

    Args:
        images: uint8 of shape (n, h, w, c).
        labels: int64 of shape (n,); -1 for what is no image: padding of an evaluation's
            last batches, and broken images that are skipped there.
        count: images that are some.
        erased: int32 of shape (n, 4): top, left, height and width of a rectangle, zeros
            for none; ``None`` if the recipe erases nothing.
        partners: uint8 of shape (n, h, w, c): what each image is mixed with, the image
            before it in the whole batch; ``None`` without mixup and cutmix.
        partner_labels: int64 of shape (n,).
        partners_erased: int32 of shape (n, 4).
        own: float32 of shape (h, w): the image's own part of each pixel.
        share: the label's own part.
    """

    images: np.ndarray
    labels: np.ndarray
    count: int
    erased: np.ndarray | None = None
    partners: np.ndarray | None = None
    partner_labels: np.ndarray | None = None
    partners_erased: np.ndarray | None = None
    own: np.ndarray | None = None
    share: float = 1.0


def require_batch(source: Source, recipe: TrainingRecipe) -> None:
    """Checks that there are as many images as a batch has.

    Raises:
        InputError: there are fewer.
    """
    if len(source) < recipe.batch:
        raise InputError(
            f"there are {len(source)} images to train on, and a batch has "
            f"{recipe.batch}",
            advice="Take a smaller batch (--batch), or more images",
        )


class Loader:
    """Makes batches of a source, ahead of who asks for them.

    The step is the whole state: from any step, on any number of processes, the batches
    are the same, bit for bit, and those of all ranks, one piece behind the other, are
    the batches of one. It is to be closed, or used in a ``with``.

    Args:
        source: images to train on.
        recipe: of the run.
        workers: processes that read and augment; 0 for this one.
        rank: which of several that train together this is.
        ranks: how many these are.
        ahead: batches that are begun before they are asked for; ``None`` for as many as
            keep all processes busy. Each takes its pixels' memory.
        skip_broken: whether an image that cannot be read is left out, and not an error.
            In training the next one in the epoch's order takes its place, with the
            random numbers that it would have had.

    Attributes:
        skipped: what is wrong with images that were left out, by their names; of this
            rank alone.

    Raises:
        ValueError: an argument is out of range, or the batch does not divide among the
            ranks.
    """

    def __init__(
        self,
        source: Source,
        recipe: TrainingRecipe,
        *,
        workers: int = 0,
        rank: int = 0,
        ranks: int = 1,
        ahead: int | None = None,
        skip_broken: bool = False,
    ) -> None:
        self._pieces = share(recipe, rank, ranks)
        for name, value, least in (("workers", workers, 0), ("ahead", ahead, 1)):
            fits = isinstance(value, int) and least <= value <= 4096
            if not (fits or (name == "ahead" and value is None)):
                raise ValueError(
                    f"{name} is {value!r}; it must be an integer from {least} to 4096"
                )
        self.source, self.recipe, self.skip_broken = source, recipe, skip_broken
        self.rank, self.ranks = rank, ranks
        self.skipped: dict[str, str] = {}
        self._order = Order(len(source), recipe)
        self._ahead = ahead
        self._workers = Workers(workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes; batches that were begun are lost."""
        self._workers.close()

    @property
    def processes(self) -> list[int]:
        """The ids of its processes, for whoever measures them."""
        return self._workers.ids

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yields the batches of training steps, this rank's part of each.

        Args:
            start: the first step, from 0.
            stop: one past the last.

        Raises:
            InputError: there are fewer images than a batch has, or one cannot be read;
                the message has its path.
            RuntimeError: a process of the loader has ended.
        """
        if not 0 <= start <= stop:
            raise ValueError(f"start is {start} and stop {stop}; steps count up from 0")
        require_batch(self.source, self.recipe)
        positions, partners = self._positions()
        begun = (
            (step, places, self._begin(self.source, places.indices, places))
            for step in range(start, stop)
            for places in [self._order.places(step, positions)]
        )
        for step, places, made in _ahead(begun, self._batches_ahead(len(positions))):
            indices = self._replaced(places, made)
            labels = self.source.labels[indices]
            yield self._batch(step, made, labels, partners)

    def evaluation(self, source: Source, batch: int | None = None) -> Iterator[Batch]:
        """Yields every image once, over all ranks; each yields as many batches.

        All batches have the same shape: what is left over is labelled -1.

        Args:
            source: images to evaluate.
            batch: over all ranks; rounded up to a multiple of them. ``None`` for what
                is computed at once in training.

        Raises:
            InputError: an image cannot be read; the message has its path.
            RuntimeError: a process of the loader has ended.
        """
        batch = self.recipe.batch // self.recipe.accumulate if batch is None else batch
        if not (isinstance(batch, int) and batch >= 1):
            raise ValueError(f"batch is {batch!r}; it must be an integer from 1")
        local = -(-batch // self.ranks)
        starts = range(
            self.rank * local, len(source) + self.rank * local, local * self.ranks
        )
        begun = (
            (rows, self._begin(source, rows))
            for start in starts
            for rows in [np.arange(start, min(start + local, len(source)))]
        )
        for rows, made in _ahead(begun, self._batches_ahead(local)):
            images = np.zeros((local, *made.images.shape[1:]), np.uint8)
            labels = np.full(local, _PADDING, np.int64)
            broken = self._broken(source, rows, made)
            images[: len(rows)] = made.images
            labels[: len(rows)] = source.labels[rows]
            labels[list(broken)] = _PADDING
            yield Batch(images, labels, len(rows) - len(broken))

    def _positions(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns the positions to read, and where among them the partners stand.

        First this rank's own positions; then the partners that are other ranks'.
        """
        own = np.concatenate([np.arange(*piece) for piece in self._pieces])
        if self.recipe.mixup == self.recipe.cutmix == 0:
            return own, None
        part = self.recipe.batch // self.recipe.accumulate
        before = own // part * part + (own % part - 1) % part
        others = np.setdiff1d(before, own)
        positions = np.concatenate([own, others])
        by_position = np.argsort(positions)
        found = np.searchsorted(positions, before, sorter=by_position)
        return positions, by_position[found]

    def _begin(
        self, source: Source, indices: np.ndarray, places: Places | None = None
    ) -> Made:
        keys = None if places is None else self._order.keys(places)
        piece = Piece(self.recipe, source.items(indices), keys)
        return Made(self._workers, piece)

    def _batches_ahead(self, images: int) -> int:
        if self._workers.count == 0:
            return 1  # nothing is done before it is asked for
        if self._ahead is not None:
            return 1 + self._ahead
        pieces = pieces_of((images, self.recipe.size))
        return 1 + max(1, -(-2 * self._workers.count // max(pieces, 1)))

    def _broken(
        self, source: Source, indices: np.ndarray, made: Made
    ) -> dict[int, InputError]:
        broken = made.finish()
        for place, error in sorted(broken.items()):
            if not self.skip_broken:
                raise error
            self.skipped[source.name(int(indices[place]))] = str(error)
        return broken

    def _replaced(self, places: Places, made: Made) -> np.ndarray:
        """Puts others in the places of broken images; returns what stands there."""
        indices = places.indices.copy()
        for place in sorted(self._broken(self.source, indices, made)):
            here = slice(place, place + 1)
            for tries in range(1, len(self.source)):
                index = self._order.instead(places, place, tries)
                items = self.source.items(np.array([index]))
                keys = made.piece.part(place, place + 1).keys
                piece = Piece(self.recipe, items, keys)
                broken = make(piece, made.images[here], made.erased[here])
                if not broken:
                    indices[place] = index
                    break
                self.skipped[self.source.name(index)] = str(broken[0])
            else:
                raise InputError(
                    f"none of the {len(self.source)} images can be read; the last "
                    f"reason: {next(reversed(self.skipped.values()))}"
                )
        return indices

    def _batch(
        self,
        step: int,
        made: Made,
        labels: np.ndarray,
        partners: np.ndarray | None,
    ) -> Batch:
        count = sum(stop - start for start, stop in self._pieces)
        erased = made.erased if self.recipe.erasing else None
        mix = mix_of_step(self.recipe, step)
        if mix is None or partners is None:
            return Batch(made.images, labels, count, erased)
        return Batch(
            made.images[:count],
            labels[:count],
            count,
            None if erased is None else erased[:count],
            made.images[partners],
            labels[partners],
            None if erased is None else erased[partners],
            mix.own,
            mix.share,
        )


def _ahead(begun: Iterator[tuple], count: int) -> Iterator[tuple]:
    """Yields what is begun, in order, with so many begun at once."""
    waiting: deque[tuple] = deque()
    try:
        for one in begun:
            waiting.append(one)
            if len(waiting) >= count:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        for one in waiting:
            one[-1].forget()
