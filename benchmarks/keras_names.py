"""What Keras calls the weights of its ResNets."""

from __future__ import annotations

LEAVES = {
    "kernel": "weight",
    "gamma": "weight",
    "bias": "bias",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def torch_name(layer: str, leaf: str) -> str:
    """conv3_block2_1_bn, gamma → layer2.1.bn1.weight, and so on."""
    if layer == "predictions":
        path = "fc"
    elif layer.startswith("conv1_"):
        path = {"conv1_conv": "conv1", "conv1_bn": "bn1"}[layer]
    else:
        stage, block, place, kind = layer.split("_")
        prefix = f"layer{int(stage[4:]) - 1}.{int(block[5:]) - 1}"
        if place == "0":
            path = f"{prefix}.downsample.{('conv', 'bn').index(kind)}"
        else:
            path = f"{prefix}.{kind}{place}"
    return f"{path}.{LEAVES[leaf]}"
