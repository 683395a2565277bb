"""config.json, which lies beside weights on the Hub: what names and shapes hide."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import resnet_spec
from parity.errors import CheckpointError
from parity.inputs import open_regular
from resnet_spec import ResNetConfig
from resnet_spec.attention import ATTENTION
from resnet_spec.printable import plain
from resnet_spec.settings import MOST

NAME = "config.json"

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "flax_model.msgpack",
)
"""Files of weights that a folder of the Hub's has, the preferred one first."""

PREPROCESSOR = "preprocessor_config.json"

BESIDE = (NAME, PREPROCESSOR)
"""Files that describe them."""

MOST_BYTES = 2**22
"""Of a file that describes them."""

_HIDDEN = ("anti_alias", "stride_on", "shortcut", "norm_groups", "attention_ratio")
"""Settings that a name tells where no name and no shape of an entry does."""

_NUMBERS = {
    "output_stride": "output_stride",
    "drop_path_rate": "drop_path_rate",
    "drop_block_rate": "drop_block_rate",
    "zero_init_last": "zero_init_residual",
}
"""timm's arguments that no name and no shape of an entry tells, and settings here."""

_WORDS: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "aa_layer": {
        "avg": {"anti_alias": "average"},
        "avgpool": {"anti_alias": "average"},
        "blur": {"anti_alias": "blur"},
    },
    "act_layer": {"relu": {}},
    "norm_layer": {"batchnorm": {}, "batchnorm2d": {}, "groupnorm": {}},
    "global_pool": {"avg": {}, "": {}},
}
"""Those that are words: which there are here, and what they set."""

_BLOCKS = ({}, *({"attn_layer": kind} for kind in ATTENTION))

_SHOWN = (
    *("layers", "channels", "num_classes", "in_chans", "cardinality", "base_width"),
    *("stem_width", "stem_type", "replace_stem_pool", "block_reduce_first"),
    *("down_kernel_size", "avg_down", "drop_rate"),
)
"""Those that names and shapes tell, whatever is said of them, or that do not matter."""


def describes(path: Path) -> bool:
    """Whether a config.json beside a file is about it, as it is on the Hub."""
    return path.name in WEIGHTS


def is_hub_folder(path: Path) -> bool:
    """Whether a folder has weights and what describes them, as the Hub's have."""
    there = [name for name in WEIGHTS if (path / name).is_file()]
    # What is in several files describes itself.
    return ((path / NAME).is_file() and bool(there)) or any(map(is_index, there))


def is_index(name: str) -> bool:
    """Whether a file of this name says in which others the weights lie."""
    return name.endswith(".index.json")


def read_config(folder: Path, name: str = NAME) -> dict[str, Any]:
    """Reads what describes the weights in a folder; nothing if nothing does.

    Raises:
        CheckpointError: it is no JSON object.
    """
    path = folder / name
    if not path.is_file():
        return {}
    try:
        with open_regular(path, MOST_BYTES, CheckpointError) as file:
            found = json.loads(file.read())
    except CheckpointError as error:
        raise CheckpointError(f"{name} beside it is no JSON ({error})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{name} beside it is no JSON", advice="Get it again, or move it away"
        ) from error
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{name} beside it is no object", advice="Get it again, or move it away"
        )
    return found


