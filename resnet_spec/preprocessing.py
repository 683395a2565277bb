"""From a photograph to a network's input, as a set of weights was tested with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_MOST_PIXELS = 2**12  # of a side; what a stranger's file says must not fill the memory


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What is done to a photograph: resized, cut to a square, normalised.

    Args:
        resize: the short side that it is resized to, in pixels; ``None``: it is
            squeezed into the square.
        crop: side of the centre crop, in pixels.
        interpolation: of the resizing, as PIL has it.
        mean: of red, green and blue, which is subtracted; white is 1.
        std: that it is divided by.

    Raises:
        ValueError: the crop does not fit, or a value is none that a photograph has.
    """

    resize: int | None = 256
    crop: int = 224
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        resize = self.crop if self.resize is None else self.resize
        for name, value in (("resize", resize), ("crop", self.crop)):
            if not isinstance(value, int):
                raise ValueError(f"{name} is {value!r}, no whole number")
        if not 0 < self.crop <= resize:
            raise ValueError(
                f"crop is {self.crop}; it must be at most resize, {resize}"
            )
        if resize > _MOST_PIXELS:
            raise ValueError(f"resize is {resize}; it must be at most {_MOST_PIXELS}")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(
                f"interpolation is {self.interpolation!r}; it must be 'bilinear' or "
                "'bicubic'"
            )
        for name, low in (("mean", -256), ("std", 1e-6)):
            value = getattr(self, name)
            if len(value) != 3 or not all(low <= one <= 256 for one in value):
                raise ValueError(f"{name} is {value}; it must be three numbers")
