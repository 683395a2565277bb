"""The table of a network's layers: shapes, kernels, parameters, multiply-adds."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from parity.running import network
from parity.weights.names import Shape
from parity.weights.state import entries


@dataclass(frozen=True)
class Layer:
    """One call of one layer, for one image.

    Args:
        name: its path, with ``@2`` for its second call.
        kind: its class.
        input: shape of what it is given, (c, h, w).
        output: shape of what it returns.
        kernel: shape of its weight in torch's layout: out, in per group, h, w.
        stride: in pixels, both ways.
        padding: in pixels, left and right; above and below too, if the kernel is high;
            or ``"SAME"``, which is as many as the map's size asks for.
        projection: whether it is part of a shortcut.
        parameters: how many it learns; counted at its first call.
        multiply_adds: of a convolution or linear layer; others are not counted.
    """

    name: str
    kind: str
    input: Shape
    output: Shape
    kernel: Shape | None
    stride: int | None
    padding: int | str | None
    projection: bool
    parameters: int
    multiply_adds: int


def layers(model: Any, shape: tuple[int, int, int]) -> list[Layer]:
    """Lists the layers of either twin in the order of computation.

    Args:
        model: a torch or Flax NNX module; one without data is enough, and stays so.
        shape: of an image, (c, h, w).
    """
    shapes = {name: entry.shape for name, entry in entries(model).items()}
    found = []
    # Two images, so that a batch norm in training mode has enough to go on.
    for call in network.calls(model, (2, *shape)):
        path = call.tap.partition("@")[0]
        weight, bias = (shapes.get(f"{path}.{leaf}") for leaf in ("weight", "bias"))
        kernel = weight if weight is not None and len(weight) > 1 else None
        first = path == call.tap
        learned = sum(prod(s) for s in (weight, bias) if s is not None and first)
        positions = prod(call.output[1:])
        found.append(
            Layer(
                name=call.tap,
                kind=call.kind,
                input=call.input,
                output=call.output,
                kernel=kernel,
                stride=call.stride,
                padding=call.padding,
                projection="downsample" in path.split("."),
                parameters=learned,
                multiply_adds=prod(kernel) * positions if kernel is not None else 0,
            )
        )
    return found
