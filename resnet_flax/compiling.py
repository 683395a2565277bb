"""A network made ready for inference, by what was measured to be the fastest.

The mirror of ``resnet_torch/compiling.py``.
"""

from __future__ import annotations

import jax
from flax import nnx
from jaxtyping import Array, Float

from resnet_flax.filtering import winograd
from resnet_flax.fusing import fuse
from resnet_flax.resnet import ResNet
from resnet_flax.xla import compiler_options


class Compiled:
    """A function of images, from :func:`compile`.

    Args:
        model: the network that it was made from.

    Attributes:
        model: the fused network that it computes.
    """

    def __init__(self, model: ResNet) -> None:
        self.model = fuse(model)
        if jax.default_backend() == "cpu":
            self.model = winograd(self.model)
        graph, self._state = nnx.split(self.model)

        def forward(state: nnx.State, x: Array) -> Array:
            return nnx.merge(graph, state)(x)

        # By argument: as constants, weights would be computed with while compiling.
        self._run = jax.jit(forward, compiler_options=compiler_options("inference"))

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n ..."]:
        """Computes what the network does in evaluation mode.

        Args:
            x: images; of every new shape the first take as long as compiling does.

        Raises:
            ValueError: it is no batch of images that this network takes.
        """
        self.model._check(x)
        return self._run(self._state, x)


def compile(model: ResNet) -> Compiled:
    """Returns a function of images that computes what the network does, fast.

    It is fused and compiled, on a CPU with Winograd's convolutions and the faster
    settings of XLA. Later changes of the network are not its own.

    Args:
        model: a network of this package, not fused; it stays as it is.

    Raises:
        ValueError: it is none, or is fused already.
    """
    return Compiled(model)
