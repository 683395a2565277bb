"""From a file or an array to a picture, by decoders that agree to the last bit."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError, features

from parity.errors import InputError
from parity.images import require_pixels
from parity.inputs import open_regular

Item = str | np.ndarray
"""What a source has of an image: a path, or uint8 of shape (h, w) or (h, w, 3)."""

Items = Sequence[str] | np.ndarray
"""Of several images: paths, or pixels of shape (n, h, w) or (n, h, w, 3)."""

_MOST_BYTES = 2**30
_MOST_RATIO = 100  # what a short side is resized by makes the long side this long
_ADVICE = "Repair or remove it, or skip broken images (skip_broken, --skip-broken)"


def picture(item: Item, channels: int = 3) -> Image.Image:
    """Reads an image, as torchvision's ``ImageFolder`` does: with PIL, in RGB.

    So EXIF turns nothing, and transparency is dropped.

    Args:
        item: a file, or pixels.
        channels: 3, or 1 for gray: what RGB becomes in PIL's mode L.

    Raises:
        InputError: the file cannot be read, is no image, a damaged one, or one a
            hundred times longer than wide.
    """
    if isinstance(item, str):
        image = _of_file(item)
    else:
        image = Image.fromarray(item)
        image = image if image.mode == "RGB" else image.convert("RGB")
    short, long = sorted(image.size)
    if short * _MOST_RATIO < long:
        raise InputError(
            f"is {image.width} pixels wide and {image.height} high, no photograph",
            path=item if isinstance(item, str) else None,
            advice=_ADVICE,
        )
    return image.convert("L") if channels == 1 else image


def _of_file(path: str) -> Image.Image:
    with open_regular(path, _MOST_BYTES) as file:
        data = file.read()
    quick = _equal_simplejpeg()
    if quick is not None and data[:2] == b"\xff\xd8":
        try:
            height, width, colors, _ = quick.decode_jpeg_header(data)
            known = colors in ("YCbCr", "Gray")
            if known and height * width <= (Image.MAX_IMAGE_PIXELS or 0):
                return Image.fromarray(quick.decode_jpeg(data, "RGB"))
        except ValueError:  # Pillow forgives more, and says better what is wrong
            pass
    try:
        with Image.open(io.BytesIO(data)) as image:
            require_pixels(image)
            if image.mode == "P" and image.has_transparency_data:
                # The same colours; straight to RGB PIL warns.
                return image.convert("RGBA").convert("RGB")
            return image.convert("RGB")
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
