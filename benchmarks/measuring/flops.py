"""How many floating-point operations a case takes, counted from the architecture."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

from benchmarks.plans.cases import Task
from resnet_spec import ResNetConfig


@cache
def _multiply_adds(config: ResNetConfig, size: tuple[int, int]) -> list[int]:
    """Counts one image's, layer by layer."""
    import parity
    from parity.weights.twins import ABSTRACT

    framework = "torch" if find_spec("torch") is not None else "flax"
    layers = parity.layers(ABSTRACT[framework](config), (config.in_channels, *size))
    return [layer.multiply_adds for layer in layers if layer.multiply_adds]


def flops(config: ResNetConfig, task: Task, batch: int, size: tuple[int, int]) -> int:
    """Counts a repetition's operations in convolutions and linear layers.

    A multiply-add is two. Backwards each layer takes as many again for the gradient by
    its input and as many for that by its weight; the images need no gradient.

    Args:
        config: the network.
        task: what is done with it.
        batch: images.
        size: their height and width.
    """
    counts = _multiply_adds(config, size)
    forward = 2 * batch * sum(counts)
    if task == "inference":
        return forward
    return 3 * forward - 2 * batch * counts[0]
