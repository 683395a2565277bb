"""From a photograph to the network's input, the way torchvision's and timm's go."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from PIL import Image, UnidentifiedImageError

from parity.errors import InputError
from parity.inputs import open_regular
from resnet_spec import (
    Preprocessing,
    PublishedWeights,
    ResNetConfig,
    TimmWeights,
    describe,
)
from resnet_spec.preprocessing import IMAGENET_MEAN, IMAGENET_STD

_MOST_BYTES = 2**30  # of a file
_MOST_RATIO = 100  # of the sides: what is resized is this much larger than what is kept
_WHITE = 2**16 - 1


def load_image(
    path: str | os.PathLike[str],
    weights: Preprocessing | PublishedWeights | TimmWeights | None = None,
) -> np.ndarray:
    """Reads and preprocesses a photograph.

    Args:
        path: a regular file with any image that PIL opens.
        weights: the preprocessing that is wanted, or published weights with theirs;
            without any, that of torchvision's first ones: short side to 256, centre
            crop 224.

    Returns:
        float32 of shape (1, 3, h, w); bit for bit what torchvision's preset
        computes from the same PIL image in RGB, where that is the picture that people
        see. torchvision ignores EXIF, shows black where nothing is, and clips gray of
        16 bits; here a picture is turned as its EXIF says, lies on white, and its gray
        is scaled.

    Raises:
        ValueError: the file is missing or no image, nothing says which of its values is
            white, or it is a hundred times longer than wide.
    """
    how = weights or Preprocessing()
    if not isinstance(how, Preprocessing):
        how = how.preprocessing
    return prepare(seen(path), **vars(how))


def seen(image: str | os.PathLike[str] | Image.Image) -> Image.Image:
    """Returns the picture that people see, in RGB.

    Args:
        image: a file, or an image that is open; PIL reads that when it is asked for.

    Raises:
        ValueError: as :func:`load_image`.
    """
    if isinstance(image, Image.Image):
        with _reading(name_of(image)):
            return in_rgb(image)
    with (
        _reading(image),
        open_regular(image, _MOST_BYTES) as file,
        Image.open(file) as found,
    ):
        return in_rgb(found)


def require_pixels(image: Image.Image) -> None:
    """Checks, before a picture is decoded, that this runs no program of its own.

    PIL hands PostScript to Ghostscript, and metafiles to Windows.

    Raises:
        InputError: it would.
    """
    if image.format in ("EPS", "WMF"):
        raise InputError(
            f"is drawn by a program, which is not run ({image.format})",
            advice="Save it as PNG",
        )


def name_of(image: Image.Image) -> str:
    """Returns the name of the file that an image is from, if it has one."""
    return str(getattr(image, "filename", "") or "the image")


@contextmanager
def _reading(name: str | os.PathLike[str]) -> Iterator[None]:
    """Says of which picture it is what goes wrong."""
    try:
        yield
    except InputError as error:
        raise error.at(name) from error.__cause__
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise InputError("is no image that PIL can read", path=name) from error
    except Exception as error:  # every format has its own for a damaged file
        what = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot be read ({what})", path=name) from error


def in_rgb(image: Image.Image) -> Image.Image:
    """Returns the picture that people see, in RGB, of an image of PIL's.

    Raises:
        InputError: nothing says what is white, or it is no photograph's shape.
        Exception: its file is damaged; every format has its own.
    """
    require_pixels(image)
    sides = sorted(image.size)
    if sides[0] * _MOST_RATIO < sides[1]:
        width, height = image.size
        raise InputError(
            f"is {width} pixels wide and {height} high, no photograph",
            advice="Cut out a part of it",
        )
    kind, tags = image.format, getattr(image, "tag_v2", {})
    image.load()
    turn = turn_of(image)
    image = image if turn is None else image.transpose(turn)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        # PIL scales what it reads as 16 bits in 32 to all of the 16.
        wide = image.mode == "I" and kind in ("PNG", "PPM")
        usual = tags.get(258, (16,)) == (16,) and tags.get(262) != 0  # bits, inverted
        if not (wide or (image.mode.startswith("I;16") and usual)):
            raise InputError(
                f"has gray pixels of the kind {image.mode}, and nothing says which of "
                "their values is white",
                advice="Save it with 8 or 16 bits",
            )
        gray = np.asarray(image).astype(np.uint32)
        eight = ((gray * 255 + _WHITE // 2) // _WHITE).astype(np.uint8)
        eight[gray == image.info.get("transparency", _WHITE)] = 255
        image = Image.fromarray(eight)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """Returns how a picture is turned by its EXIF; EXIF that is damaged turns none."""
    try:
        return _TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:  # PIL's exif_transpose() would read and write all the rest, too
        return None


def prepare(
    image: Image.Image,
    *,
    resize: int | None = 256,
    crop: int = 224,
    interpolation: str = "bilinear",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> np.ndarray:
    """Resizes the short side, crops the centre, scales to [0, 1] and normalises.

    Args:
        image: in RGB.
        resize: the short side, in pixels; ``None``: both sides become the square's.
        crop: side of the square, in pixels; not above the short side.
        interpolation: ``"bilinear"`` or ``"bicubic"``, antialiased as PIL always does.
        mean: of red, green and blue.
        std: of the same.

    Returns:
        float32 of shape (1, 3, crop, crop).

    Raises:
        ValueError: the crop does not fit.
    """
    if resize is not None and crop > resize:
        raise ValueError(f"crop is {crop}; it must be at most resize, {resize}")
    width, height = image.size
    short = min(width, height)
    # torchvision truncates the long side.
    size = (crop, crop)
    if resize is not None:
        size = (int(resize * width / short), int(resize * height / short))
    if size != image.size:
        image = image.resize(size, Image.Resampling[interpolation.upper()])
    width, height = image.size
    left, top = round((width - crop) / 2), round((height - crop) / 2)
    image = image.crop((left, top, left + crop, top + crop))
    return normalised(np.asarray(image)[None], mean, std)


def normalised(
    pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]
) -> np.ndarray:
    """Scales pixels to [0, 1] and normalises them.

    Args:
        pixels: uint8 of shape (n, h, w, 3).
        mean: of red, green and blue.
        std: of the same.

    Returns:
        float32 of shape (n, 3, h, w).
    """
    planes = pixels.astype(np.float32).transpose(0, 3, 1, 2)
    center, scale = (np.array(v, np.float32)[:, None, None] for v in (mean, std))
    # In float32 and in this order: x/255, then -mean, then /std. No two steps commute.
    return np.ascontiguousarray((planes / np.float32(255) - center) / scale)


def random_images(shape: tuple[int, int, int, int], *, seed: int) -> np.ndarray:
    """Draws normal images of shape (n, c, h, w), float32."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def require_photographs(config: ResNetConfig, image: object) -> None:
    """Checks that a network takes photographs.

    Raises:
        ValueError: it has other channels, or another head.
    """
    if config.in_channels != 3 or config.head != "linear" or not config.include_top:
        raise ValueError(
            f"{image}: a photograph has 3 channels and is cut to a square; "
            f"{describe(config)} takes no such image or has no classes"
        )
