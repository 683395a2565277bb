"""The residual networks in PyTorch, equal to ``resnet_flax`` weight for weight."""

from __future__ import annotations

from typing import Any

import torch

from resnet_spec import ResNetConfig, __version__, resolve
from resnet_torch.compiling import compile
from resnet_torch.fusing import fuse
from resnet_torch.layers import Layers
from resnet_torch.resnet import ResNet

__all__ = ["ResNet", "__version__", "compile", "create_model", "fuse"]


def create_model(
    name_or_config: str | ResNetConfig,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **overrides: Any,
) -> ResNet:
    """Builds a network with random weights, in training mode.

    The network takes images of shape (n, in_channels, h, w) and has torchvision's
    attribute names, ``state_dict`` and ``print``.

    Args:
        name_or_config: a name from ``resnet_spec.list_models()``, or a configuration.
        generator: source of the random weights; torch's global one if ``None``.
        device: where it is made; torch's default in force if ``None``. A generator must
            be of the same.
        dtype: of parameters and statistics; torch's default in force if ``None``.
        **overrides: fields of the configuration to change, such as ``num_classes``;
            ``output_stride`` and ``features_only`` as in ``ResNetConfig.replace``.

    Raises:
        ValueError: the name, a field or its value is not known or not allowed, or the
            dtype has no fractions.
    """
    config = resolve(name_or_config, **overrides)
    if dtype is not None and not getattr(dtype, "is_floating_point", False):
        raise ValueError(f"dtype is {dtype!r}; it must be one such as torch.float32")
    return ResNet(
        Layers(config=config, generator=generator, device=device, dtype=dtype)
    )
