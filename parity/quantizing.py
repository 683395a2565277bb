"""Networks as programs of 8-bit integers, with what that loses."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from parity.errors import InputError
from parity.exporting import configured, require_places
from parity.exports import int8, onnx_format
from parity.exports.facts import Facts
from parity.files.atomic import replacing
from parity.images import load_image, require_photographs
from parity.judging.distance import deviation
from parity.weights.digest import digest
from parity.weights.state import state_dict
from parity.weights.twins import build, require
from resnet_spec import Preprocessing, ResNetConfig, __version__

FORMAT = "resnet-twins loss 1"

SUFFIX = ".loss.json"
"""Behind a program's name: what it loses."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What a program of 8-bit integers loses. It is never equal, and not called so.

    Args:
        images: that it was measured on, of those that it was not calibrated on; if
            there was one only, or none were left, the calibration's.
        agree: of these, for how many it chooses the network's class; ``None`` where
            there are no classes.
        depth: relative error (2-norm) of the maps, by name, from the stem to the end.
        bytes: of the program.
    """

    images: int
    agree: int | None
    depth: Mapping[str, float]
    bytes: int

    def __str__(self) -> str:
        errors = ", ".join(f"{name} {error:.1e}" for name, error in self.depth.items())
        said = f"relative error against depth: {errors}"
        if self.agree is not None:
            said = f"top-1 agrees on {self.agree} of {self.images} images; {said}"
        return f"NOT EQUAL: rounded to 8 bits; {said}"


@dataclass(frozen=True)
class Quantized:
    """A program that was written.

    Args:
        path: of the program.
        told: of the file that says what it loses.
        loss: what it loses.
    """

    path: Path
    told: Path
    loss: Loss


def quantize(
    model: Any,
    path: str | os.PathLike[str],
    images: np.ndarray,
    *,
    calibrate: int = 100,
    preprocessing: Preprocessing | None = None,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda what: None,
) -> Quantized:
    """Writes a network as an ONNX program of 8-bit integers, and says what it loses.

    ONNX Runtime's own tools quantise it statically. What is lost is measured on images
    that it was not calibrated on, against the network in float32, and written beside
    it, ``PATH.loss.json``. No gate passes such a program, and none is asked.

    Args:
        model: either twin, not fused, or a pair of configuration and state.
        path: the file, ``.onnx``.
        images: float32 (n, c, h, w), or pixels, uint8 (n, h, w, 3), if the
            preprocessing goes in: such as the network is for.
        calibrate: how many of them the ranges are taken from, at most half of them.
        preprocessing: whose mean and std go in.
        overwrite: replace files that are there.
        progress: told in words what is about to be done.

    Raises:
        InputError: the file's name is no ONNX program's.
        ModuleNotFoundError: ONNX, ONNX Runtime or torch is not installed.
        OutputError: the file is there, or cannot be written.
        ValueError: these are no images that the network takes.
    """
    require("torch", *onnx_format.NEEDS)
    config, state = configured(model)
    path = Path(path)
    require_places(path, config, "onnx", beside=SUFFIX, overwrite=overwrite)
    images = np.asarray(images)
    wanted = np.uint8 if preprocessing is not None else np.float32
    if images.ndim != 4 or not len(images) or images.dtype != wanted:
        raise ValueError(
            f"the images are {images.dtype} of shape {images.shape}; quantize takes "
            f"{np.dtype(wanted)}, four axes"
        )
    first = min(calibrate, max(len(images) // 2, 1))
    facts = Facts(
        container="onnx",
        config=config,
        dtype="int8",
        weights=digest(state),
        preprocessing=preprocessing,
        versions={
            "resnet-twins": __version__,
            **{name: version(name) for name in ("onnx", "onnxruntime")},
        },
    )
    told = path.with_name(f"{path.name}{SUFFIX}")
    with ExitStack() as stack:
        files = [stack.enter_context(replacing(p, overwrite)) for p in (path, told)]
        progress("folding batch norms")
        import resnet_torch

        folded = state_dict(resnet_torch.fuse(build("torch", config, dict(state))))
        progress(f"calibrating on {first} images")
        data = int8.quantized(facts, folded, [x[None] for x in images[:first]])
        rest = images[first:] if len(images) > first else images
        progress(f"measuring on {len(rest)} images")
        loss = _loss(facts, folded, data, rest)
        files[0].write_bytes(data)
        about = {
            "format": FORMAT,
            "program": path.name,
            "sha256": hashlib.sha256(data).hexdigest(),
            "calibrated_on": first,
            "facts": json.loads(facts.to_json()),
            "loss": asdict(loss),
        }
        files[1].write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return Quantized(path, told, loss)


MOST = 400
"""Photographs that are read, at most."""

_KINDS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def photographs(
    folder: str | os.PathLike[str],
    config: ResNetConfig,
    how: Preprocessing,
    *,
    pixels: bool = False,
) -> np.ndarray:
    """Reads photographs, as :func:`quantize` takes them.

    Args:
        folder: in which they lie, or in folders of which.
        config: the network that they are for.
        how: its preprocessing.
        pixels: whether mean and std go into the program.

    Returns:
        float32 (n, 3, h, w); or pixels, uint8 (n, h, w, 3).

    Raises:
        InputError: there are none, or one is no image.
        ValueError: the network takes no photographs.
    """
    files = photographs_in(folder, config)
    if not pixels:
        return np.concatenate([load_image(file, how) for file in files])
    plain = replace(how, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    found = np.concatenate([load_image(file, plain) for file in files])
    return np.rint(found).astype(np.uint8).transpose(0, 2, 3, 1).copy()


def photographs_in(
    folder: str | os.PathLike[str], config: ResNetConfig
) -> Sequence[Path]:
    """Returns the files of a folder that :func:`photographs` reads.

    Args:
        folder: in which they lie, or in folders of which.
        config: the network that they are for.

    Raises:
        InputError: there are none.
        ValueError: the network takes no photographs.
    """
    require_photographs(config, folder)
    files = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in _KINDS)
    if not files:
        raise InputError(
            "has no photographs",
            path=folder,
            advice=f"Name a folder of files that end in {', '.join(_KINDS)}",
        )
    return files[:: -(-len(files) // MOST)]  # of every class, if each has a folder


def _loss(
    facts: Facts,
    folded: Mapping[str, np.ndarray],
    data: bytes,
    images: np.ndarray,
) -> Loss:
    names, plain, rounded = int8.taps_of(facts, folded, data)
    errors: dict[str, list[float]] = {name: [] for name in names}
    agree = 0
    for image in images:
        pair = plain(image[None]), rounded(image[None])
        for name, expected, found in zip(names, *pair, strict=True):
            errors[name].append(deviation(found, expected).l2)
        agree += int(pair[0][-1].argmax() == pair[1][-1].argmax())
    return Loss(
        images=len(images),
        agree=agree if facts.config.include_top else None,
        depth={name: float(np.median(found)) for name, found in errors.items()},
        bytes=len(data),
    )
