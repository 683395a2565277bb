"""An engine by the name of its framework, which is imported only then."""

from __future__ import annotations

from typing import Any

from parity.weights.twins import require
from resnet_training.engine import Backend, Engine, State
from resnet_training.plan import Plan


def create_engine(backend: Backend, plan: Plan, state: State, **options: Any) -> Engine:
    """Makes an engine.

    Args:
        backend: ``"torch"`` or ``"flax"``.
        plan: what is trained.
        state: that the network starts from, in float32.
        **options: of the framework's own engine.

    Raises:
        ModuleNotFoundError: the framework is not installed.
    """
    require(backend)
    if backend == "torch":
        from resnet_training.engine_torch import TorchEngine

        return TorchEngine(plan, state, **options)
    from resnet_training.engine_flax import FlaxEngine

    return FlaxEngine(plan, state, **options)
