"""A folder as the Hub has it: the weights, what describes them, and a card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from parity.errors import CheckpointError, OutputError
from parity.files.atomic import sync
from parity.files.content import METADATA_KEY
from parity.files.hub_config import (
    NAME,
    PREPROCESSOR,
    WEIGHTS,
    is_hub_folder,
    transformers_config,
)
from parity.files.preprocessing import for_timm, for_transformers
from parity.files.safetensors_format import write_safetensors
from resnet_spec import Preprocessing, ResNetConfig, closest_name, describe, timm_name

CARD = "README.md"


def write_transformers(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    metadata: dict[str, str] | None,
    preprocessing: Preprocessing | None = None,
) -> None:
    """Fills an empty folder as ``save_pretrained`` of transformers does.

    Args:
        path: the folder.
        arrays: under transformers' names.
        metadata: ours, which say what network it is.
        preprocessing: what is done to photographs for it, if that is known.
    """
    config = _config_in(metadata)
    texts = {NAME: transformers_config(config)}
    if preprocessing is not None:
        texts[PREPROCESSOR] = for_transformers(preprocessing)
    _fill(path, arrays, metadata, texts | {CARD: _card(config, "transformers")})


def write_timm(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    metadata: dict[str, str] | None,
    preprocessing: Preprocessing | None = None,
) -> None:
    """Fills an empty folder as timm's ``save_for_hf`` does.

    Args:
        path: the folder.
        arrays: under torchvision's names, which are timm's.
        metadata: ours, which say what network it is.
        preprocessing: what is done to photographs for it, if that is known.

    Raises:
        CheckpointError: timm has no name for the network.
    """
    config = _config_in(metadata)
    texts = {NAME: _timm_config(config, preprocessing), CARD: _card(config, "timm")}
    _fill(path, arrays, metadata, texts)


def require_folder(path: Path) -> None:
    """Checks that a folder that is to be replaced is one of these.

    Raises:
        OutputError: it is another one.
    """
    if not is_hub_folder(path):
        raise OutputError(
            path, f"is a directory without {NAME} and weights", "Name another one"
        )


def _config_in(metadata: dict[str, str] | None) -> ResNetConfig:
    own = json.loads((metadata or {})[METADATA_KEY])
    return ResNetConfig.from_json(own["config"])


def _fill(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    metadata: dict[str, str] | None,
    texts: Mapping[str, str],
) -> None:
    for name, text in texts.items():
        (path / name).write_text(text, encoding="utf-8")
        sync(path / name)
    write_safetensors(path / WEIGHTS[0], arrays, {"format": "pt", **(metadata or {})})
    sync(path / WEIGHTS[0])


def _timm_config(config: ResNetConfig, preprocessing: Preprocessing | None) -> str:
    name = timm_name(config)
    if name is None:
        raise CheckpointError(
            f"timm has no network that is {describe(config)}",
            advice="Write it as huggingface, or as a file",
        )
    classes = config.num_classes if config.include_top else 0
    beside: dict[str, Any] = {
        "num_classes": classes,
        "first_conv": "conv1.0" if config.stem in ("deep", "tiered") else "conv1",
        "classifier": "fc",
    }
    if preprocessing is not None:
        beside |= for_timm(preprocessing)
    told: dict[str, Any] = {"architecture": name, "num_classes": classes}
    if config.in_channels != 3:
        told["model_args"] = {"in_chans": config.in_channels}
    return json.dumps(told | {"pretrained_cfg": beside}, indent=2)


_HOW = {
    "transformers": """from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained("OWNER/NAME")""",
    "timm": """import timm

model = timm.create_model("hf-hub:OWNER/NAME", pretrained=True)""",
}
"""How a library opens a folder once it is on the Hub."""


def _card(config: ResNetConfig, library: str) -> str:
    """Returns the card; its head tells the Hub how the folder is opened.

    Whose work the weights are, and under what licence, is not known here.
    """
    task = "pipeline_tag: image-classification\n" if config.include_top else ""
    name = closest_name(config)
    ours = 'state = parity.load("hf://OWNER/NAME")'
    if name is not None:
        ours = f'model = parity.create_model("{name}", weights="hf://OWNER/NAME")'
    theirs = _HOW[library]
    if not config.include_top:
        theirs = theirs.replace("ForImageClassification", "")
    return f"""---
library_name: {library}
{task}tags:
- {library}
- resnet
- image-classification
---
# {describe(config)}

```python
{theirs}
```

In PyTorch or in Flax NNX, with Resnet Twins:

```python
import parity

{ours}
```
"""
