"""Residual networks in PyTorch (He et al. 2015, arXiv 1512.03385).

Read beside ``resnet_flax/resnet.py``: they are one text, and a test holds them to it.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from resnet_spec.config import CONV_HEAD_CHANNELS, CONV_HEAD_POSITIONS, SIGNAL_POOL
from resnet_torch.layers import Layers, Sequential, as_signal, flatten
from resnet_torch.network import Network


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (paper, figure 5, left)."""

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        width: int,
        *,
        stride: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        config = layers.config
        self.aa = anti_alias(layers, stride)
        self.conv1 = layers.conv(
            in_channels, width, 3, stride=1 if self.aa else stride, dilation=dilation
        )
        self.bn1 = layers.norm(width)
        self.relu = layers.relu()
        self.conv2 = layers.conv(width, width, 3, dilation=dilation)
        self.bn2 = layers.norm(width, zero_init=config.zero_init_residual)
        self.downsample = shortcut(layers, in_channels, width, stride)
        self.residual = config.shortcut != "none"

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k i j"]:
        """Computes relu(F(x) + shortcut(x))."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = out if self.aa is None else self.aa(out)
        out = self.bn2(self.conv2(out))
        if self.residual:
            out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (paper, figure 5, right)."""

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        width: int,
        *,
        stride: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        config = layers.config
        inner, out_channels = config.inner_width(width), width * config.expansion
        # Both load the same weights without complaint and compute different numbers.
        stride1, stride2 = (stride, 1) if config.stride_on == "1x1" else (1, stride)
        self.aa = anti_alias(layers, stride2)
        stride2 = 1 if self.aa else stride2
        self.conv1 = layers.conv(in_channels, inner, 1, stride=stride1)
        self.bn1 = layers.norm(inner)
        self.conv2 = layers.conv(
            inner, inner, 3, stride=stride2, dilation=dilation, groups=config.groups
        )
        self.bn2 = layers.norm(inner)
        self.conv3 = layers.conv(inner, out_channels, 1)
        self.bn3 = layers.norm(out_channels, zero_init=config.zero_init_residual)
        self.relu = layers.relu()
        self.downsample = shortcut(layers, in_channels, out_channels, stride)
        self.residual = config.shortcut != "none"

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k i j"]:
        """Computes relu(F(x) + shortcut(x))."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = out if self.aa is None else self.aa(out)
        out = self.bn3(self.conv3(out))
        if self.residual:
            out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}


def shortcut(
    layers: Layers, in_channels: int, out_channels: int, stride: int
) -> nn.Module | None:
    """Makes what stands beside a block; ``None`` is the identity."""
    option = layers.config.shortcut
    same = stride == 1 and in_channels == out_channels
    if option == "none" or (same and option != "C"):
        return None
    if option == "A":
        return layers.pad_channels(out_channels - in_channels, stride=stride)
    norm = layers.norm(out_channels)
    if option == "D":  # the pool sees every pixel; a strided 1x1 sees one in four
        conv = layers.conv(in_channels, out_channels, 1)
        return Sequential(layers.pool_down(stride), conv, norm)
    return Sequential(layers.conv(in_channels, out_channels, 1, stride=stride), norm)


def anti_alias(layers: Layers, stride: int) -> nn.Module | None:
    """Makes what halves a map instead of a convolution; ``None`` if that does."""
    option = layers.config.anti_alias
    if option == "none" or stride == 1:
        return None
    return layers.average(stride) if option == "average" else layers.blur(stride)


# Stems and heads are rows of named layers, applied in order. The names belong to the
# network itself, as torchvision's do.


def stem(layers: Layers, width: int) -> dict:
    """Makes what stands before the first stage."""
    config = layers.config
    kind, in_channels, padding = config.stem, config.in_channels, config.stem_padding
    if kind == "3x3":
        conv1 = layers.conv(in_channels, width, 3)
    elif kind == "7x7":
        conv1 = layers.conv(in_channels, width, 7, stride=2, padding=padding)
    else:
        half = width // 2
        conv1 = Sequential(
            layers.conv(in_channels, half, 3, stride=2, padding=padding),
            layers.norm(half),
            layers.relu(),
            layers.conv(half, half, 3),
            layers.norm(half),
            layers.relu(),
            layers.conv(half, width, 3),
        )
    row = {"conv1": conv1, "bn1": layers.norm(width), "relu": layers.relu()}
    return row if kind == "3x3" else row | {"maxpool": stem_pool(layers)}


def stem_pool(layers: Layers) -> nn.Module:
    """Makes the pool of a stem."""
    option = layers.config.anti_alias
    if option == "average":
        return layers.average(2)
    if option == "blur":
        return Sequential(layers.maxpool(3, stride=1), layers.blur(2))
    return layers.maxpool(3, stride=2, padding=layers.config.pool_padding)


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
        channels = config.widths[0]
        self.stem_names = self._add(stem(layers, channels))
        self.stage_names = tuple(f"layer{i + 1}" for i in range(len(config.widths)))
        dilation = 1
        for index, name in enumerate(self.stage_names):
            width, stride = config.widths[index], 1 if index == 0 else 2
            first_dilation = dilation
            if index > 0 and config.replace_stride_with_dilation[index - 1]:
                dilation, stride = dilation * stride, 1
            blocks = []
            for block in range(config.layers[index]):
                first = block == 0
                blocks.append(
                    BLOCKS[config.block](
                        layers,
                        channels,
                        width,
                        stride=stride if first else 1,
                        # What comes before the finer map keeps its dilation.
                        dilation=first_dilation if first else dilation,
                    )
                )
                channels = width * config.expansion
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

    def forward_features(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k i j"]:
        """Computes the last stage's map.

        Args:
            x: images.
        """
        self._check(x)
        for name in self.stem_names + self.stage_names:
            x = getattr(self, name)(x)
        return x

    def forward_head(self, x: Float[Tensor, "n k i j"]) -> Float[Tensor, "n ..."]:
        """Computes the logits from the last stage's map, or returns it without a top.

        Args:
            x: what :meth:`forward_features` returns.
        """
        for name in self.head_names:
            x = getattr(self, name)(x)
        return x

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n ..."]:
        """Computes the logits, or the last stage's map if there is no top.

        Args:
            x: images.

        Raises:
            ValueError: it is no batch of images that this network takes.
        """
        return self.forward_head(self.forward_features(x))
