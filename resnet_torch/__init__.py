"""The residual networks in PyTorch, equal to ``resnet_flax`` weight for weight."""

from __future__ import annotations

from typing import Any

import torch

from resnet_spec import ResNetConfig, resolve
from resnet_torch.fuse import fuse
from resnet_torch.layers import Layers
from resnet_torch.resnet import ResNet

__all__ = ["ResNet", "create_model", "fuse"]


def create_model(
    name_or_config: str | ResNetConfig,
    *,
    generator: torch.Generator | None = None,
    **overrides: Any,
) -> ResNet:
    """Builds a network with random weights, in training mode.

    The network takes images of shape (n, in_channels, h, w) and has torchvision's
    attribute names, ``state_dict`` and ``print``. Its device and dtype are torch's
    defaults in force; ``.to(...)`` changes them.

    Args:
        name_or_config: a name from ``resnet_spec.list_models()``, or a configuration.
        generator: source of the random weights; torch's global one if ``None``.
        **overrides: fields of the configuration to change, such as ``num_classes``.

    Raises:
        ValueError: the name, a field or its value is not known or not allowed.
    """
    config = resolve(name_or_config, **overrides)
    return ResNet(Layers(config=config, generator=generator))
