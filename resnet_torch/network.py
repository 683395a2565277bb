"""What the network itself has of PyTorch: a new head, and the check of its input.

The mirror of ``resnet_flax/network.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.jit import is_tracing  # type: ignore[attr-defined]

from resnet_spec import ResNetConfig
from resnet_torch.dropping import Drop
from resnet_torch.layers import Layers


class Network(nn.Module):
    """What the network itself has of its framework."""

    config: ResNetConfig
    stage_names: tuple[str, ...]
    stem_names: tuple[str, ...]
    head_names: tuple[str, ...]
    frozen_names: tuple[str, ...] = ()
    _set_head: Callable[[Layers], None]

    def reset_head(
        self, num_classes: int, *, generator: torch.Generator | None = None
    ) -> None:
        """Replaces the head by a new one, drawn as at creation; the rest stays.

        Args:
            num_classes: of the new head.
            generator: source of its weights; torch's global one if ``None``.

        Raises:
            ValueError: the network has no head, or there is no such number of classes.
        """
        config = self.config.replace(num_classes=num_classes)
        if not config.include_top:
            raise ValueError(
                "the network was made without a head; make one with include_top=True"
            )
        like = next(self.parameters())
        self._set_head(
            Layers(
                config=config,
                generator=generator,
                device=like.device,
                dtype=like.dtype,
            )
        )
        for name in self.head_names:
            layer = getattr(self, name)
            if isinstance(layer, nn.Module):
                layer.train(self.training)

    def freeze(self, stages: int | None) -> None:
        """Keeps the stem and the first stages as they are, whatever trains the network.

        Their parameters have no gradient, their norms keep the running statistics in
        training mode too, and nothing is dropped in them.

        Args:
            stages: how many; 0 is the stem alone, ``None`` lets all learn again.

        Raises:
            ValueError: there are not so many.
        """
        self.frozen_names = frozen_names(self, stages)
        for name, module in self.named_children():
            for parameter in module.parameters():
                parameter.requires_grad_(name not in self.frozen_names)
        self.train(self.training)

    def train(self, mode: bool = True) -> Network:
        """Switches to training mode, or out of it; what is frozen is never in it."""
        super().train(mode)
        for name in self.frozen_names:
            getattr(self, name).eval()
        return self

    def seed_drops(self, seed: int, calls: int = 0) -> None:
        """Begins anew with what is dropped in training, by a seed; at first it is 0.

        The twins drop the same if they have the same seed and calls.

        Args:
            seed: of the masks, 0 or more.
            calls: in training mode that there have been before.
        """
        for module in self.modules():
            if isinstance(module, Drop):
                module.restart(seed, calls)

    def __prepare_scriptable__(self) -> nn.Module:
        """Gives ``torch.jit.script`` the network as a graph of its layers.

        It knows neither shapes as annotations nor layers found by name.
        """
        graph = fx.symbolic_trace(self)
        for node in graph.graph.nodes:
            node.type = None  # a shape
        graph.recompile()
        # Its class is its own, and script would warn of what fx annotates in there.
        type(graph).__init__ = nn.Module.__init__
        return graph

    def _check(self, x: Tensor) -> None:
        """Raises ValueError for what is no batch of images."""
        # A graph of torch.fx has no shapes, and torch.jit.trace would note them.
        if isinstance(x, fx.Proxy) or is_tracing():
            return
        channels = self.config.in_channels
        wanted = f"it takes images of shape (n, {channels}, h, w), channels first"
        _require_tensor(x)
        shape = tuple(x.shape)
        if x.ndim != 4:
            batch = ": x[None] is a batch of one image" if x.ndim == 3 else ""
            raise ValueError(f"the network got shape {shape}; {wanted}{batch}")
        n, c, h, w = shape
        if c != channels:
            last = ": use x.permute(0, 3, 1, 2)" if w == channels else ""
            raise ValueError(f"the network got shape {shape}; {wanted}{last}")
        if n == 0 or h == 0 or w == 0:
            raise ValueError(
                f"the network got shape {shape}, no pixel; {wanted}, none 0"
            )
        if not x.is_floating_point():
            raise ValueError(
                f"the images are {x.dtype}; the network takes floating-point numbers, "
                "such as x.float() / 255, normalised as in training"
            )
        dtype = next(self.parameters(), x).dtype
        if dtype != x.dtype and not _casts(x.device, dtype, x.dtype):
            raise ValueError(
                f"the images are {x.dtype}, the network is {dtype}; use "
                f"x.to({dtype}), or model.to({x.dtype})"
            )
        if self.config.anti_alias != "none":  # a shortcut's map would have another size
            self.config.check_size(h, w)
        pooled = self.config.radix > 0 and self.config.stage_count > 0
        if (
            n == 1
            and self.training
            and (pooled or self.config.map_size(h, w) == (1, 1))
        ):
            stage = getattr(self, ("bn1", *self.stage_names)[-1])
            norms = (m for m in stage.modules() if isinstance(m, nn.BatchNorm2d))
            if any(norm.training for norm in norms):
                raise ValueError(
                    f"batch normalisation in training mode got shape {shape}: it needs "
                    "more than one value per channel. Use a larger batch, or eval()"
                )

    def _check_map(self, x: Tensor) -> None:
        """Raises ValueError for what is no map of the last stage."""
        if isinstance(x, fx.Proxy) or is_tracing():
            return
        _require_tensor(x)
        channels, shape = self.config.num_features, tuple(x.shape)
        if x.ndim != 4 or x.shape[1] != channels:
            raise ValueError(
                f"the head got shape {shape}; it takes the map that forward_features "
                f"returns, (n, {channels}, h, w)"
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


def _casts(device: torch.device, *dtypes: torch.dtype) -> bool:
    """Whether ``torch.autocast`` brings these together here."""
    return (
        torch.float64 not in dtypes
        and torch.amp.is_autocast_available(device.type)
        and torch.is_autocast_enabled(device.type)
    )


def _require_tensor(x: object) -> None:
    """Raises ValueError for what is no tensor, or none that layers compute with."""
    if not isinstance(x, Tensor):
        kind = f"{type(x).__module__}.{type(x).__qualname__}"
        raise ValueError(
            f"got a {kind}; the network takes torch tensors: "
            "torch.from_numpy(...) makes one of an array"
        )
    if x.is_nested:
        raise ValueError(
            "got a nested tensor; the network takes images of one size: "
            "torch.stack(...)"
        )
    if x.layout != torch.strided and not x.is_mkldnn:
        raise ValueError(
            f"got a tensor of {x.layout}; the network takes dense ones: x.to_dense()"
        )
