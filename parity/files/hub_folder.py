"""A folder as the Hub has it: config.json and the weights that it describes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from parity.errors import OutputError
from parity.files.atomic import sync
from parity.files.content import METADATA_KEY
from parity.files.hub_config import NAME, WEIGHTS, is_hub_folder, transformers_config
from parity.files.safetensors_format import write_safetensors
from resnet_spec import ResNetConfig


def write_folder(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str] | None
) -> None:
    """Fills an empty folder as ``save_pretrained`` of transformers does.

    Args:
        path: the folder.
        arrays: under transformers' names.
        metadata: ours, which say what network it is.
    """
    own = json.loads((metadata or {})[METADATA_KEY])
    config = ResNetConfig.from_json(own["config"])
    (path / NAME).write_text(transformers_config(config), encoding="utf-8")
    weights = path / WEIGHTS[0]
    write_safetensors(weights, arrays, {"format": "pt", **(metadata or {})})
    sync(weights)
    sync(path / NAME)


def require_folder(path: Path) -> None:
    """Checks that a folder that is to be replaced is one of these.

    Raises:
        OutputError: it is another one.
    """
    if not is_hub_folder(path):
        raise OutputError(
            path, f"is a directory without {NAME} and weights", "Name another one"
        )
