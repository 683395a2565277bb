"""Twins without data, and with a state."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from typing import Any

import numpy as np

from parity.weights.names import COUNTER, Entry
from parity.weights.state import entries, load_state_dict
from resnet_spec import ResNetConfig


def require(*frameworks: str) -> None:
    """Makes sure of frameworks before anything is fetched or computed for them.

    Raises:
        ModuleNotFoundError: one is not installed.
    """
    for name in frameworks:
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def load_frameworks(*frameworks: str) -> None:
    """Imports frameworks that are needed in any case, so that no other one is.

    Raises:
        ModuleNotFoundError: one is not installed.
    """
    require(*frameworks)
    for name in frameworks:
        import_module(name)


def abstract_torch(config: ResNetConfig, *, param_dtype: str = "float32") -> Any:
    """Returns the torch twin on the meta device; loading a state gives it data."""
    import torch

    import resnet_torch

    with torch.device("meta"):
        model = resnet_torch.create_model(config).eval()
        return model.to(getattr(torch, param_dtype))


def abstract_flax(
    config: ResNetConfig, *, dtype: str | None = None, param_dtype: str = "float32"
) -> Any:
    """Returns the Flax twin without arrays; loading a state gives it data."""
    from flax import nnx

    import resnet_flax

    def create() -> resnet_flax.ResNet:
        return resnet_flax.create_model(
            config, rngs=0, dtype=dtype, param_dtype=param_dtype
        )

    model = nnx.eval_shape(create)
    model.eval()
    return model


ABSTRACT = {"torch": abstract_torch, "flax": abstract_flax}


def entries_of(config: ResNetConfig) -> dict[str, Entry]:
    """Lists names, shapes and dtypes of a network's state, from whichever twin is here.

    To import a framework takes seconds: it is one that is loaded, if there is any.

    Raises:
        ModuleNotFoundError: neither framework is installed.
    """
    loaded = (name for name in ABSTRACT if name in sys.modules)
    installed = (name for name in ABSTRACT if find_spec(name) is not None)
    return dict(_entries(next(chain(loaded, installed), "torch"), config))


@lru_cache(maxsize=32)  # a conversion asks several times, and to build one takes time
def _entries(framework: str, config: ResNetConfig) -> dict[str, Entry]:
    return entries(ABSTRACT[framework](config))


def entries_in(
    config: ResNetConfig, state: Mapping[str, np.ndarray]
) -> dict[str, Entry]:
    """Lists a network's entries in the floating-point dtype that a state has.

    It is that of the first entry that is there: a deep stem has no conv1.weight.
    """
    expected = entries_of(config)
    found = (state[name].dtype.name for name in expected if name in state)
    dtype = next(found, "float32")
    return {
        name: entry
        if name.rpartition(".")[2] == COUNTER
        else replace(entry, dtype=dtype)
        for name, entry in expected.items()
    }


def create(framework: str, config: ResNetConfig, *, seed: int) -> Any:
    """Returns a twin as training starts from it, in training mode."""
    if framework == "torch":
        import torch

        import resnet_torch

        generator = torch.Generator().manual_seed(seed)
        return resnet_torch.create_model(config, generator=generator)
    from flax import nnx

    import resnet_flax

    return resnet_flax.create_model(config, rngs=nnx.Rngs(seed))


def build(framework: str, config: ResNetConfig, state: dict[str, np.ndarray]) -> Any:
    """Returns a twin in evaluation mode, with this state.

    Args:
        framework: ``"torch"`` or ``"flax"``.
        config: the network.
        state: in float32, as ``weights_for`` finds it.
    """
    model = ABSTRACT[framework](config)
    load_state_dict(model, state)
    return model
