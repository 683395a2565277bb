"""From a file or an array to a picture, by decoders that agree to the last bit."""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError, features

from parity.errors import InputError
from parity.images import in_rgb, require_pixels, turn_of
from parity.inputs import open_regular

Item = str | np.ndarray
"""What a source has of an image: a path, or uint8 of shape (h, w) or (h, w, 3)."""

Items = Sequence[str] | np.ndarray
"""Of several images: paths, or pixels of shape (n, h, w) or (n, h, w, 3)."""

_MOST_BYTES = 2**30
_MOST_RATIO = 100  # what a short side is resized by makes the long side this long
_ADVICE = "Repair or remove it, or skip broken images (skip_broken, --skip-broken)"


def picture(item: Item, channels: int = 3) -> Image.Image:
    """Reads an image in RGB, as people see it.

    Of ordinary ones these are the pixels of torchvision's ``ImageFolder``. What that
    misreads is read as :func:`parity.load_image` reads it: turned as EXIF says, on
    white, gray of 16 bits scaled.

    Args:
        item: a file, or pixels.
        channels: 3, or 1 for gray: what RGB becomes in PIL's mode L.

    Raises:
        InputError: the file cannot be read, is no image, a damaged one, one whose
            white nothing tells, or one a hundred times longer than wide.
    """
    if isinstance(item, str):
        image = _of_file(item)
    else:
        image = Image.fromarray(item)
        image = image if image.mode == "RGB" else image.convert("RGB")
        _require_shape(image)
    return image.convert("L") if channels == 1 else image


def _require_shape(image: Image.Image) -> None:
    short, long = sorted(image.size)
    if short * _MOST_RATIO < long:
        raise InputError(
            f"is {image.width} pixels wide and {image.height} high, no photograph",
            advice=_ADVICE,
        )


def _of_file(path: str) -> Image.Image:
    with open_regular(path, _MOST_BYTES) as file:
        data = file.read()
    try:
        with warnings.catch_warnings():
            # Of thousands of pictures; from a loader's process they would come raw.
            warnings.simplefilter("ignore")
            if (found := _quickly(data)) is not None:
                _require_shape(found)
                return found
            with Image.open(io.BytesIO(data)) as image:
                require_pixels(image)
                _require_shape(image)
                return in_rgb(image)
    except InputError as error:
        raise error.at(path) from None
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        problem = "is no image that PIL can read"
        raise InputError(problem, path=path, advice=_ADVICE) from error
    except Exception as error:  # every format has its own for a damaged file
        what = " ".join(str(error).split()) or type(error).__name__
        problem = f"cannot be read as an image ({what.rstrip('.')})"
        raise InputError(problem, path=path, advice=_ADVICE) from error


def _quickly(data: bytes) -> Image.Image | None:
    """Decodes a JPEG by simplejpeg; ``None`` for what Pillow must read."""
    quick = _equal_simplejpeg()
    if quick is None or data[:2] != b"\xff\xd8":
        return None
    try:
        height, width, colors, _ = quick.decode_jpeg_header(data)
        if colors not in ("YCbCr", "Gray"):
            return None
        if height * width > (Image.MAX_IMAGE_PIXELS or 0) or _is_turned(data):
            return None
        return Image.fromarray(quick.decode_jpeg(data, "RGB"))
    except ValueError:  # Pillow forgives more, and says better what is wrong
        return None


def _is_turned(data: bytes) -> bool:
    """Whether its EXIF, or XMP in its place, turns a JPEG."""
    if b"Exif\0\0" not in data and b"tiff:Orientation" not in data:
        return False
    try:
        with Image.open(io.BytesIO(data)) as image:
            return turn_of(image) is not None
    except Exception:  # what is wrong with it, whoever decodes it will say
        return False


def decoder() -> str:
    """Says who decodes JPEGs here, with versions, for a run's record."""
    turbo = features.version("libjpeg_turbo")
    pillow = f"Pillow {PIL.__version__}, libjpeg{f'-turbo {turbo}' if turbo else ''}"
    quick = _equal_simplejpeg()
    return pillow if quick is None else f"simplejpeg {_version()}, equal to {pillow}"


def _version() -> str:
    from importlib.metadata import version

    return version("simplejpeg")


@functools.cache
def _equal_simplejpeg() -> ModuleType | None:
    """Returns simplejpeg, where it is installed and gives the pixels that Pillow gives.

    Both bring a libjpeg of their own, whose versions need not agree.
    """
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg if _agrees(simplejpeg) else None


def _agrees(other: ModuleType) -> bool:
    """Decodes pictures of an odd size, each kind of JPEG there is, both ways."""
    y, x, c = np.ogrid[:61, :83, :3]
    wild = (x * x * (c + 1) + 7 * y * x + 40 * c + 3 * y * y) >> 3
    image = Image.fromarray((wild % 256).astype(np.uint8))
    for mode in ("RGB", "L"):
        for settings in ({"subsampling": 0}, {"subsampling": 2}, {"progressive": True}):
            file = io.BytesIO()
            image.convert(mode).save(file, "JPEG", quality=90, **settings)
            with Image.open(io.BytesIO(file.getvalue())) as again:
                pixels = np.asarray(again.convert("RGB"))
            if not np.array_equal(other.decode_jpeg(file.getvalue(), "RGB"), pixels):
                return False
    return True
