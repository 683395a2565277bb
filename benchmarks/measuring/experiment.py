"""One case, all modes: prepared, judged, and timed in turn."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.measuring import gate, inputs
from benchmarks.measuring.pool import Worker, WorkerError, apart
from benchmarks.measuring.timing import rounds
from benchmarks.measuring.worker import Job
from benchmarks.plans.cases import Case, Plan
from benchmarks.plans.modes import Mode, why_not
from resnet_spec import ResNetConfig

Say = Callable[[str, float], None]
"""Told what is being done, and which part of the case is done."""

Verdicts = dict[tuple[str, str], gate.Verdict]
"""By the key of the case that was judged, and the mode's name."""

SHORT = 0.1
"""Seconds; where any mode takes less, all turns begin with a repetition not timed."""

SPARE = 2**30
"""Bytes of memory that must stay free on the machine."""


@dataclass
class Row:
    """What became of one mode.

    Args:
        mode: which.
        status: ``"timed"``, or why not: ``"refused"`` by the gate, ``"failed"`` by an
            error of its own, ``"skipped"`` because it cannot run here.
        reason: of what is not timed.
        data: what is known of it, as JSON has it.
    """

    mode: Mode
    status: str = "timed"
    reason: str = ""
    data: dict[str, Any] = field(default_factory=dict)

    def fail(self, reason: str) -> None:
        """Notes what went wrong, unless it was not to run at all."""
        if self.status == "timed":
            self.status, self.reason = "failed", reason

    def refuse(self, reason: str) -> None:
        """Notes what it computes that it should not."""
        self.status, self.reason = "refused", reason

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON has it."""
        mode = self.mode
        return {
            "mode": mode.name,
            "what": mode.what,
            "kind": mode.kind,
            "framework": mode.framework,
            "arithmetic": mode.arithmetic,
            "environment": dict(mode.environment),
            "status": self.status,
            "reason": self.reason,
            **self.data,
        }


def run_case(
    case: Case,
    modes: Sequence[Mode],
    plan: Plan,
    *,
    threads: int,
    say: Say,
    verdicts: Verdicts | None = None,
) -> dict[str, Any]:
    """Runs every mode of a case and returns what was found, as JSON has it.

    Args:
        case: what to compute.
        modes: ways to compute it.
        plan: how often.
        threads: of each mode.
        say: told what is being done.
        verdicts: what earlier cases of the run were judged as; a larger batch is
            judged by a smaller one of the same mode, and need not be again.
    """
    verdicts = {} if verdicts is None else verdicts
    rows = [_row(mode, case) for mode in modes]
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="resnet-twins-bench-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        say("weights, images and the float64 reference", 0.0)
        try:
            apart(inputs.prepare, case, folder)
        except WorkerError as error:
            for row in rows:
                row.fail(f"there is no reference: {error}")
            return {
                **case.to_dict(),
                "flops": 0,
                "rows": [row.to_dict() for row in rows],
            }
        facts = json.loads((folder / inputs.FACTS).read_text())
        workers: dict[str, Worker] = {}
        asked = [row for row in rows if row.status == "timed"]
        say("starting the modes' processes", 0.1)
        for row in asked:
            # All at once: importing uses one core, and nothing is measured yet.
            if worker := _start(row, case, folder, threads, plan):
                stack.callback(worker.close)
                workers[row.mode.name] = worker
        for row in asked:
            if row.mode.name in workers and not _is_ready(row, workers[row.mode.name]):
                workers.pop(row.mode.name).close()
        for done, row in enumerate(asked):
            if row.mode.name not in workers:
                continue
            what = f"{row.mode.name}: building and checking"
            say(what, 0.1 + 0.5 * done / len(asked))
            worker = workers[row.mode.name]
            if not _enters(row, worker, case, folder, facts["growth"], verdicts):
                workers.pop(row.mode.name).close()
        _time(rows, workers, plan, say)
        for worker in workers.values():  # all at once, not each after the one before
            worker.leave()
    return {**case.to_dict(), **facts, "rows": [row.to_dict() for row in rows]}


def _row(mode: Mode, case: Case) -> Row:
    if reason := why_not(mode, case):
        return Row(mode, "skipped", reason)
    if case.modes and mode.name not in case.modes:
        return Row(mode, "skipped", "it is left out here; --mode names it")
    return Row(mode)


def _start(
    row: Row, case: Case, folder: Path, threads: int, plan: Plan
) -> Worker | None:
    if _memory_is_short(row, folder):
        return None
    return Worker(
        Job(
            mode=row.mode,
            case=case,
            folder=folder,
            threads=threads,
        )
    )


def _memory_is_short(row: Row, folder: Path) -> bool:
    free = psutil.virtual_memory().available
    if free > SPARE + 4 * (folder / inputs.WEIGHTS).stat().st_size:
        return False
    row.status = "skipped"
    row.reason = f"only {free / 2**30:.1f} GiB of memory are left"
    return True


def _is_ready(row: Row, worker: Worker) -> bool:
    try:
        worker.ready()
    except WorkerError as error:
        row.fail(str(error))
        return False
    return True


def _enters(
    row: Row,
    worker: Worker,
    case: Case,
    folder: Path,
    growth: float,
    verdicts: Verdicts,
) -> bool:
    """Builds a mode and lets the gate judge it; says whether it may be timed."""
    if _memory_is_short(row, folder):
        return False
    try:
        known = case.judged.key, row.mode.name
        verdict = verdicts.get(known) if case != case.judged else None
        if case.task == "training" and case != case.judged and verdict is None:
            # Its statistics are of the whole batch: a smaller one is another step.
            with closing(Worker(replace(worker.job, case=case.judged))) as smaller:
                smaller.ready()
                _, found, facts = _built(smaller)
            verdict = _judge(row.mode, found, facts, case, folder, growth)
            if not verdict.ok:
                row.refuse(str(verdict))
                return False
        (first, second), found, facts = _built(worker)
        if not all(np.isfinite(value).all() for value in found.values()):
            row.refuse("it gives values that are not finite")
            return False
        verdict = verdict or _judge(row.mode, found, facts, case, folder, growth)
        verdicts[known] = verdict
    except WorkerError as error:
        row.fail(str(error))
        return False
    row.data |= {
        "first": first + facts.get("prepared", 0.0),
        "second": second,
        "flops": facts["flops"],
        "settings": facts["settings"],
        "own": facts.get("own"),
        "gate": {
            "error": verdict.error if np.isfinite(verdict.error) else None,
            "limit": verdict.limit,
            "quantity": verdict.quantity,
            "batch": case.judged.batch,
        },
    }
    if not verdict.ok:
        row.refuse(str(verdict))
    return verdict.ok


def _built(
    worker: Worker,
) -> tuple[list[float], dict[str, np.ndarray], dict[str, Any]]:
    """Lets a mode be made; returns times of two calls, their results, and facts."""
    times, path, facts = worker.build()
    with np.load(path) as file:
        found = dict(file)
    path.unlink()
    return times, found, facts


def _judge(
    mode: Mode,
    found: dict[str, np.ndarray],
    facts: dict[str, Any],
    case: Case,
    folder: Path,
    growth: float,
) -> gate.Verdict:
    if mode.kind == "ceiling":
        return gate.judge_product(found, mode.arithmetic)
    results = inputs.REFERENCE
    if facts.get("own"):  # its weights cannot be ours, so ours become its
        weights, results = (f"{mode.name}-{name}.npz" for name in ("weights", "own"))
        config = ResNetConfig.from_json(facts["own"])
        growth = apart(_own_reference, case.judged, config, folder, weights, results)
    if case.task == "inference":  # where one image knows nothing of the others
        found = {name: value[: case.judged.batch] for name, value in found.items()}
    with np.load(folder / results) as file:
        layers = inputs.depth(case.spec)
        return gate.judge(found, dict(file), mode.arithmetic, growth, layers)


def _own_reference(
    case: Case, config: ResNetConfig, folder: Path, weights: str, results: str
) -> float:
    return inputs.reference(case, config, folder, weights=weights, results=results)


def _time(
    rows: Sequence[Row], workers: dict[str, Worker], plan: Plan, say: Say
) -> None:
    by_name = {row.mode.name: row for row in rows}
    # All or none: the same is asked of every mode of a case.
    wake = int(any(by_name[name].data["second"] < SHORT for name in workers))

    def turn(name: str, worker: Worker) -> float:
        if by_name[name].status == "timed":
            try:
                return worker.time(wake=wake)
            except WorkerError as error:
                by_name[name].fail(str(error))
        return math.nan

    timers = {name: partial(turn, name, worker) for name, worker in workers.items()}
    total = plan.warm_up + plan.repeats

    def progress(done: int) -> None:
        say(f"timing, round {done} of {total}", 0.6 + 0.4 * done / total)

    times = rounds(
        timers,
        repeats=plan.repeats,
        warm_up=plan.warm_up,
        seconds=plan.seconds,
        progress=progress,
    )
    for name, worker in workers.items():
        row = by_name[name]
        if row.status == "timed":
            row.data["times"] = times[name]
            row.data["starts"] = [start for start, _ in worker.turns][plan.warm_up :]
            row.data["memory"] = worker.memory()
