"""What the leaves are called that several dialects share."""

from __future__ import annotations

from collections.abc import Mapping

TORCH: Mapping[str, str] = {
    f"{role}.{leaf}": f"{{}}.{leaf}"
    for role, leaves in {
        "conv": ("weight", "bias"),
        "linear": ("weight", "bias"),
        "norm": ("weight", "bias", "running_mean", "running_var"),
    }.items()
    for leaf in leaves
} | {"norm.num_batches_tracked": "{}.num_batches_tracked"}

NNX: Mapping[str, str] = {
    "conv.weight": "{}.kernel",
    "conv.bias": "{}.bias",
    "linear.weight": "{}.kernel",
    "linear.bias": "{}.bias",
    "norm.weight": "{}.scale",
    "norm.bias": "{}.bias",
    "norm.running_mean": "{}.mean",
    "norm.running_var": "{}.var",
}

LINEN: Mapping[str, str] = {
    leaf: ("batch_stats." if "running" in leaf else "params.") + form
    for leaf, form in NNX.items()
}

KERAS: Mapping[str, str] = {
    "conv.weight": "{}.kernel",
    "conv.bias": "{}.bias",
    "linear.weight": "{}.kernel",
    "linear.bias": "{}.bias",
    "norm.weight": "{}.gamma",
    "norm.bias": "{}.beta",
    "norm.running_mean": "{}.moving_mean",
    "norm.running_var": "{}.moving_variance",
}

TRAINING = ("step", "opt_state.*", "dynamic_scale.*", "dynamic_scale")
"""What a Flax TrainState has beside its variables."""
