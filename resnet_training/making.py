"""A piece of a batch, from items to pixels: what each process of a loader does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from parity.errors import InputError
from resnet_spec import TrainingRecipe
from resnet_training.augment import augmented, centre
from resnet_training.order import Numbers
from resnet_training.pictures import Items, picture


@dataclass(frozen=True)
class Piece:
    """Images to make: all that a process must know of them.

    Args:
        recipe: of the run.
        items: what the images are read from.
        keys: of each image's random numbers, uint64 of shape (n, 2); ``None`` for
            images that are evaluated.
    """

    recipe: TrainingRecipe
    items: Items
    keys: np.ndarray | None

    def part(self, start: int, stop: int) -> Piece:
        """Returns some of it."""
        keys = None if self.keys is None else self.keys[start:stop]
        return Piece(self.recipe, self.items[start:stop], keys)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the images: number, height, width, channels."""
        side = self.recipe.centre if self.keys is None else self.recipe.size
        return len(self.items), side, side, len(self.recipe.mean)


Broken = dict[int, InputError]
"""What is wrong with images that cannot be read, by their places in a piece."""


def make(piece: Piece, images: np.ndarray, erased: np.ndarray) -> Broken:
    """Reads and augments.

    Args:
        piece: what to make.
        images: uint8 of the piece's shape; is filled, with black for a broken image.
        erased: int32 of shape (n, 4); is filled.
    """
    broken, numbers = Broken(), Numbers()
    for place, item in enumerate(piece.items):
        images[place], erased[place] = 0, 0
        try:
            image = picture(item, len(piece.recipe.mean))
        except InputError as error:
            broken[place] = error
            continue
        if piece.keys is None:
            images[place] = centre(image, piece.recipe)
        else:
            own = numbers.of(piece.keys[place])
            images[place], erased[place] = augmented(image, piece.recipe, own)
    return broken
