"""Batch norms with a fault each, in the place of ``resnet_flax.layers``'s."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from resnet_flax.layers import (
    BatchNorm2d,
)


class Norm(BatchNorm2d):
    """The right norm in pieces, each of which a class below gets wrong."""

    def taken(
        self, scale: Array, bias: Array, mean: Array, var: Array
    ) -> tuple[Array, ...]:
        """Returns scale, bias, mean and variance as the formula takes them."""
        return scale, bias, mean, var

    def root(self, var: Array) -> Array:
        """Returns what is divided by."""
        return jnp.sqrt(var + self.eps)

    def __call__(self, x: Array, use_running_average: bool | None = None) -> Array:
        """Normalises."""
        if self.use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            mean, var = self._batch_statistics(x, jnp.zeros_like(x[0, 0, 0]))
        taken = self.taken(self.scale[...], self.bias[...], mean, var)
        scale, bias, mean, var = (value.reshape(1, 1, 1, -1) for value in taken)
        return (x - mean) * (scale / self.root(var)) + bias


class EpsOutsideRoot(Norm):
    """Adds eps to the standard deviation."""

    def root(self, var: Array) -> Array:
        """Takes the root, then adds."""
        return jnp.sqrt(var) + self.eps


class ByVariance(Norm):
    """Divides by the variance."""

    def root(self, var: Array) -> Array:
        """Takes no root."""
        return var + self.eps


class ScaleBiasSwapped(Norm):
    """Multiplies by the bias and adds the scale."""

    def taken(
        self, scale: Array, bias: Array, mean: Array, var: Array
    ) -> tuple[Array, ...]:
        """Swaps them."""
        return bias, scale, mean, var


class MeanVarSwapped(Norm):
    """Subtracts the variance and divides by the root of the mean."""

    def taken(
        self, scale: Array, bias: Array, mean: Array, var: Array
    ) -> tuple[Array, ...]:
        """Swaps them."""
        return scale, bias, var, mean


class WithoutMean(Norm):
    """Ignores the mean."""

    def taken(
        self, scale: Array, bias: Array, mean: Array, var: Array
    ) -> tuple[Array, ...]:
        """Takes 0 for it."""
        return scale, bias, jnp.zeros_like(mean), var


class WithoutBias(Norm):
    """Adds no bias."""

    def taken(
        self, scale: Array, bias: Array, mean: Array, var: Array
    ) -> tuple[Array, ...]:
        """Takes 0 for it."""
        return scale, jnp.zeros_like(bias), mean, var


class WithOthersStatistics(Norm):
    """Normalises by the running statistics of another layer."""

    others: tuple[tuple[float, ...], tuple[float, ...]]

    def taken(
        self, scale: Array, bias: Array, mean: Array, var: Array
    ) -> tuple[Array, ...]:
        """Takes the other layer's."""
        mean, var = (jnp.asarray(np.array(v, mean.dtype)) for v in self.others)
        return scale, bias, mean, var


class AlwaysBatchStatistics(Norm):
    """Normalises by the batch in evaluation mode too."""

    def __call__(self, x: Array, use_running_average: bool | None = None) -> Array:
        """Normalises; notes nothing."""
        mean = x.mean((0, 1, 2), keepdims=True)
        var = jnp.square(x - mean).mean((0, 1, 2), keepdims=True)
        scale, bias = (v[...].reshape(1, 1, 1, -1) for v in (self.scale, self.bias))
        return (x - mean) * (scale / self.root(var)) + bias


class BiasedRunningVariance(BatchNorm2d):
    """Notes the variance that it divides by, not n/(n-1) times it."""

    def _batch_statistics(self, x: Array, centre: Array) -> tuple[Array, Array]:
        old = self.var[...]
        mean, var = super()._batch_statistics(x, centre)
        self.var.set_value(old)
        self._track(self.var, var)
        return mean, var


class UnbiasedVariance(BatchNorm2d):
    """Divides by the unbiased variance, which torch only notes."""

    def _batch_statistics(self, x: Array, centre: Array) -> tuple[Array, Array]:
        mean, var = super()._batch_statistics(x, centre)
        count = x.size // x.shape[-1]
        return mean, var * (count / (count - 1))


class FastVariance(BatchNorm2d):
    """Computes E[x²] - E[x]²."""

    def _batch_statistics(self, x: Array, centre: Array) -> tuple[Array, Array]:
        old = self.var[...]
        mean, _ = super()._batch_statistics(x, centre)
        whole = x + centre.reshape(1, 1, 1, -1)
        var = jnp.square(whole).mean((0, 1, 2)) - jnp.square(centre + mean)
        count = x.size // x.shape[-1]
        self.var.set_value(old)
        self._track(self.var, var * (count / (count - 1)))
        return mean, var


class ConstantStatistics(BatchNorm2d):
    """Differentiates as if the batch's statistics did not depend on the batch."""

    def _batch_statistics(self, x: Array, centre: Array) -> tuple[Array, Array]:
        mean, var = super()._batch_statistics(x, centre)
        return jax.lax.stop_gradient(mean), jax.lax.stop_gradient(var)


class Uncounted(BatchNorm2d):
    """Does not count batches."""

    def _batch_statistics(self, x: Array, centre: Array) -> tuple[Array, Array]:
        old = self.num_batches_tracked[...]
        found = super()._batch_statistics(x, centre)
        self.num_batches_tracked.set_value(old)
        return found
