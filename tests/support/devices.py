"""A process that trains on several devices: what ``test_devices.py`` starts.

The command takes a backend, a folder and tasks as JSON, by name: ``recipe`` and
``options`` of an engine, and after how many steps another one takes over; or a ``run``
to begin or to go on with. What each found is in the folder, by its name and the
process's rank.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from safetensors.numpy import save_file

from resnet_training import Options, begin, beginning, resume
from resnet_training.engine import Backend
from resnet_training.loader import Loader
from tests.support.runs import drawn, engine_of, loader_of, recipe, trained

DATA = drawn()


def main(backend: Backend, folder: Path, tasks: dict[str, dict[str, Any]]) -> None:
    """Does one task after the other."""
    engine = None
    for name, task in tasks.items():
        if "run" in task:
            _run(backend, **task)
            continue
        one = recipe(**task["recipe"])
        with _fault(backend, task.get("fault")):
            engine = engine_of(backend, one, DATA, **task["options"])
            end = engine.plan.steps
            losses, arrays = trained(engine, one, DATA, 0, task.get("stop", end))
            if "stop" in task:  # and a new engine goes on
                engine = engine_of(backend, one, DATA, **task["options"])
                engine.restore(arrays, task["stop"])
                more, arrays = trained(engine, one, DATA, task["stop"], end)
                losses += more
        found = {**arrays, "losses": np.array(losses)}
        with loader_of(engine, one, DATA) as loader:
            batches = loader.evaluation(DATA.validation)
            counts = engine.counted([engine.evaluate(batch) for batch in batches])
            found["counts"] = np.array([counts.loss, counts.right, counts.images])
            if task.get("lowered"):
                found["gathers"] = np.array(_gathers(engine, loader))
        last = engine.rank == engine.ranks - 1
        found["asked"] = np.array([engine.any(last) for _ in range(4)])
        save_file(found, folder / f"{name}-{engine.rank}.safetensors")
    if engine is not None:
        engine.close()


def _run(
    backend: Backend, run: str, stop: int | None, options: dict[str, Any], **fields: Any
) -> None:
    """Begins a run, or goes on with it; all but the first process must not write."""
    folder, chosen = Path(run), Options(engine=options, save_every=2)
    again = (folder / "last.safetensors").exists()
    if again:
        one = resume(folder, DATA, backend, options=chosen)
    else:
        asked = recipe(**fields["recipe"])
        right = beginning.replacing
        with patch.object(beginning, "replacing", side_effect=right) as written:
            one = begin(folder, DATA, asked, backend, options=chosen)
        assert written.called == (one.engine.rank == 0)
    with ExitStack() as stack:
        if one.engine.rank:
            for name in ("checkpoint.write", "Metrics", "write_picture"):
                fault = AssertionError(f"{name} on rank {one.engine.rank}")
                mock = patch(f"resnet_training.loop.{name}", side_effect=fault)
                stack.enter_context(mock)
        one.to(stop)


def _fault(backend: Backend, fault: str | None) -> AbstractContextManager[Any]:
    """Makes an engine wrong."""
    if fault is None:
        return nullcontext()
    if backend == "flax":
        from resnet_training import ranks_flax

        assert fault == "sum of gradients"
        return patch.object(ranks_flax.jax.lax, "pmean", ranks_flax.jax.lax.psum)
    from resnet_training import ranks_torch

    if fault == "own statistics":
        return patch.object(ranks_torch, "with_global_statistics", lambda model: None)
    assert fault == "sum of gradients"
    spread = ranks_torch.Ranks.spread

    def summed(ranks: Any, model: Any) -> Any:
        for parameter in model.parameters():
            parameter.register_hook(lambda gradient: gradient * ranks.ranks)
        return spread(ranks, model)

    return patch.object(ranks_torch.Ranks, "spread", summed)


def _gathers(engine: Any, loader: Loader) -> int:
    """Counts how often a step's program brings images together on one device."""
    import jax

    batch = next(iter(loader.batches(0, 1)))
    with jax.enable_x64(True):
        lowered = engine._learn.lower(engine._state, engine._placed(batch))
        text = lowered.compile().as_text()
    assert " all-reduce(" in text
    return len(re.findall(r"= (?:u8|f64)\S* (?:all-gather|all-to-all)\(", text))


if __name__ == "__main__":
    warnings.simplefilter("error")
    backend: Backend = "flax" if sys.argv[1] == "flax" else "torch"
    if backend == "flax":
        import jax

        jax.config.update("jax_numpy_dtype_promotion", "strict")
        jax.config.update("jax_numpy_rank_promotion", "raise")
    main(backend, Path(sys.argv[2]), json.loads(sys.argv[3]))
