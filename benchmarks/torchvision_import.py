"""torchvision beside a CPU torch: its compiled operators do not load there."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

import torch

_LIBRARIES: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """Imports torchvision; where its operators are missing, with empty ones.

    Its ResNets and transforms need none of them, but its import asks for two schemas.
    """
    try:
        return importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        if not importlib.util.find_spec("torchvision"):
            raise
        library = torch.library.Library("torchvision", "DEF")
        boxes = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(f"nms{boxes}")
        library.define(f"qnms{boxes}")
        _LIBRARIES.append(library)  # torch forgets the operators with the object
        return importlib.import_module("torchvision")
