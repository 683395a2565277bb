"""Which image stands where in a run, and its random numbers: the step says it all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from resnet_spec import TrainingRecipe

_OF_STEP = 1 << 63  # keys of steps; an image's key has at most 60 bits


@dataclass(frozen=True)
class Places:
    """Where the images of some positions come from, int64 of shape (n,) each.

    Args:
        epochs: number of the epoch.
        ranks_in_epoch: place in its order.
        indices: of the image in its source.
        copies: how often it has been in this batch before, with repeats.
    """

    epochs: np.ndarray
    ranks_in_epoch: np.ndarray
    indices: np.ndarray
    copies: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)


class Order:
    """The order of a training run's images. There is no state: any step can be asked.

    A batch has D = ceil(batch / repeats) different images, one behind the other, then
    the same ones again, as often as there are repeats: neighbours, which mixup mixes,
    are never the same image. An epoch goes on for images / batch steps, so with repeats
    it has the first part of all images only (Hoffer et al. 2019); which part, the
    next epoch's permutation decides anew.

    Args:
        images: how many there are.
        recipe: of the run.
    """

    def __init__(self, images: int, recipe: TrainingRecipe) -> None:
        self.images, self.seed, self.batch = images, recipe.seed, recipe.batch
        self.different = -(-recipe.batch // recipe.repeats)
        self._orders: dict[int, np.ndarray] = {}

    def of_epoch(self, epoch: int) -> np.ndarray:
        """Returns the order of an epoch: a permutation, int64."""
        if epoch not in self._orders:
            while len(self._orders) > 1:  # a batch may lie in two epochs
                del self._orders[min(self._orders)]
            numbers = np.random.default_rng([self.seed, epoch])
            self._orders[epoch] = numbers.permutation(self.images)
        return self._orders[epoch]

    def places(self, step: int, positions: np.ndarray) -> Places:
        """Says which images stand at some positions of a step's batch.

        Args:
            step: from 0.
            positions: in the batch, integers from 0 to batch - 1.
        """
        positions = np.asarray(positions, np.int64)
        counted = step * self.different + positions % self.different
        # An epoch has images * different / batch of these; no rounding may drift.
        epochs = counted * self.batch // (self.images * self.different)
        first = -(-epochs * self.images * self.different // self.batch)
        ranks = counted - first
        indices = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self.of_epoch(int(epoch))[ranks[here]]
        return Places(epochs, ranks, indices, positions // self.different)

    def keys(self, places: Places) -> np.ndarray:
        """Returns what tells each image's random numbers from all others.

        Returns:
            uint64 of shape (n, 2): seed and epoch, index and copy.
        """
        of_epoch = np.uint64(self.seed << 32) | places.epochs.astype(np.uint64)
        of_image = (places.indices | places.copies << 48).astype(np.uint64)
        return np.stack([of_epoch, of_image], 1)

    def instead(self, places: Places, position: int, tries: int) -> int:
        """Returns the image that stands in for one that cannot be read.

        It is the next one in the epoch's order, so all processes find the same.

        Args:
            places: of some positions.
            position: among them.
            tries: how many before it could not be read either, and 1.
        """
        order = self.of_epoch(int(places.epochs[position]))
        return int(order[(places.ranks_in_epoch[position] + tries) % self.images])


def numbers_of(key: Sequence[int] | np.ndarray) -> np.random.Generator:
    """Returns the random numbers of a key: two integers from 0 below 2**64."""
    return np.random.Generator(np.random.Philox(key=np.array(key, np.uint64)))


class Numbers:
    """The random numbers of one key after the other, by one generator.

    To make a new one takes a third of the time that a small image takes.
    """

    def __init__(self) -> None:
        self._philox = np.random.Philox(0)
        self._generator = np.random.Generator(self._philox)

    def of(self, key: np.ndarray) -> np.random.Generator:
        """Returns what :func:`numbers_of` does; good until the next call."""
        zeros = np.zeros(4, np.uint64)
        self._philox.state = {
            "bit_generator": "Philox",
            "state": {"counter": zeros, "key": key},
            "buffer": zeros,
            "buffer_pos": 4,  # of four: it is empty
            "has_uint32": 0,
            "uinteger": 0,
        }
        return self._generator


def numbers_of_step(seed: int, step: int) -> np.random.Generator:
    """Returns the random numbers that all images of a step share."""
    return numbers_of((seed << 32, _OF_STEP | step))


def share(
    recipe: TrainingRecipe, rank: int = 0, ranks: int = 1
) -> list[tuple[int, int]]:
    """Returns the positions of a batch that one of several processes computes.

    The batch is ``accumulate`` parts one behind the other, and each of these is cut
    among the processes: first and one past the last position in each part.

    Raises:
        ValueError: the batch does not divide into so many equal pieces.
    """
    if not (isinstance(ranks, int) and ranks >= 1):
        raise ValueError(f"ranks is {ranks!r}; it must be an integer from 1")
    if not (isinstance(rank, int) and 0 <= rank < ranks):
        raise ValueError(
            f"rank is {rank!r}; it must be an integer from 0 below {ranks}"
        )
    pieces = recipe.accumulate * ranks
    if recipe.batch % pieces:
        raise ValueError(
            f"batch is {recipe.batch}; with accumulate {recipe.accumulate} on {ranks} "
            f"devices or processes it must be a multiple of {pieces}"
        )
    each, part = recipe.batch // pieces, recipe.batch // recipe.accumulate
    starts = (i * part + rank * each for i in range(recipe.accumulate))
    return [(start, start + each) for start in starts]


def check_devices(recipe: TrainingRecipe, devices: int) -> None:
    """Refuses a number of devices that a recipe cannot be computed on.

    Raises:
        ValueError: each group of its norm needs one, a batch does not divide, or what
            is dropped would differ.
    """
    if recipe.groups not in (0, devices):
        raise ValueError(
            f"the recipe of {recipe.network} has norm {recipe.norm!r}, for "
            f"{recipe.groups} devices, and this run has {devices}: start it with "
            f"`torchrun --nproc-per-node {recipe.groups}`, in JAX with --devices "
            f"{recipe.groups}, or begin one with --norm global, for any number"
        )
    if recipe.drop_path and devices > 1:
        raise ValueError(
            f"drop_path is {recipe.drop_path:g}: which images a block leaves out is "
            f"drawn for the whole batch, and this run has {devices} devices; use one, "
            "or --drop-path 0"
        )
    share(recipe, 0, devices)
