"""Which preprocessing weights have: by their name, or by what lies beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from math import floor, nextafter
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from parity.errors import CheckpointError
from parity.files.hub import fetch_beside
from parity.files.hub_address import is_remote, parse
from parity.files.hub_config import NAME, PREPROCESSOR, describes, read_config
from parity.files.safetensors_format import own_facts
from parity.images import name_of, prepare, require_photographs, seen
from resnet_spec import (
    Preprocessing,
    ResNetConfig,
    TrainingRecipe,
    find_name,
    get_timm_weights,
    get_weights,
    is_published,
    is_timm,
    list_weights,
    published_file,
    resolve,
)
from resnet_spec.printable import plain


def preprocess(
    image: str | os.PathLike[str] | Image.Image,
    name: str | ResNetConfig = "resnet50",
    weights: str | os.PathLike[str] | None = "DEFAULT",
    *,
    framework: Literal["numpy", "torch", "flax"] = "numpy",
) -> Any:
    """Makes what goes into a network of a photograph.

    It is turned as its EXIF says, what is transparent becomes white, and gray of 16
    bits is scaled to 8; the rest is torchvision's, or timm's, bit for bit.

    Args:
        image: a file that PIL opens, or an image of PIL's.
        name: of the network, or its configuration.
        weights: whose preprocessing is wanted: a name of torchvision's or timm's, or
            weights beside which a ``preprocessor_config.json`` or timm's
            ``config.json`` says it, in a folder or on the Hub; with anything else, or
            ``"DEFAULT"`` where torchvision publishes none, as for timm's networks, that
            of torchvision's first ones (short side to 256, centre crop 224).
        framework: whose array it shall be.

    Returns:
        float32 of shape (1, 3, h, w); (1, h, w, 3) for ``"flax"``.

    Raises:
        DownloadError: what describes weights on the Hub cannot be had.
        ValueError: the file is no image, or one whose white or shape no photograph has;
            no weights have this name, or theirs is no preprocessing known here; or the
            network takes no photographs.
    """
    config = resolve(name)
    if framework not in ("numpy", "torch", "flax"):
        raise ValueError(
            f"framework is {framework!r}; it must be 'numpy', 'torch' or 'flax'"
        )
    is_open = isinstance(image, Image.Image)
    require_photographs(config, name_of(image) if is_open else image)
    picture = seen(image)  # before anything is fetched for it
    chosen = None if weights is None else preprocessing_for(config, weights)
    pixels = prepare(picture, **vars(chosen or Preprocessing()))
    if framework == "torch":
        import torch

        return torch.from_numpy(pixels)
    if framework == "flax":
        import jax.numpy as jnp

        return jnp.asarray(pixels.transpose(0, 2, 3, 1))
    return pixels


def preprocessing_for(
    config: ResNetConfig, weights: str | os.PathLike[str]
) -> Preprocessing | None:
    """Returns the preprocessing of a network's weights; ``None`` if nothing tells it.

    Args:
        config: the network.
        weights: as :func:`preprocess` takes them.

    Raises:
        CheckpointError: what is beside them tells one that is not known here.
        DownloadError: what describes weights on the Hub cannot be had.
        ValueError: there are none of this name for the network.
    """
    if weights == "random":
        return None
    if isinstance(weights, str) and is_published(weights):
        return _published(config, weights)
    if isinstance(weights, str) and is_timm(weights):
        return get_timm_weights(weights, config).preprocessing
    return preprocessing_of(weights)


def _published(config: ResNetConfig, weights: str) -> Preprocessing | None:
    """Returns what weights of torchvision's have; ``None`` where it has no default."""
    # Neither the classes nor the stride matter to photographs.
    like = config.replace(num_classes=1000, replace_stride_with_dilation=())
    name = find_name(like.as_function())
    if weights == "DEFAULT" and not list_weights(name or ""):
        return None
    return get_weights(like, weights).preprocessing


def preprocessing_of(weights: str | os.PathLike[str]) -> Preprocessing | None:
    """Returns the preprocessing of weights; ``None`` if nothing tells it.

    Args:
        weights: a path, ``hf://owner/name``, or a name of timm's. A run's checkpoint
            knows its own.

    Raises:
        CheckpointError: what is beside them tells one that is not known here.
        DownloadError: what describes weights on the Hub cannot be had.
        ValueError: there is no such name.
    """
    if isinstance(weights, str) and is_timm(weights):
        return get_timm_weights(weights).preprocessing
    if is_remote(weights):
        folder = fetch_beside(parse(os.fspath(weights)))
        return None if folder is None else _told(folder)
    path = Path(weights)
    if path.is_dir():
        return _told(path)
    if (training := own_facts(path).get("training")) is not None:
        try:
            return TrainingRecipe.of(training.get("recipe")).preprocessing
        except ValueError as error:
            raise CheckpointError(
                f"the recipe in its metadata is not understood ({error})",
                path=path,
                advice="Preprocess the image yourself",
            ) from error
    if describes(path):
        return _told(path.parent)
    published = published_file(path.name)
    return None if published is None else published.preprocessing


