"""From a photograph to the network's input, the way torchvision's presets go."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from resnet_spec import (
    PublishedWeights,
    ResNetConfig,
    describe,
    get_weights,
    is_published,
    resolve,
)

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

Size = tuple[int, int]


def preprocess(
    image: str | os.PathLike[str] | Image.Image,
    name: str | ResNetConfig = "resnet50",
    weights: str | os.PathLike[str] | None = "DEFAULT",
    *,
    framework: Literal["numpy", "torch", "flax"] = "numpy",
) -> Any:
    """Makes what goes into a network of a photograph.

    Args:
        image: a file that PIL opens, or an image of PIL's.
        name: of the network, or its configuration.
        weights: whose preprocessing is wanted: a published name; with anything else
            that of torchvision's first ones (short side to 256, centre crop 224).
        framework: whose array it shall be.

    Returns:
        float32 of shape (1, 3, h, w); (1, h, w, 3) for ``"flax"``.

    Raises:
        ValueError: the file is no image, no weights have this name, or the network
            takes no photographs.
    """
    config = resolve(name)
    if framework not in ("numpy", "torch", "flax"):
        raise ValueError(
            f"framework is {framework!r}; it must be 'numpy', 'torch' or 'flax'"
        )
    published = None
    if isinstance(weights, str) and is_published(weights):
        published = get_weights(config, weights)
    where = (
        image.info.get("filename", "image") if isinstance(image, Image.Image) else image
    )
    require_photographs(config, where)
    if isinstance(image, Image.Image):
        pixels = _preset(image.convert("RGB"), published)
    else:
        pixels = load_image(image, published)
    if framework == "torch":
        import torch

        return torch.from_numpy(pixels)
    if framework == "flax":
        import jax.numpy as jnp

        return jnp.asarray(pixels.transpose(0, 2, 3, 1))
    return pixels


def load_image(
    path: str | os.PathLike[str], weights: PublishedWeights | None = None
) -> np.ndarray:
    """Reads and preprocesses a photograph.

    Args:
        path: any image that PIL opens.
        weights: the published weights whose preprocessing is wanted; without any, that
            of torchvision's first ones: short side to 256, centre crop 224.

    Returns:
        float32 of shape (1, 3, 224, 224); bit for bit what torchvision's preset
        computes from the same PIL image in RGB.

    Raises:
        ValueError: the file is missing or no image.
    """
    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
    except UnidentifiedImageError as error:
        raise ValueError(f"{Path(path)}: is no image that PIL can read") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{Path(path)}: is too large ({error})") from error
    except OSError as error:
        raise ValueError(
            f"{Path(path)}: cannot be read ({error.strerror or error})"
        ) from error
    return _preset(rgb, weights)


def _preset(rgb: Image.Image, weights: PublishedWeights | None) -> np.ndarray:
    if weights is None:
        return prepare(rgb)
    return prepare(rgb, resize=weights.resize, crop=weights.crop)


def prepare(image: Image.Image, *, resize: int = 256, crop: int = 224) -> np.ndarray:
    """Resizes the short side, crops the centre, scales to [0, 1] and normalises.

    Args:
        image: in RGB.
        resize: the short side, in pixels; bilinear, antialiased as PIL always does.
        crop: side of the square, in pixels; not above the short side.

    Returns:
        float32 of shape (1, 3, crop, crop).

    Raises:
        ValueError: the crop does not fit.
    """
    if crop > resize:
        raise ValueError(f"crop is {crop}; it must be at most resize, {resize}")
    width, height = image.size
    short = min(width, height)
    if short != resize:
        # torchvision truncates the long side.
        size = (int(resize * width / short), int(resize * height / short))
        image = image.resize(size, Image.Resampling.BILINEAR)
    width, height = image.size
    left, top = round((width - crop) / 2), round((height - crop) / 2)
    image = image.crop((left, top, left + crop, top + crop))
    pixels = np.asarray(image, np.float32).transpose(2, 0, 1)
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (MEAN, STD))
    # In float32 and in this order: x/255, then -mean, then /std. No two steps commute.
    normal = (pixels / np.float32(255) - mean) / std
    return np.ascontiguousarray(normal)[None]


def random_images(shape: tuple[int, int, int, int], *, seed: int) -> np.ndarray:
    """Draws normal images of shape (n, c, h, w), float32."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def photograph(
    path: Path, config: ResNetConfig, weights: PublishedWeights | None = None
) -> np.ndarray:
    """Does what :func:`load_image` does, for a network that takes photographs.

    Raises:
        ValueError: the network takes no photographs.
    """
    require_photographs(config, path)
    return load_image(path, weights)


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