def told_settings(told: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that a config.json tells and that shapes may hide.

    Raises:
        CheckpointError: it tells of a network that is none of this family.
    """
    if told.get("model_type") == "resnet":
        return _of_transformers(told)
    architecture = told.get("architecture")
    found = of_name(architecture) if isinstance(architecture, str) else {}
    return found | _of_arguments(told) if found else {}


def untaken(told: Mapping[str, Any]) -> list[str]:
    """Says what timm's config.json tells of training that no network here does."""
    rate = _arguments(told).get("drop_rate")
    return (
        [f"{NAME} says drop_rate={plain(repr(rate), most=40)}; no head here drops"]
        if rate
        else []
    )


def labels_in(told: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns what classes are called, of transformers or timm; nothing if unsaid."""
    found = told.get("id2label") or told.get("label_names")
    if isinstance(found, Mapping):
        found = [found.get(str(index)) for index in range(len(found))]
    names = found if isinstance(found, list) else []
    texts = tuple(name for name in names if isinstance(name, str))
    # LABEL_0 is what transformers writes where nobody has said it.
    return () if len(texts) < len(names) or "LABEL_0" in texts else texts


def anti_aliased(config: ResNetConfig) -> list[str]:
    """Returns the networks of timm whose weights look like those of a network."""
    rows = {name: resnet_spec.get_config(name) for name in resnet_spec.list_models()}
    return [
        name
        for name, row in rows.items()
        if row.anti_alias != "none"
        and row.replace(anti_alias="none").with_ends_of(config) == config
    ]


def of_name(architecture: str) -> dict[str, Any]:
    """Returns the settings that timm's name of a network tells; none of unknown ones.

    Args:
        architecture: such as ``"resnetblur50d"``, maybe with more behind a point or a
            dash, as files have it.
    """
    name = architecture.replace("-", ".").partition(".")[0]
    if name not in resnet_spec.list_models():
        return {}
    config = resnet_spec.get_config(name)
    return {field: getattr(config, field) for field in _HIDDEN}


def _arguments(told: Mapping[str, Any]) -> Mapping[str, Any]:
    found = told.get("model_args")
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise CheckpointError(
            f"the model_args of {NAME} beside it are no object",
            advice="Get it again, or move it away",
        )
    return {str(name): value for name, value in found.items() if value is not None}


def _of_arguments(told: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings in which timm's network is not as its name says.

    Raises:
        CheckpointError: one of them is none that a network here has.
    """
    settings: dict[str, Any] = {}
    for name, value in _arguments(told).items():
        number = type(value) in (bool, int, float) and abs(value) < MOST
        words = _WORDS.get(name, {})
        if name in _NUMBERS and number:
            settings[_NUMBERS[name]] = value
        elif isinstance(value, str) and value in words:
            settings |= words[value]
        elif name not in _SHOWN and not (name == "block_args" and value in _BLOCKS):
            raise CheckpointError(
                f"{NAME} says {plain(name, most=40)}={plain(repr(value), most=40)} in "
                "its model_args, which no network here has",
                advice="Use it with timm",
            )
    return settings


def _of_transformers(told: Mapping[str, Any]) -> dict[str, Any]:
    if told.get("downsample_in_first_stage"):
        raise CheckpointError(
            f"{NAME} says downsample_in_first_stage: its first stage halves the map, "
            "which no network here does",
            advice="Use it with transformers",
        )
    activation = told.get("hidden_act", "relu")
    if activation != "relu":
        raise CheckpointError(
            f"{NAME} says hidden_act {plain(str(activation), most=40)!r}; networks "
            "here have relu",
            advice="Use it with transformers",
        )
    first = told.get("downsample_in_bottleneck", False)
    return {"stride_on": "1x1" if first else "3x3"}


def transformers_config(config: ResNetConfig) -> str:
    """Returns the config.json that transformers builds this network from."""
    widths = [width * config.expansion for width in config.widths]
    head = {}
    if config.include_top:
        names = list(resnet_spec.class_names())
        if config.num_classes != len(names):
            names = [f"LABEL_{index}" for index in range(config.num_classes)]
        # Two cranes and two maillots are in ImageNet.
        unique = {name: names.index(name) for name in names}
        head = {
            "id2label": {str(index): name for index, name in enumerate(names)},
            "label2id": {
                name if unique[name] == index else f"{name} ({index})": index
                for index, name in enumerate(names)
            },
        }
    kind = "ResNetForImageClassification" if config.include_top else "ResNetModel"
    return json.dumps(
        {
            "architectures": [kind],
            "model_type": "resnet",
            "num_channels": config.in_channels,
            "embedding_size": config.widths[0],
            "hidden_sizes": widths,
            "depths": list(config.layers),
            "layer_type": config.block,
            "hidden_act": "relu",
            "downsample_in_first_stage": False,
            "downsample_in_bottleneck": config.stride_on == "1x1",
            **head,
        },
        indent=2,
    )