_ODD = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What reading something malformed raises."""


def _told(folder: Path) -> Preprocessing | None:
    """Returns what is told in a folder."""
    for name, read in ((PREPROCESSOR, of_transformers), (NAME, of_timm)):
        told = read_config(folder, name)
        try:
            found = read(told)
        except _ODD as error:
            raise CheckpointError(
                f"its preprocessing is not understood ({plain(str(error), most=200)})",
                path=folder / name,
                advice="Preprocess the image yourself, or move that file away to have "
                "torchvision's",
            ) from error
        if found is not None:
            return found
    return None


def of_timm(told: Mapping[str, Any]) -> Preprocessing | None:
    """Returns what timm's config.json tells; ``None`` if it is not timm's.

    Raises:
        ValueError: it cannot be had here; others where it is malformed.
    """
    told = told.get("pretrained_cfg", told) if "architecture" in told else {}
    if "input_size" not in told:
        return None
    _, side, width = told.get("test_input_size") or told["input_size"]
    share = (told.get("test_crop_pct") or told.get("crop_pct")) or 0.875
    mode = told.get("crop_mode", "center")
    squeezed = mode == "squash" and share == 1
    if side != width or not (mode == "center" or squeezed):
        raise ValueError("it is cut to no square, or not from the centre")
    return Preprocessing(
        resize=None if squeezed else floor(side / share),
        crop=side,
        interpolation=told.get("interpolation", "bicubic"),
        mean=tuple(told["mean"]),
        std=tuple(told["std"]),
    )


def for_timm(preprocessing: Preprocessing) -> dict[str, Any]:
    """Returns what timm's config.json tells of it."""
    resize = preprocessing.resize or preprocessing.crop
    share = preprocessing.crop / resize
    while floor(preprocessing.crop / share) < resize:
        share = nextafter(share, 0)  # the division was rounded up
    return {
        "input_size": [3, preprocessing.crop, preprocessing.crop],
        "interpolation": preprocessing.interpolation,
        "crop_pct": share,
        "crop_mode": "center" if preprocessing.resize else "squash",
        "mean": preprocessing.mean,
        "std": preprocessing.std,
    }


def of_transformers(told: Mapping[str, Any]) -> Preprocessing | None:
    """Returns what a preprocessor_config.json tells; ``None`` if there is none.

    Raises:
        ValueError: it cannot be had here; others where it is malformed.
    """
    if not told:
        return None
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not told.get(step, True):
            raise ValueError(f"{step} is {told[step]!r}")
    if abs(told.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise ValueError(f"rescale_factor is {told['rescale_factor']!r}")
    kind = told.get("image_processor_type") or told.get("feature_extractor_type") or ""
    size: Any = told["size"]
    plain = isinstance(size, int)
    resize: Any = size if plain else size.get("shortest_edge")
    if resize is None and not told.get("do_center_crop", False):
        sides = {size["height"], size["width"]}
        if len(sides) == 1:
            return _of_transformers(told, None, sides.pop())
    if resize is None or ("ViT" in kind and plain):
        raise ValueError(f"size is {size!r}: it keeps no proportions")
    if "ConvNext" in kind:
        crop = resize
        if crop >= 384:  # there it is squeezed to a square
            raise ValueError(f"size is {size!r}: it keeps no proportions")
        resize = int(crop / told.get("crop_pct", 224 / 256))
    else:
        if not told.get("do_center_crop", False):
            raise ValueError("do_center_crop is false")
        crop = told["crop_size"]
        if not isinstance(crop, int):
            if crop["height"] != crop["width"]:
                raise ValueError(f"crop_size is {crop!r}")
            crop = crop["height"]
    return _of_transformers(told, resize, crop)


def _of_transformers(
    told: Mapping[str, Any], resize: int | None, crop: int
) -> Preprocessing:
    return Preprocessing(
        resize=resize,
        crop=crop,
        interpolation=_OF_PIL[told["resample"]],
        mean=tuple(told["image_mean"]),
        std=tuple(told["image_std"]),
    )


_OF_PIL: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}


def for_transformers(preprocessing: Preprocessing) -> str:
    """Returns the preprocessor_config.json that transformers opens.

    Bit's processor has the sizes of both steps in it, to the pixel.
    """
    (resample,) = (n for n, k in _OF_PIL.items() if k == preprocessing.interpolation)
    square = dict.fromkeys(("height", "width"), preprocessing.crop)
    told = {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": preprocessing.resize}
        if preprocessing.resize
        else square,
        "resample": resample,
        "do_center_crop": preprocessing.resize is not None,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": preprocessing.mean,
        "image_std": preprocessing.std,
    }
    return json.dumps(told, indent=2)
