"""Small networks as others write them, in pairs, and their comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import torch
from flax import linen, nnx
from torch import nn

import parity
from parity.images import random_images
from parity.weights.flax_state import own_variables
from parity.weights.names import to_flax, torch_name

IMAGES = random_images((2, 3, 9, 8), seed=1)
TRAINING = ("G2 training", "G2 training isolated")


def conv() -> nn.Module:
    return nn.Conv2d(3, 4, 3, padding=1)


def flax_conv() -> nnx.Module:
    return nnx.Conv(3, 4, (3, 3), padding=((1, 1), (1, 1)), rngs=nnx.Rngs(0))


class Theirs(nn.Module):
    """A convolution, what a test puts behind it, and a classifier."""

    def __init__(self, body: Callable[[Any, torch.Tensor], Any], **parts: nn.Module):
        super().__init__()
        self.conv, self.body = conv(), body
        for name, part in parts.items():
            self.add_module(name, part)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> Any:
        return self.body(self, self.conv(x))


class Mine(nnx.Module):
    def __init__(self, body: Callable[[Any, jax.Array], Any], **parts: nnx.Module):
        self.conv, self.body = flax_conv(), body
        for name, part in parts.items():
            setattr(self, name, part)
        self.fc = nnx.Linear(4, 5, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> Any:
        return self.body(self, self.conv(x))


class ReLU(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.relu(x)


class Same(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return x


def alike(theirs: nn.Module, mine: Any) -> Any:
    """Gives the second the first's weights, where the names are the same."""
    state = parity.state_dict(theirs)
    for own, variable in own_variables(mine):
        leaf, name = own.rpartition(".")[2], torch_name(own, {})
        if name in state:
            variable.set_value(jnp.asarray(to_flax(leaf, state[name])))
    return mine


def compared(
    theirs: nn.Module,
    mine: Any,
    inputs: Any = IMAGES,
    gates: Sequence[str] = TRAINING,
    **wishes: Any,
) -> parity.Report:
    if isinstance(mine, nnx.Module):
        alike(theirs, mine)
    return parity.compare_modules(theirs, mine, inputs, gates=gates, **wishes)


def pooled(net: Any, x: Any) -> Any:
    axes = (2, 3) if isinstance(x, torch.Tensor) else (1, 2)
    return net.fc(x.mean(axes))


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = linen.Conv(4, (3, 3), padding=((1, 1), (1, 1)), name="conv")(x)
        return linen.Dense(5, name="fc")(x.mean((1, 2)))
