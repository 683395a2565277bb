"""A ResNet in Flax as people write it: names of its own, nnx's own layers.

With ``padding="SAME"``, Flax's default, it is the well-known mistake: at stride 2 on
even sizes SAME pads one-sidedly, and torch never does.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

MAPPING = {
    "conv1": "stem.conv",
    "bn1": "stem.norm",
    **{f"layer{i + 1}": f"stages.{i}" for i in range(4)},
    **{
        f"layer{i + 1}.0.{torch}": f"stages.{i}.0.{ours}"
        for i in range(4)
        for torch, ours in {
            "conv1": "conv_a",
            "bn1": "norm_a",
            "conv2": "conv_b",
            "bn2": "norm_b",
            "downsample.0": "conv_skip",
            "downsample.1": "norm_skip",
        }.items()
        if i > 0 or "downsample" not in torch
    },
    "fc": "classifier",
}


class Stem(nnx.Module):
    def __init__(self, conv: Any, norm: Any) -> None:
        self.conv = conv(3, 64, 7, 2)
        self.norm = norm(64)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.conv(x)))
        return nnx.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))  # type: ignore


class Block(nnx.Module):
    def __init__(self, conv: Any, norm: Any, inner: int, outer: int, stride: int):
        self.conv_a = conv(inner, outer, 3, stride)
        self.norm_a = norm(outer)
        self.conv_b = conv(outer, outer, 3, 1)
        self.norm_b = norm(outer)
        self.conv_skip = conv(inner, outer, 1, stride) if stride > 1 else None
        self.norm_skip = norm(outer) if stride > 1 else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.norm_a(self.conv_a(x)))
        y = self.norm_b(self.conv_b(y))
        if self.conv_skip is not None and self.norm_skip is not None:
            x = self.norm_skip(self.conv_skip(x))
        return nnx.relu(x + y)


class Sequential(nnx.Module):
    def __init__(self, *layers: nnx.Module) -> None:
        for index, layer in enumerate(layers):
            setattr(self, str(index), layer)
        self.length = len(layers)

    def __call__(self, x: jax.Array) -> jax.Array:
        for index in range(self.length):
            x = getattr(self, str(index))(x)
        return x


class HandMade(nnx.Module):
    """resnet10: the widths of resnet18 with one block a stage."""

    def __init__(self, *, same: bool, classes: int) -> None:
        rngs = nnx.Rngs(0)

        def conv(inner: int, outer: int, size: int, stride: int) -> nnx.Conv:
            side = (size - 1) // 2
            explicit = ((side, side),) * 2
            return nnx.Conv(
                inner,
                outer,
                (size, size),
                strides=(stride, stride),
                padding="SAME" if same else explicit,
                use_bias=False,
                rngs=rngs,
            )

        norm = partial(nnx.BatchNorm, momentum=0.9, epsilon=1e-5, rngs=rngs)
        widths = (64, 64, 128, 256, 512)
        self.stem = Stem(conv, norm)
        self.stages = Sequential(
            *(
                Sequential(Block(conv, norm, widths[i], widths[i + 1], 1 + (i > 0)))
                for i in range(4)
            )
        )
        self.classifier = nnx.Linear(512, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.classifier(self.stages(self.stem(x)).mean((1, 2)))


def convolve(x: jax.Array, kernel: jax.Array, stride: int, side: int) -> jax.Array:
    """A convolution for functions without modules."""
    numbers = ("NHWC", "HWIO", "NHWC")
    padding = ((side, side),) * 2
    strides = (stride, stride)
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=numbers
    )


def stem_of(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The first layers' parameters, in Flax's layouts, of a torch state."""
    return {
        "kernel": state["conv1.weight"].transpose(2, 3, 1, 0),
        **{name: state[f"bn1.{name}"] for name in ("weight", "bias")},
        **{name: state[f"bn1.running_{name}"] for name in ("mean", "var")},
    }


def stem(parameters: dict[str, Any], x: jax.Array) -> Any:
    """conv1, bn1 and relu as a function that shows what it computes on the way."""
    conv = convolve(x, parameters["kernel"], 2, 3)
    scale = parameters["weight"] / jnp.sqrt(parameters["var"] + 1e-5)
    norm = (conv - parameters["mean"].reshape(1, 1, 1, -1)) * scale.reshape(1, 1, 1, -1)
    norm = norm + parameters["bias"].reshape(1, 1, 1, -1)
    shown = {"first": {"convolved": (conv,), "normal": norm}}
    return jnp.maximum(norm, 0), shown
