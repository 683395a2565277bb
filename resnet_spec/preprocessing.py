"""From a photograph to a network's input, as a set of weights was tested with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resnet_spec.settings import Settings, is_count

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_MOST_PIXELS = 2**12  # of a side; what a stranger's file says must not fill the memory


@dataclass(frozen=True, kw_only=True)
class Preprocessing(Settings):
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
        super().__post_init__()
        sides = f"a whole number of pixels, {_MOST_PIXELS} at most"
        resize = self.crop if self.resize is None else self.resize
        for name, value in (("resize", resize), ("crop", self.crop)):
            self._check(name, is_count(value) and value <= _MOST_PIXELS, sides)
        self._check("crop", self.crop <= resize, f"at most resize, {resize}")
        known = self.interpolation in ("bilinear", "bicubic")
        self._check("interpolation", known, "'bilinear' or 'bicubic'")
        for name, low in (("mean", -256), ("std", 1e-6)):
            value = getattr(self, name)
            fits = isinstance(value, tuple) and len(value) == 3
            fits = fits and all(
                isinstance(one, int | float) and low <= one <= 256 for one in value
            )
            self._check(name, fits, f"three numbers from {low:g} to 256")
