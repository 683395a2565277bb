"""The weights that a run starts from: the same whichever framework begins it."""

from __future__ import annotations

from math import prod

import numpy as np

from parity.weights.names import COUNTER
from parity.weights.twins import entries_of
from resnet_spec import ResNetConfig

State = dict[str, np.ndarray]


def initial_state(config: ResNetConfig, *, seed: int) -> State:
    """Draws new weights as both twins do, by numpy.

    Kernels: He et al. 2015, arXiv 1502.01852, section 2.2, by the fan-out; linear
    layers and biases: torch's default.

    Args:
        config: the network.
        seed: of the numbers; each entry has its own.

    Returns:
        torchvision's names to float32 arrays in its layouts.
    """
    shapes = {name: entry.shape for name, entry in entries_of(config).items()}
    last = "bn2" if config.block == "basic" else "bn3"
    state: State = {}
    for index, (name, shape) in enumerate(shapes.items()):
        rng = np.random.default_rng([seed, index])
        path, _, leaf = name.rpartition(".")
        kernel = shapes.get(f"{path}.weight", ())
        if leaf == COUNTER:
            state[name] = np.zeros((), np.int64)
        elif leaf == "weight" and len(shape) > 2:
            fan_out = shape[0] * prod(shape[2:])
            drawn = rng.standard_normal(shape, np.float32)
            state[name] = drawn * np.float32((2 / fan_out) ** 0.5)
        elif leaf in ("weight", "bias") and len(kernel) > 1:
            bound = prod(kernel[1:]) ** -0.5
            state[name] = rng.uniform(-bound, bound, shape).astype(np.float32)
        else:
            zero = leaf in ("bias", "running_mean")
            if leaf == "weight" and config.zero_init_residual:
                zero = path.startswith("layer") and path.endswith(last)
            state[name] = np.full(shape, 0 if zero else 1, np.float32)
    return state
