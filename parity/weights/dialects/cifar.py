"""The CIFAR networks of two repositories that many others were made from."""

from __future__ import annotations

from itertools import accumulate

from parity.weights.dialects.dialect import Dialect, Order
from parity.weights.dialects.leaves import TORCH
from parity.weights.dialects.places import Place
from resnet_spec import ResNetConfig


def path(place: Place) -> str:
    """Returns a layer's path."""
    if place.part == "head":
        return "linear"
    return place.own.replace("downsample", "shortcut")


KUANGLIU = Dialect(
    name="kuangliu",
    what="the CIFAR networks of kuangliu/pytorch-cifar",
    path=path,
    leaves=TORCH,
    formats=("pth",),
    only={"stem": ("3x3",)},
)


def channels(widths: tuple[int, ...]) -> list[list[int]]:
    """Returns for every stage where its channels stand in the twins'.

    Theirs pads half of the new channels before, half of them after; option A here has
    them all behind.
    """

    def pad(before: list[int], width: int) -> list[int]:
        first = (width - len(before)) // 2
        inner = [channel + first for channel in before]
        return inner + sorted(set(range(width)) - set(inner))

    start = list(range(widths[0]))
    return [*accumulate(widths[1:], pad, initial=start)]


def order(config: ResNetConfig, name: str) -> Order:
    """Returns in which order the twins take an entry's rows, and its columns."""
    if name.startswith("fc."):
        columns = channels(config.widths)[-1] if name == "fc.weight" else None
        return None, columns
    stage, _, rest = name.partition(".")
    if not stage.startswith("layer"):
        return None, None
    block, layer, leaf = rest.split(".")
    at = int(stage[5:]) - 1
    of_stage = channels(config.widths)
    if layer == "conv1":
        return None, of_stage[max(at - 1, 0) if block == "0" else at]
    if layer == "conv2" or (layer == "bn2" and leaf != "num_batches_tracked"):
        return of_stage[at], None
    return None, None


AKAMASTER = Dialect(
    name="akamaster",
    what="akamaster/pytorch_resnet_cifar10, whose shortcut A pads on both sides",
    path=path,
    leaves=TORCH,
    formats=("pth",),
    only={"block": ("basic",), "stem": ("3x3",), "shortcut": ("A",)},
    order=order,
)
