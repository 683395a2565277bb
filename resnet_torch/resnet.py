"""Residual networks in PyTorch (He et al. 2015, arXiv 1512.03385).

Read beside ``resnet_flax/resnet.py``: they are one text, and a test holds them to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from resnet_spec.plan import FeatureInfos, chosen, feature_info, stages
from resnet_spec.sizes import CONV_HEAD_CHANNELS, CONV_HEAD_POSITIONS, SIGNAL_POOL
from resnet_torch.blocks import BLOCKS
from resnet_torch.layers import Layers, Sequential, as_signal, flatten
from resnet_torch.network import Network

# Stems and heads are rows of named layers, applied in order. The names belong to the
# network itself, as torchvision's do.


def stem(layers: Layers) -> dict:
    """Makes what stands before the first stage."""
    config = layers.config
    kind, in_channels, padding = config.stem, config.in_channels, config.stem_padding
    width = config.stem_out
    if kind == "3x3":
        conv1 = layers.conv(in_channels, width, 3)
    elif kind == "7x7":
        conv1 = layers.conv(in_channels, width, 7, stride=2, padding=padding)
    else:
        first, second = config.stem_widths
        conv1 = Sequential(
            layers.conv(in_channels, first, 3, stride=2, padding=padding),
            layers.norm(first),
            layers.relu(),
            layers.conv(first, second, 3),
            layers.norm(second),
            layers.relu(),
            layers.conv(second, width, 3),
        )
    row = {"conv1": conv1, "bn1": layers.norm(width), "relu": layers.relu()}
    pooled = kind != "3x3" and config.stage_count > 0  # its map is that before the pool
    return row | {"maxpool": stem_pool(layers, width)} if pooled else row


def stem_pool(layers: Layers, width: int) -> nn.Module:
    """Makes the pool of a stem."""
    option, padding = layers.config.anti_alias, layers.config.pool_padding
    finer = {"average": layers.average, "blur": layers.blur}.get(option)
    aa = () if finer is None else (finer(2),)
    if layers.config.stem_pool == "conv":
        conv = layers.conv(width, width, 3, stride=1 if aa else 2, padding=padding)
        return Sequential(conv, *aa, layers.norm(width), layers.relu())
    if option == "average":
        return layers.average(2)
    if option == "blur":
        return Sequential(layers.maxpool(3, stride=1), *aa)
    return layers.maxpool(3, stride=2, padding=padding)


CLASSIFIERS = ("fc", "fc2")
"""What makes logits of features."""


def head(layers: Layers, channels: int) -> dict:
    """Makes what stands behind the last stage."""
    config = layers.config
    if config.head == "linear":
        fc = layers.linear(channels, config.num_classes)
        return {"avgpool": layers.avgpool(), "flatten": flatten, "fc": fc}
    if config.head == "signal":
        features = channels * config.signal_positions
        return {
            "avgpool": layers.avgpool_along(SIGNAL_POOL),
            "flatten": layers.flatten(features),
            "fc": layers.linear(features, config.num_classes),
            "as_signal": as_signal,
        }
    width = CONV_HEAD_CHANNELS
    features = width * CONV_HEAD_POSITIONS
    return {
        "maxpool2": layers.maxpool(3, stride=2),
        "conv2": layers.conv(channels, width, 1),
        "flatten": layers.flatten(features),
        "fc1": layers.linear(features, width),
        "fc2": layers.linear(width, config.num_classes),
    }


class ResNet(Network):
    """A residual network: stem, stages ``layer1`` … ``layerN``, head.

    Args:
        layers: maker of the layers, with the configuration that it follows.
    """

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        if not isinstance(layers, Layers):
            raise TypeError(
                f"ResNet got a {type(layers).__name__} instead of Layers; "
                "create_model(...) makes a network of a name or a configuration"
            )
        config = layers.config
        self.stem_names = self._add(stem(layers))
        self.stage_names = tuple(f"layer{i + 1}" for i in range(config.stage_count))
        make = BLOCKS[config.block]
        for name, plans in zip(self.stage_names, stages(config), strict=True):
            blocks = [make(layers, plan) for plan in plans]
            setattr(self, name, Sequential(*blocks))
        self._set_head(layers)

    def _set_head(self, layers: Layers) -> None:
        config = layers.config
        self.config = config
        row = head(layers, config.num_features) if config.include_top else {}
        self.head_names = self._add(row)
        self.layer_names = self.stem_names + self.stage_names + self.head_names

    def _add(self, row: dict) -> tuple[str, ...]:
        for name, layer in row.items():
            setattr(self, name, layer)
        return tuple(row)

    @property
    def num_features(self) -> int:
        """Channels of the last stage's map."""
        return self.config.num_features

    @property
    def num_classes(self) -> int:
        """Classes that the head tells apart; 0 if there is none."""
        return self.config.num_classes if self.config.include_top else 0

    def features(self, x: Float[Tensor, "n c h w"]) -> dict[str, Tensor]:
        """Computes the maps that the stages hand on.

        Args:
            x: images.

        Returns:
            The map after the stem (its pool included) as ``stem``, and after each stage
            by the stage's name, in order.
        """
        self._check(x)
        for name in self.stem_names:
            x = getattr(self, name)(x)
        maps = {"stem": x}
        for name in self.stage_names:
            x = getattr(self, name)(x)
            maps[name] = x
        return maps

    @property
    def feature_info(self) -> FeatureInfos:
        """What the maps of :meth:`feature_maps` are like."""
        return feature_info(self.config)

    def feature_maps(
        self,
        x: Float[Tensor, "n c h w"],
        out_indices: int | Sequence[int] | None = None,
    ) -> list[Float[Tensor, "n k i j"]]:
        """Computes the maps that timm's ``features_only`` gives, and no stage beyond.

        Args:
            x: images.
            out_indices: of the maps, in order: 0 is the stem's before its pool, 1 that
                of ``layer1``, …; from the end if negative. A number is the last so
                many; ``None`` is all.

        Raises:
            ValueError: there is no such map, or ``x`` is no batch of images.
        """
        modules = [info.module for info in self.feature_info]
        indices = chosen(len(modules), out_indices)
        self._check(x)
        maps = []
        for name in self.stem_names + self.stage_names:
            if len(maps) > max(indices):
                break
            x = getattr(self, name)(x)
            if name in modules:
                maps.append(x)
        return [maps[index] for index in indices]

    def forward_features(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k i j"]:
        """Computes the last stage's map.

        Args:
            x: images.
        """
        self._check(x)
        for name in self.stem_names + self.stage_names:
            x = getattr(self, name)(x)
        return x

    def forward_head(
        self, x: Float[Tensor, "n k i j"], pre_logits: bool = False
    ) -> Float[Tensor, "n ..."]:
        """Computes the logits from the last stage's map, or returns it without a top.

        Args:
            x: what :meth:`forward_features` returns.
            pre_logits: stop before the layer that makes logits of features; where the
                head is linear, these are (n, num_features).

        Raises:
            ValueError: it is no map of the last stage.
        """
        self._check_map(x)
        for name in self.head_names:
            if pre_logits and name in CLASSIFIERS:
                break
            x = getattr(self, name)(x)
        return x

    def forward(self, x: Float[Tensor, "n c h w"]) -> Any:
        """Computes the logits, or the last stage's map if there is no top.

        Args:
            x: images.

        Returns:
            Logits (n, ...), or a map; with ``features_only`` the list of maps that its
            ``out_indices`` name.

        Raises:
            ValueError: it is no batch of images that this network takes.
        """
        if self.config.out_indices is not None:
            return self.feature_maps(x, self.config.out_indices)
        return self.forward_head(self.forward_features(x))
