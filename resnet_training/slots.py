"""What an optimiser remembers of each parameter, by torch's names.

Every array has its parameter's shape, and is laid out in files as the parameter is.
"""

from __future__ import annotations

from resnet_spec import OptimizerConfig


def slots_of(config: OptimizerConfig) -> dict[str, str]:
    """Returns torch's name of each array → the field of optax's state that has it.

    torch's step counts are not among them: they follow from the run's step.
    """
    slots: dict[str, str] = {}
    if config.kind in ("adam", "adamw", "lamb"):
        slots |= {"exp_avg": "mu", "exp_avg_sq": "nu"}
    if config.kind == "rmsprop":
        slots |= {"square_avg": "nu"}
        if config.centered:
            slots |= {"grad_avg": "mu"}
    if config.momentum:
        slots |= {"momentum_buffer": "trace"}
    return slots
