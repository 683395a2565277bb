"""The weights that torchvision publishes, and the preprocessing that belongs to them.

Source: torchvision's model documentation (acc@1 on ImageNet-1K, single crop). A file's
name carries the first eight hexadecimal digits of the sha256 of its content.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from resnet_spec.config import ResNetConfig
from resnet_spec.preprocessing import Preprocessing
from resnet_spec.settings import shown
from resnet_spec.variants import describe, find_name


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """One published checkpoint.

    Args:
        model: name of the network that it fills.
        name: torchvision's name of the weights, such as ``IMAGENET1K_V1``.
        sha256: leading hexadecimal digits of the sha256 of the file.
        resize: the short side that images are resized to, in pixels.
        crop: side of the centre crop, in pixels.
        top1: accuracy on ImageNet-1K, in percent.
    """

    model: str
    name: str
    sha256: str
    resize: int
    crop: int = 224
    top1: float

    @property
    def filename(self) -> str:
        """Name of the published file."""
        return f"{self.model}-{self.sha256}.pth"

    @property
    def preprocessing(self) -> Preprocessing:
        """What is done to a photograph for it."""
        return Preprocessing(resize=self.resize, crop=self.crop)


# fmt: off
_WEIGHTS: dict[tuple[str, str], PublishedWeights] = {
    (model, name): PublishedWeights(
        model=model, name=name, sha256=sha256, resize=resize, top1=top1
    )
    for model, name, sha256, resize, top1 in (
        ("resnet18",         "IMAGENET1K_V1", "f37072fd", 256, 69.758),
        ("resnet34",         "IMAGENET1K_V1", "b627a593", 256, 73.314),
        ("resnet50",         "IMAGENET1K_V1", "0676ba61", 256, 76.130),
        ("resnet50",         "IMAGENET1K_V2", "11ad3fa6", 232, 80.858),
        ("resnet101",        "IMAGENET1K_V1", "63fe2227", 256, 77.374),
        ("resnet101",        "IMAGENET1K_V2", "cd907fc2", 232, 81.886),
        ("resnet152",        "IMAGENET1K_V1", "394f9c45", 256, 78.312),
        ("resnet152",        "IMAGENET1K_V2", "f82ba261", 232, 82.284),
        ("resnext50_32x4d",  "IMAGENET1K_V1", "7cdf4587", 256, 77.618),
        ("resnext50_32x4d",  "IMAGENET1K_V2", "1a0047aa", 232, 81.198),
        ("resnext101_32x8d", "IMAGENET1K_V1", "8ba56ff5", 256, 79.312),
        ("resnext101_32x8d", "IMAGENET1K_V2", "110c445d", 232, 82.834),
        ("resnext101_64x4d", "IMAGENET1K_V1", "173b62eb", 232, 83.246),
        ("wide_resnet50_2",  "IMAGENET1K_V1", "95faca4d", 256, 78.468),
        ("wide_resnet50_2",  "IMAGENET1K_V2", "9ba9bcbe", 232, 81.602),
        ("wide_resnet101_2", "IMAGENET1K_V1", "32ee1156", 256, 78.848),
        ("wide_resnet101_2", "IMAGENET1K_V2", "d733dc28", 232, 82.510),
    )
}
# fmt: on


def list_weights(model: str) -> list[str]:
    """Returns the names of the weights published for a network, oldest first."""
    return [name for of, name in _WEIGHTS if of == model]


def is_published(name: str) -> bool:
    """Whether this is how published weights are named, and not a file or a word."""
    return name == "DEFAULT" or name.startswith("IMAGENET")


def get_weights(model: str | ResNetConfig, name: str) -> PublishedWeights:
    """Returns the published weights of a network; ``DEFAULT`` is the newest.

    Args:
        model: a network's name, or its configuration.
        name: of the weights.

    Raises:
        ValueError: none are published under this name; the message lists them.
    """
    if not isinstance(model, str):
        model = find_name(model.as_function()) or describe(model)
    names = list_weights(model)
    if name == "DEFAULT" and names:
        name = names[-1]
    if name not in names:
        known = ", ".join(names) or "none"
        raise ValueError(
            f"no published weights {shown(name)} for {model}; there are: {known}"
        )
    return _WEIGHTS[model, name]


def published_file(filename: str) -> PublishedWeights | None:
    """Returns the weights that are published as a file of this name, if any are."""
    rows = _WEIGHTS.values()
    return next((row for row in rows if row.filename == filename), None)


def published_sha256(filename: str) -> str | None:
    """Returns the sha256 prefix of the published file of this name, if there is one."""
    found = published_file(filename)
    return None if found is None else found.sha256


@cache
def class_names() -> tuple[str, ...]:
    """Returns the 1000 ImageNet class names, in the order of the logits."""
    text = files("resnet_spec").joinpath("imagenet_classes.txt").read_text("utf-8")
    return tuple(text.splitlines())
