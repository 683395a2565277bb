"""One of several processes that train together: what ``test_devices.py`` starts.

The command reads cases as JSON from its first argument, and writes what each found into
the folder that is the second, with its rank.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from resnet_training.engine import Backend
from tests.support.runs import drawn, engine_of, loader_of, recipe, trained


def main(cases: dict[str, dict[str, Any]], backend: Backend, folder: Path) -> None:
    """Trains by each case, one behind the other."""
    data, engine = drawn(), None
    for name, case in cases.items():
        one = recipe(**case["recipe"])
        engine = engine_of(backend, one, data, **case["options"])
        losses, arrays = trained(engine, one, data, 0, engine.plan.steps)
        with loader_of(engine, one, data) as loader:
            batches = loader.evaluation(data.validation)
            counts = engine.counted([engine.evaluate(batch) for batch in batches])
        found = {**arrays, "losses": np.array(losses)}
        found["counts"] = np.array([counts.loss, counts.right, counts.images])
        save_file(found, folder / f"{name}-{engine.rank}.safetensors")
    if engine is not None:
        engine.close()


if __name__ == "__main__":
    warnings.simplefilter("error")
    if sys.argv[2] == "flax":
        import jax

        jax.config.update("jax_numpy_dtype_promotion", "strict")
        jax.config.update("jax_numpy_rank_promotion", "raise")
    main(
        json.loads(sys.argv[1]),
        "flax" if sys.argv[2] == "flax" else "torch",
        Path(sys.argv[3]),
    )
