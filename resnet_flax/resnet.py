"""Residual networks in Flax NNX (He et al. 2015, arXiv 1512.03385).

Read beside ``resnet_torch/resnet.py``: they are one text, and a test holds them to it.
"""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Float

from resnet_flax.layers import Layers, Sequential, flatten


class BasicBlock(nnx.Module):
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
        self.conv1 = layers.conv(
            in_channels, width, 3, stride=stride, dilation=dilation
        )
        self.bn1 = layers.norm(width)
        self.relu = layers.relu()
        self.conv2 = layers.conv(width, width, 3, dilation=dilation)
        self.bn2 = layers.norm(width, zero_init=config.zero_init_residual)
        self.downsample = _projection(layers, in_channels, width, stride)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n i j k"]:
        """Computes relu(F(x) + shortcut(x))."""
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class Bottleneck(nnx.Module):
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
        self.conv1 = layers.conv(in_channels, inner, 1, stride=stride1)
        self.bn1 = layers.norm(inner)
        self.conv2 = layers.conv(
            inner, inner, 3, stride=stride2, dilation=dilation, groups=config.groups
        )
        self.bn2 = layers.norm(inner)
        self.conv3 = layers.conv(inner, out_channels, 1)
        self.bn3 = layers.norm(out_channels, zero_init=config.zero_init_residual)
        self.relu = layers.relu()
        self.downsample = _projection(layers, in_channels, out_channels, stride)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n i j k"]:
        """Computes relu(F(x) + shortcut(x))."""
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += identity
        return self.relu(out)


BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}


class ResNet(nnx.Module):
    """A residual network: stem, stages ``layer1`` … ``layerN``, linear head.

    Args:
        layers: maker of the layers, with the configuration that it follows.
    """

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        config = layers.config
        channels = config.widths[0]
        self.config = config
        self.conv1 = layers.conv(config.in_channels, channels, 7, stride=2)
        self.bn1 = layers.norm(channels)
        self.relu = layers.relu()
        self.maxpool = layers.maxpool(3, stride=2)
        dilation = 1
        for index, width in enumerate(config.widths):
            stride = 1 if index == 0 else 2
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
            setattr(self, f"layer{index + 1}", Sequential(*blocks))
        if config.include_top:
            self.avgpool = layers.avgpool()
            self.fc = layers.linear(channels, config.num_classes)

    def stem(self, x: Float[Array, "n h w c"]) -> Float[Array, "n i j k"]:
        """Computes what enters the first stage."""
        return self.maxpool(self.relu(self.bn1(self.conv1(x))))

    def stages(self) -> list[tuple[str, Sequential]]:
        """Returns the stages with their names, in order."""
        names = [f"layer{index + 1}" for index in range(len(self.config.layers))]
        return [(name, getattr(self, name)) for name in names]

    def features(self, x: Float[Array, "n h w c"]) -> dict[str, Array]:
        """Computes the maps that the stages hand on.

        Args:
            x: images.

        Returns:
            The map after the stem (its pool included) as ``stem``, and after each stage
            by the stage's name, in order.
        """
        x = self.stem(x)
        maps = {"stem": x}
        for name, stage in self.stages():
            x = stage(x)
            maps[name] = x
        return maps

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n ..."]:
        """Computes the logits, or the last stage's map if there is no top.

        Args:
            x: images.
        """
        x = self.stem(x)
        for _, stage in self.stages():
            x = stage(x)
        if not self.config.include_top:
            return x
        return self.fc(flatten(self.avgpool(x)))


def _projection(
    layers: Layers, in_channels: int, out_channels: int, stride: int
) -> Sequential | None:
    """The 1x1 convolution of a shortcut whose shape changes (option B)."""
    if stride == 1 and in_channels == out_channels:
        return None
    return Sequential(
        layers.conv(in_channels, out_channels, 1, stride=stride),
        layers.norm(out_channels),
    )
