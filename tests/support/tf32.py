"""NVIDIA's TF32 on a CPU: float32 products of numbers that have eleven bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import torch
from torch import Tensor
from torch.nn import functional

from parity.running.pair import Pair

_convolve_torch, _convolve_jax = functional.conv2d, jax.lax.conv_general_dilated
_HALF, _BITS = 0xFFF, 13


def _torch_rounded(x: Tensor) -> Tensor:
    if x.dtype != torch.float32:
        return x
    bits = x.detach().contiguous().view(torch.int32)
    bits = bits + _HALF + ((bits >> _BITS) & 1)
    return (bits & ~((1 << _BITS) - 1)).view(torch.float32)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, *settings: Any) -> Tensor:
        x, w = _torch_rounded(x), _torch_rounded(w)
        ctx.save_for_backward(x, w)
        ctx.settings = settings
        return _convolve_torch(x, w, None, *settings)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, w = (t.detach().requires_grad_() for t in ctx.saved_tensors)
        with torch.enable_grad():
            y = _convolve_torch(x, w, None, *ctx.settings)
        found = torch.autograd.grad(y, [x, w], _torch_rounded(gradients[0]))
        return *found, *(None for _ in ctx.settings)


def _torch_convolution(
    x: Tensor, w: Tensor, b: Tensor | None, *settings: Any
) -> Tensor:
    y: Any = _Convolution.apply(x, w, *settings)
    return y if b is None else y + b.view(1, -1, 1, 1)


def _jax_rounded(x: jax.Array) -> jax.Array:
    if x.dtype != jnp.float32:
        return x
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    last = (bits >> jnp.uint32(_BITS)) & jnp.uint32(1)
    bits = (bits + jnp.uint32(_HALF) + last) & jnp.uint32(-(1 << _BITS) % 2**32)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _jax_convolution(x: jax.Array, w: jax.Array, *args: Any, **named: Any) -> jax.Array:
    def plain(x: jax.Array, w: jax.Array) -> jax.Array:
        return _convolve_jax(x, w, *args, **named)

    @jax.custom_vjp
    def convolve(x: jax.Array, w: jax.Array) -> jax.Array:
        return plain(_jax_rounded(x), _jax_rounded(w))

    def forwards(x: jax.Array, w: jax.Array) -> tuple[jax.Array, Any]:
        given = _jax_rounded(x), _jax_rounded(w)
        return plain(*given), given

    def backwards(given: Any, gradient: jax.Array) -> Any:
        return jax.vjp(plain, *given)[1](_jax_rounded(gradient))

    convolve.defvjp(forwards, backwards)
    return convolve(x, w)


@contextmanager
def tf32(*, in_torch: bool, in_flax: bool) -> Iterator[None]:
    """Lets convolutions compute in TF32, as where there is an accelerator."""
    with patch.object(Pair, "on_accelerator", lambda self: True):
        ours = _torch_convolution if in_torch else _convolve_torch
        theirs = _jax_convolution if in_flax else _convolve_jax
        with (
            patch.object(functional, "conv2d", ours),
            patch.object(jax.lax, "conv_general_dilated", theirs),
        ):
            yield
