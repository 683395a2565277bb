"""Batch norms folded into the convolutions before them, for evaluation.

Read beside ``resnet_flax/fusing.py``: they are one text.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

from torch import Tensor, nn

from resnet_torch.attention import SplitAttention
from resnet_torch.layers import BlurPool2d, Sequential
from resnet_torch.resnet import ResNet


def fuse(model: ResNet) -> ResNet:
    """Returns a copy in evaluation mode without batch norms, which computes the same.

    In evaluation mode a batch norm scales and shifts each channel by constants. They
    go into the kernel and the bias of the convolution before it, in float64, rounded
    once to the kernel's dtype. An identity stands where the norm was, so that paths
    stay. A group norm stays as it is, for it divides by what each image gives. What is
    left is for evaluation only: ``train()`` changes nothing in it, and its ``config``
    is that of the network that it was made from.

    ``parity.check(resnet_torch.fuse(a), resnet_flax.fuse(b), images,
    gates=parity.FORWARD)`` proves two of them equal.

    Args:
        model: a network of this package; it stays as it is, and shares no array.

    Raises:
        ValueError: it is none, or is fused already.
    """
    if not isinstance(model, ResNet):
        raise ValueError(
            f"got a {type(model).__module__}.{type(model).__name__}; fuse takes a "
            "resnet_torch.ResNet"
        )
    if isinstance(getattr(model, "bn1", None), nn.Identity):
        raise ValueError("the network is fused already; use it as it is")
    fused = copy.deepcopy(model)
    for part in _parts(fused):
        for conv, norm in _SPLIT if isinstance(part, SplitAttention) else _PLAIN:
            if isinstance(getattr(part, norm, None), nn.GroupNorm):
                continue
            if getattr(part, norm, None) is not None:
                _fold(_last(getattr(part, conv)), getattr(part, norm))
                setattr(part, norm, nn.Identity())
        for row in ("downsample", "maxpool"):
            _last(getattr(part, row, None))
    return fused.eval()


def _parts(model: ResNet) -> Iterator[nn.Module]:
    yield model
    for name in model.stage_names:
        for block in getattr(model, name):
            yield block
            if isinstance(block.conv2, SplitAttention):
                yield block.conv2


_PLAIN = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))
_SPLIT = (("conv", "bn0"), ("fc1", "bn1"))
"""Convolutions, and the norms behind them."""


def _last(layer: nn.Module | None) -> nn.Module | None:
    """Fuses a row of layers, and returns its last; any other layer is its own."""
    if not isinstance(layer, Sequential):
        return layer
    for index in range(1, len(layer)):
        if isinstance(layer[index], nn.BatchNorm2d):
            before = index - 1
            # Means of pixels commute with what scales and shifts each channel.
            while isinstance(layer[before], (nn.AvgPool2d, BlurPool2d)):
                before -= 1
            _fold(layer[before], layer[index])
            layer[index] = nn.Identity()
    return layer[-1]


def _fold(conv: nn.Module | None, norm: nn.Module) -> None:
    """Makes the convolution compute what it and the norm did."""
    if not (isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)):
        raise ValueError(
            f"found {type(norm).__name__} behind {type(conv).__name__}; fuse knows "
            "BatchNorm2d behind Conv2d"
        )
    scale, shift = _wide(norm.weight), _wide(norm.bias)
    mean, var = _wide(norm.running_mean), _wide(norm.running_var)
    kernel = _wide(conv.weight)
    factor = scale / (var + norm.eps).sqrt()
    bias = shift - mean * factor
    if conv.bias is not None:
        bias = bias + _wide(conv.bias) * factor
    conv.weight = _rounded(kernel * factor[:, None, None, None], conv.weight)
    conv.bias = _rounded(bias, conv.weight)


def _wide(tensor: Tensor | None) -> Tensor:
    assert tensor is not None  # all that this package makes
    return tensor.detach().cpu().double()


def _rounded(tensor: Tensor, like: Tensor) -> nn.Parameter:
    tensor = tensor.to(like.device, like.dtype)
    return nn.Parameter(tensor, requires_grad=like.requires_grad)
