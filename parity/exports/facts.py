"""What an exported program says of itself, and which images it takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np

from parity.errors import InputError
from resnet_spec import Preprocessing, ResNetConfig

FORMAT = "resnet-twins program 1"

KEY = "resnet-twins"
"""Under which a container has them."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a program is.

    Args:
        container: ``"onnx"``, ``"stablehlo"`` or ``"torch-export"``.
        config: the network.
        dtype: of its weights.
        weights: sha256 of these, as :func:`parity.digest_of` has it.
        preprocessing: whose mean and std are inside, if any.
        versions: of what wrote it.
    """

    container: str
    config: ResNetConfig
    dtype: str
    weights: str
    preprocessing: Preprocessing | None
    versions: Mapping[str, str]

    def to_json(self) -> str:
        """Returns them as a JSON object."""
        return json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes | None) -> Facts:
        """Returns the facts that :meth:`to_json` wrote.

        Raises:
            InputError: the text is none, or something else.
        """
        try:
            told = json.loads(text or "null")
            if not isinstance(told, dict) or told.pop("format", None) != FORMAT:
                raise ValueError(f"it does not say {FORMAT!r}")
            config = ResNetConfig.from_json(json.dumps(told.pop("config")))
            how = told.pop("preprocessing")
            if how is not None:
                pair = {name: tuple(how[name]) for name in ("mean", "std")}
                how = Preprocessing(**(how | pair))
            return cls(config=config, preprocessing=how, **told)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(
                f"is no program of this project ({error})",
                advice="resnet-twins export writes one",
            ) from error


@dataclass(frozen=True)
class Program:
    """An exported program, loaded by its own runtime: a function of images.

    Args:
        facts: what it says of itself.
        run: what the runtime calls, in the program's own layout.
        channels_last: whether its images are (n, h, w, c).
    """

    facts: Facts
    run: Callable[[np.ndarray], np.ndarray]
    channels_last: bool = False

    @property
    def takes_pixels(self) -> bool:
        """Whether it normalises by itself."""
        return self.facts.preprocessing is not None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Computes the logits, or the last stage's map if there is no top.

        Args:
            images: floats of shape (n, c, h, w), whatever the program's own layout is;
                pixels, uint8 of shape (n, h, w, 3), if it normalises by itself.

        Returns:
            float32 in torch's layout, (n, classes).

        Raises:
            ValueError: these are no images that it takes.
        """
        images = np.asarray(images)
        channels = self.facts.config.in_channels
        if self.takes_pixels:
            wanted, axis, kinds = f"uint8 of shape (n, h, w, {channels})", 3, ("u1",)
        else:
            wanted, axis = f"floats of shape (n, {channels}, h, w)", 1
            kinds = ("f4", "f8", "f2")
        fits = images.ndim == 4 and images.shape[axis] == channels and images.size
        if not fits or images.dtype.str[1:] not in kinds:
            raise ValueError(
                f"the images are {images.dtype} of shape {images.shape}; the program "
                f"takes {wanted}"
            )
        if self.takes_pixels:
            self.facts.config.check_size(*images.shape[1:3])
        else:
            self.facts.config.check_size(*images.shape[2:])
            images = images.astype(np.float32)
            images = images.transpose(0, 2, 3, 1) if self.channels_last else images
        found = self.run(np.ascontiguousarray(images))
        turned = self.channels_last and found.ndim == 4
        return found.transpose(0, 3, 1, 2) if turned else found


@dataclass(frozen=True)
class Free:
    """Sides that a traced program takes: multiples of so many pixels.

    Args:
        step: pixels.
        least: of these steps.
    """

    step: int
    least: int


def free_sizes(config: ResNetConfig) -> Free | None:
    """Returns what sides a tracer can leave open; ``None`` where the head fixes them.

    A map of one pixel would be another program to it. Where two ways round a map's size
    differently, it sees that they agree only for what divides evenly.
    """
    if config.include_top and config.head != "linear":
        return None
    stride = config.output_stride
    if config.anti_alias == "average" or config.shortcut == "A":
        return Free(stride, 2)
    return Free(1, stride + 1)
