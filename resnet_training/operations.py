"""TrivialAugmentWide and RandAugment, operation by operation as in torchvision."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

_BINS = 31  # magnitudes that there are
_POSTERIZE = "Posterize"
_SHIFTED = 150 / 331  # of the image's side: the paper's 150 pixels of 331

# First and last magnitude, and whether half of them get a minus. None: there is no
# magnitude. The order is torchvision's: one drawn number chooses.
_Space = Mapping[str, tuple[float, float, bool] | None]

_TRIVIAL: _Space = {
    "Identity": None,
    "ShearX": (0.0, 0.99, True),
    "ShearY": (0.0, 0.99, True),
    "TranslateX": (0.0, 32.0, True),
    "TranslateY": (0.0, 32.0, True),
    "Rotate": (0.0, 135.0, True),
    "Brightness": (0.0, 0.99, True),
    "Color": (0.0, 0.99, True),
    "Contrast": (0.0, 0.99, True),
    "Sharpness": (0.0, 0.99, True),
    _POSTERIZE: (8, 2, False),
    "Solarize": (255.0, 0.0, False),
    "AutoContrast": None,
    "Equalize": None,
}
_RANDOM: _Space = {
    **_TRIVIAL,
    "ShearX": (0.0, 0.3, True),
    "ShearY": (0.0, 0.3, True),
    "Rotate": (0.0, 30.0, True),
    "Brightness": (0.0, 0.9, True),
    "Color": (0.0, 0.9, True),
    "Contrast": (0.0, 0.9, True),
    "Sharpness": (0.0, 0.9, True),
    _POSTERIZE: (8, 4, False),
}


def trivial_augment(
    image: Image.Image, numbers: np.random.Generator, resample: Image.Resampling
) -> Image.Image:
    """Does one operation of a random magnitude (torchvision's TrivialAugmentWide)."""
    name = list(_TRIVIAL)[int(numbers.integers(len(_TRIVIAL)))]
    ends = _TRIVIAL[name]
    magnitude = 0.0
    if ends is not None:
        magnitude = magnitude_of(name, ends[0], ends[1], int(numbers.integers(_BINS)))
    if ends is not None and ends[2] and numbers.integers(2):
        magnitude = -magnitude
    return operate(image, name, magnitude, resample)


def rand_augment(
    image: Image.Image,
    numbers: np.random.Generator,
    resample: Image.Resampling,
    *,
    operations: int,
    magnitude: int,
) -> Image.Image:
    """Does several operations of one magnitude (torchvision's RandAugment)."""
    width, height = image.size
    space = {
        **_RANDOM,
        "TranslateX": (0.0, _SHIFTED * width, True),
        "TranslateY": (0.0, _SHIFTED * height, True),
    }
    names = list(space)
    for _ in range(operations):
        name = names[int(numbers.integers(len(names)))]
        ends = space[name]
        size = 0.0
        if ends is not None:
            size = magnitude_of(name, ends[0], ends[1], magnitude)
        if ends is not None and ends[2] and numbers.integers(2):
            size = -size
        image = operate(image, name, size, resample)
    return image


def magnitude_of(name: str, first: float, last: float, bin: int) -> float:
    """Returns one of the 31 magnitudes, as ``torch.linspace`` has it to the last bit.

    That counts from both ends, in float32. 15 pixels of 32 would else be 16.
    """
    if name == _POSTERIZE:  # bits that stay: rounded to even at a half, as torch does
        return float(first - round(bin / ((_BINS - 1) / (first - last))))
    start, end = np.float32(first), np.float32(last)
    step = (end - start) / np.float32(_BINS - 1)
    if bin < _BINS // 2:
        return float(fused(step, bin, start))
    return float(fused(-step, _BINS - 1 - bin, end))


def fused(factor: np.float32, times: float, plus: np.float32) -> np.float32:
    """Returns ``factor * times + plus`` in float32 with one rounding.

    torch computes so wherever the processor can; the product of two float32 is exact
    in float64, so this is the same on every machine.
    """
    return np.float32(float(factor) * float(times) + float(plus))


def operate(
    image: Image.Image, name: str, magnitude: float, resample: Image.Resampling
) -> Image.Image:
    """Does one operation.

    Args:
        image: in RGB or gray.
        name: a key of torchvision's augmentation spaces.
        magnitude: in the operation's own unit.
        resample: of what is sheared, shifted or turned; black comes in at the rim.
    """
    size = magnitude
    match name:
        case "ShearX":
            angle = math.radians(math.degrees(math.atan(size)))
            return _affine(image, (1, math.tan(angle), 0, 0, 1, 0), resample)
        case "ShearY":
            angle = math.radians(math.degrees(math.atan(size)))
            slope = -(math.sin(-angle) / math.cos(angle))
            return _affine(image, (1, 0, 0, slope, 1, 0), resample)
        case "TranslateX":
            return _affine(image, (1, 0, -int(size), 0, 1, 0), resample)
        case "TranslateY":
            return _affine(image, (1, 0, 0, 0, 1, -int(size)), resample)
        case "Rotate":
            return image.rotate(size, resample, fillcolor=_black(image))
        case "Brightness":
            return ImageEnhance.Brightness(image).enhance(1 + size)
        case "Color":
            return ImageEnhance.Color(image).enhance(1 + size)
        case "Contrast":
            return ImageEnhance.Contrast(image).enhance(1 + size)
        case "Sharpness":
            return ImageEnhance.Sharpness(image).enhance(1 + size)
        case "Posterize":
            return ImageOps.posterize(image, int(size))
        case "Solarize":
            return ImageOps.solarize(image, size)  # type: ignore[arg-type]  # compared
        case "AutoContrast":
            return ImageOps.autocontrast(image)
        case "Equalize":
            return ImageOps.equalize(image)
        case _:
            return image


def _affine(
    image: Image.Image, matrix: tuple[float, ...], resample: Image.Resampling
) -> Image.Image:
    """Samples each pixel at ``matrix`` times its place."""
    how = Image.Transform.AFFINE
    return image.transform(image.size, how, matrix, resample, fillcolor=_black(image))


def _black(image: Image.Image) -> int | tuple[int, ...]:
    bands = len(image.getbands())
    return (0,) * bands if bands > 1 else 0
