"""Residual networks as ONNX graphs. See ``resnet_torch/resnet.py``."""

from __future__ import annotations

from resnet_onnx.blocks import BLOCKS
from resnet_onnx.layers import Layers
from resnet_spec.plan import stages
from resnet_spec.sizes import SIGNAL_POOL


def stem(layers: Layers, x: str) -> str:
    """Adds what stands before the first stage."""
    config = layers.config
    kind, padding = config.stem, config.stem_padding
    if kind == "3x3":
        x = layers.conv("conv1", x)
    elif kind == "7x7":
        x = layers.conv("conv1", x, stride=2, padding=padding)
    else:
        row = layers.inside("conv1")
        x = row.norm("1", row.conv("0", x, stride=2, padding=padding))
        x = row.norm("4", row.conv("3", row.relu("2", x)))
        x = row.conv("6", row.relu("5", x))
    x = layers.relu("relu", layers.norm("bn1", x))
    return x if kind == "3x3" else stem_pool(layers, x)


def stem_pool(layers: Layers, x: str) -> str:
    """Adds the pool of a stem."""
    option, padding = layers.config.anti_alias, layers.config.pool_padding
    row = layers.inside("maxpool")
    finer = {"average": row.average, "blur": row.blur}.get(option)
    if layers.config.stem_pool == "conv":
        x = row.conv("0", x, stride=1 if finer else 2, padding=padding)
        x = x if finer is None else finer("1", x, 2)
        norm, relu = ("1", "2") if finer is None else ("2", "3")
        return row.relu(relu, row.norm(norm, x))
    if option == "average":
        return layers.average("maxpool", x, 2)
    if option == "blur":
        return row.blur("1", row.maxpool("0", x, 3, stride=1), 2)
    return layers.maxpool("maxpool", x, 3, stride=2, padding=padding)


def head(layers: Layers, x: str) -> str:
    """Adds what stands behind the last stage."""
    kind = layers.config.head
    if kind == "linear":
        x = layers.flatten("flatten", layers.avgpool("avgpool", x))
        return layers.linear("fc", x)
    if kind == "signal":
        x = layers.avgpool_along("avgpool", x, SIGNAL_POOL)
        x = layers.linear("fc", layers.flatten("flatten", x))
        return layers.reshaped("as_signal", x, [0, 1, 1, -1])
    x = layers.maxpool("maxpool2", x, 3, stride=2)
    x = layers.conv("conv2", x, bias=layers.config.conv_bias)
    return layers.linear("fc2", layers.linear("fc1", layers.flatten("flatten", x)))


def resnet(layers: Layers, x: str) -> str:
    """Adds a residual network: stem, stages ``layer1`` … ``layerN``, head.

    Args:
        layers: maker of the layers, with the configuration that it follows.
        x: name of the images.

    Returns:
        The name of the logits, or of the last stage's map if there is no top.
    """
    config = layers.config
    x = stem(layers, x)
    for number, blocks in enumerate(stages(config), start=1):
        for index, plan in enumerate(blocks):
            block = layers.inside(f"layer{number}.{index}")
            x = BLOCKS[config.block](block, plan, x)
    return head(layers, x) if config.include_top else x
