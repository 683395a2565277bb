"""From a picture to the network's pixels, equal to torchvision's given the same draws.

Everything is drawn as torchvision's transforms draw it: the same kinds of numbers, in
the same order, and the same float32 arithmetic on them.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageOps

from resnet_spec import TrainingRecipe
from resnet_training.operations import fused, rand_augment, trivial_augment

_TRIES = 10  # of a random rectangle
_ERASED_AREA = (0.02, 0.33)  # Zhong et al. 2017, arXiv 1708.04896
_ERASED_RATIO = (0.3, 3.3)

NOTHING = (0, 0, 0, 0)
"""The rectangle of an image of which nothing is erased."""

Rectangle = tuple[int, int, int, int]
"""Top, left, height and width, in pixels."""

_RESAMPLE = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def augmented(
    image: Image.Image, recipe: TrainingRecipe, numbers: np.random.Generator
) -> tuple[np.ndarray, Rectangle]:
    """Makes a training image: crop, flip, augmentation; and what shall be erased.

    Args:
        image: in RGB, or gray for a recipe of one channel.
        recipe: says what is done.
        numbers: the image's own.

    Returns:
        uint8 of shape (size, size, channels), and the rectangle that becomes the mean:
        it is erased after normalising, so not here.
    """
    resample, size = _RESAMPLE[recipe.interpolation], recipe.size
    if recipe.crop == "random-resized":
        box = random_part(image, recipe.crop_scale, recipe.crop_ratio, numbers)
        top, left, height, width = box
        image = image.crop((left, top, left + width, top + height))
    image = (
        image if image.size == (size, size) else image.resize((size, size), resample)
    )
    if recipe.crop in ("padded", "shifted"):
        image = _shifted(image, size // 8, recipe.crop == "shifted", numbers)
    if recipe.flip and _unit(numbers) < np.float32(recipe.flip):
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if recipe.augment == "trivial":
        image = trivial_augment(image, numbers, resample)
    elif recipe.augment == "randaugment":
        image = rand_augment(
            image,
            numbers,
            resample,
            operations=recipe.augment_operations,
            magnitude=recipe.augment_magnitude,
        )
    erased = NOTHING
    if recipe.erasing and _unit(numbers) < np.float32(recipe.erasing):
        erased = random_erased(size, size, numbers)
    return _pixels(image), erased


def centre(image: Image.Image, recipe: TrainingRecipe) -> np.ndarray:
    """Makes an image that is evaluated: resized, and its centre cut out.

    Args:
        image: in RGB, or gray for a recipe of one channel.
        recipe: says to which short side; or that it is squeezed into the square.

    Returns:
        uint8 of shape (centre, centre, channels).
    """
    resample, side = _RESAMPLE[recipe.interpolation], recipe.centre
    width, height = image.size
    if recipe.evaluation_resize is None:
        target = (side, side)
    else:
        short, resize = min(width, height), recipe.evaluation_resize
        # torchvision truncates the long side.
        target = (int(resize * width / short), int(resize * height / short))
    image = image if image.size == target else image.resize(target, resample)
    width, height = image.size
    left, top = round((width - side) / 2), round((height - side) / 2)
    return _pixels(image.crop((left, top, left + side, top + side)))


def random_part(
    image: Image.Image,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    numbers: np.random.Generator,
) -> Rectangle:
    """Draws the part of torchvision's RandomResizedCrop."""
    width, height = image.size
    for _ in range(_TRIES):
        area, aspect = _area_and_aspect(width * height, scale, ratio, numbers)
        w = round(math.sqrt(area * aspect))
        h = round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(numbers.integers(height - h + 1))
            return top, int(numbers.integers(width - w + 1)), h, w
    w, h = width, height
    if width / height < ratio[0]:
        h = round(w / ratio[0])
    elif width / height > ratio[1]:
        w = round(h * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def random_erased(height: int, width: int, numbers: np.random.Generator) -> Rectangle:
    """Draws the rectangle of torchvision's RandomErasing; none if ten do not fit."""
    for _ in range(_TRIES):
        area, aspect = _area_and_aspect(
            height * width, _ERASED_AREA, _ERASED_RATIO, numbers
        )
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            top = int(numbers.integers(height - h + 1))
            return top, int(numbers.integers(width - w + 1)), h, w
    return NOTHING


def _area_and_aspect(
    of: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    numbers: np.random.Generator,
) -> tuple[float, float]:
    area = of * float(_between(scale[0], scale[1], numbers))
    low, high = (np.float32(math.log(np.float32(end))) for end in ratio)
    logarithm = _between(low, high, numbers)
    # Rounded once from float64: float32's own exponential is another on each machine.
    return area, float(np.float32(math.exp(logarithm)))


def _between(
    low: float | np.float32, high: float | np.float32, numbers: np.random.Generator
) -> np.float32:
    low, high = np.float32(low), np.float32(high)
    return fused(high - low, float(_unit(numbers)), low)


def _unit(numbers: np.random.Generator) -> np.float32:
    """Draws a float32 from 0 below 1, as ``torch.rand`` does."""
    return numbers.random(dtype=np.float32)  # type: ignore[return-value]  # no array


def _shifted(
    image: Image.Image, by: int, from_rim: bool, numbers: np.random.Generator
) -> Image.Image:
    """Pads on each side, and cuts the size out again at random."""
    if by == 0:
        return image
    width, height = image.size
    if from_rim:
        pixels = np.asarray(image)
        around = ((by, by), (by, by), (0, 0))[: pixels.ndim]
        padded = Image.fromarray(np.pad(pixels, around, "edge"))
    else:
        padded = ImageOps.expand(image, by)
    top, left = (int(numbers.integers(2 * by + 1)) for _ in range(2))
    return padded.crop((left, top, left + width, top + height))


def _pixels(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]
