"""The mask of what is dropped, as a tensor: nothing that ``torch.compile`` can follow.

A file of its own, which is imported when the first mask is drawn: to be left alone by
the compiler, the function imports it, and that takes as long as torch itself.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@torch.compiler.disable(reason="what is dropped is drawn by numpy, for each call")
def mask(drop: Any, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 i j"]:
    """Draws which parts of a map are kept, and counts the call.

    Args:
        drop: the layer.
        x: the map.
    """
    n, c, h, w = x.shape
    kept = drop.kept(drop.count, (n, c, h, w))
    drop.count += 1
    # What a mask is scaled by is rounded once, and no sum of a half type overflows.
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.from_numpy(kept).to(x.device, dtype)
