"""What the network itself has of Flax NNX: a new head, and the check of its input.

The mirror of ``resnet_torch/network.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from resnet_flax.dropping import Drop
from resnet_flax.layers import BatchNorm2d, Conv2d, Layers
from resnet_spec import ResNetConfig


class Frozen(nnx.Variable[jax.Array]):
    """A parameter that does not learn."""


class Network(nnx.Module):
    """What the network itself has of its framework."""

    config: ResNetConfig
    layer_names: tuple[str, ...]
    stage_names: tuple[str, ...]
    stem_names: tuple[str, ...]
    head_names: tuple[str, ...]
    frozen_names: tuple[str, ...] = ()
    _set_head: Callable[[Layers], None]

    def __init__(self) -> None:
        self.deterministic = False  # what torch calls training, and the other way round

    def reset_head(self, num_classes: int, *, rngs: nnx.Rngs | int | Array) -> None:
        """Replaces the head by a new one, drawn as at creation; the rest stays.

        Args:
            num_classes: of the new head.
            rngs: source of its weights, as at creation.

        Raises:
            ValueError: the network has no head, or there is no such number of classes.
        """
        config = self.config.replace(num_classes=num_classes)
        if not config.include_top:
            raise ValueError(
                "the network was made without a head; make one with include_top=True"
            )
        modules = (module for _, module in nnx.iter_modules(self))
        like = next(module for module in modules if isinstance(module, Conv2d))
        self._set_head(
            Layers(
                config=config,
                rngs=rngs,
                dtype=like.dtype,
                param_dtype=like.kernel.dtype,
            )
        )

    def freeze(self, stages: int | None) -> None:
        """Keeps the stem and the first stages as they are, whatever trains the network.

        Their parameters are no ``nnx.Param``, so that neither ``nnx.grad`` nor an
        optimiser made afterwards knows of them; their norms keep the running statistics
        in training mode too, and nothing is dropped in them.

        Args:
            stages: how many; 0 is the stem alone, ``None`` lets all learn again.

        Raises:
            ValueError: there are not so many.
        """
        self.frozen_names = frozen_names(self, stages)
        for name in self.layer_names:
            old, new = nnx.Param, Frozen
            if name not in self.frozen_names:
                old, new = new, old
            if isinstance(part := getattr(self, name), nnx.Module):
                for _, module in nnx.iter_modules(part):
                    for leaf, variable in list(vars(module).items()):
                        if isinstance(variable, old):
                            setattr(module, leaf, new(variable.get_value()))
        self.eval() if self.deterministic else self.train()

    def train(self, **attributes: Any) -> None:
        """Switches to training mode; what is frozen is never in it."""
        super().train(**attributes)
        for name in self.frozen_names:
            if isinstance(part := getattr(self, name), nnx.Module):
                part.eval()

    def seed_drops(self, seed: int, calls: int = 0) -> None:
        """Begins anew with what is dropped in training, by a seed; at first it is 0.

        The twins drop the same if they have the same seed and calls.

        Args:
            seed: of the masks, 0 or more.
            calls: in training mode that there have been before.
        """
        for _, module in nnx.iter_modules(self):
            if isinstance(module, Drop):
                module.restart(seed, calls)

    def _check(self, x: Array) -> None:
        """Raises ValueError for what is no batch of images."""
        channels = self.config.in_channels
        wanted = f"it takes images of shape (n, h, w, {channels}), channels last"
        _require_array(x)
        shape = x.shape
        if x.ndim != 4:
            batch = ": x[None] is a batch of one image" if x.ndim == 3 else ""
            raise ValueError(f"the network got shape {shape}; {wanted}{batch}")
        n, h, w, c = shape
        if c != channels:
            first = ": use x.transpose(0, 2, 3, 1)" if h == channels else ""
            raise ValueError(f"the network got shape {shape}; {wanted}{first}")
        if n == 0 or h == 0 or w == 0:
            raise ValueError(
                f"the network got shape {shape}, no pixel; {wanted}, none 0"
            )
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"the images are {x.dtype}; the network takes floating-point numbers, "
                "such as x / 255, normalised as in training"
            )
        if x.dtype == jnp.float64:
            modules = (module for _, module in nnx.iter_modules(self))
            convs = (m for m in modules if isinstance(m, Conv2d))
            dtype = next((jnp.dtype(m.dtype or m.kernel.dtype) for m in convs), x.dtype)
            if dtype != x.dtype:
                raise ValueError(
                    f"the images are {x.dtype}, the network is {dtype}; use "
                    f"x.astype({str(dtype)!r}), or a network of float64"
                )
        sizes = isinstance(h, int) and isinstance(w, int)  # jax.export has symbols
        if sizes and self.config.anti_alias != "none":  # a shortcut would be broadcast
            self.config.check_size(h, w)
        pooled = self.config.radix > 0 and self.config.stage_count > 0
        if n == 1 and sizes and (pooled or self.config.map_size(h, w) == (1, 1)):
            stage = getattr(self, ("bn1", *self.stage_names)[-1])
            norms = (
                m for _, m in nnx.iter_modules(stage) if isinstance(m, BatchNorm2d)
            )
            if not all(norm.use_running_average for norm in norms):
                raise ValueError(
                    f"batch normalisation in training mode got shape {shape}: it needs "
                    "more than one value per channel. Use a larger batch, or eval()"
                )

    def _check_map(self, x: Array) -> None:
        """Raises ValueError for what is no map of the last stage."""
        _require_array(x)
        channels, shape = self.config.num_features, x.shape
        if x.ndim != 4 or shape[3] != channels:
            raise ValueError(
                f"the head got shape {shape}; it takes the map that forward_features "
                f"returns, (n, h, w, {channels})"
            )


def frozen_names(network: Network, stages: int | None) -> tuple[str, ...]:
    """Returns what is frozen with so many stages.

    Raises:
        ValueError: the network has fewer.
    """
    if stages is None:
        return ()
    count = len(network.stage_names)
    if type(stages) is not int or not 0 <= stages <= count:
        raise ValueError(f"stages is {stages!r}; it must be from 0 to {count}, or None")
    return network.stem_names + network.stage_names[:stages]


def _require_array(x: object) -> None:
    """Raises ValueError for what is no array."""
    of_torch = type(x).__module__.partition(".")[0] == "torch"
    if of_torch or not (hasattr(x, "ndim") and hasattr(x, "dtype")):
        kind = f"{type(x).__module__}.{type(x).__qualname__}"
        raise ValueError(
            f"got a {kind}; the network takes arrays of JAX or numpy: "
            "jnp.asarray(...) makes one"
        )
