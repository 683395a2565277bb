"""What a residual network is, without any framework: standard library only."""

from typing import Any

from resnet_spec.config import ResNetConfig
from resnet_spec.optim import OptimizerConfig, Schedule
from resnet_spec.paper import Printed, printed
from resnet_spec.plan import FeatureInfo, FeatureInfos
from resnet_spec.preprocessing import Preprocessing
from resnet_spec.recipes import RECIPES, get_recipe
from resnet_spec.timm_weights import (
    TimmWeights,
    get_timm_weights,
    is_timm,
    list_timm_weights,
    timm_name,
)
from resnet_spec.training import TrainingRecipe
from resnet_spec.variants import (
    closest_name,
    describe,
    find_name,
    get_config,
    list_models,
    resolve,
)
from resnet_spec.weights import (
    PublishedWeights,
    class_names,
    get_weights,
    is_published,
    list_weights,
    published_file,
    published_sha256,
)

__all__ = [
    "RECIPES",
    "FeatureInfo",
    "FeatureInfos",
    "OptimizerConfig",
    "Preprocessing",
    "Printed",
    "PublishedWeights",
    "ResNetConfig",
    "Schedule",
    "TimmWeights",
    "TrainingRecipe",
    "class_names",
    "closest_name",
    "describe",
    "find_name",
    "get_config",
    "get_recipe",
    "get_timm_weights",
    "get_weights",
    "is_published",
    "is_timm",
    "list_models",
    "list_timm_weights",
    "list_weights",
    "printed",
    "published_file",
    "published_sha256",
    "resolve",
    "timm_name",
]


def __getattr__(name: str) -> Any:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Only when it is asked for: the module that reads it takes longer than all others.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("resnet-twins")
    except PackageNotFoundError:  # a copy of the source
        return "0+unknown"
