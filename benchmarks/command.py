"""The command ``python -m benchmarks``: choose, run, print; no figure is made here."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.measuring import conversion, experiment, programs
from benchmarks.plans import cases, modes
from benchmarks.plans.cases import Case, Plan
from benchmarks.plans.modes import Mode
from benchmarks.results import comparison, file, growth, tables
from resnet_cli.failures import run
from resnet_cli.options import read_size

app = typer.Typer(
    help="Times both twins in every mode, and other libraries, in one run.",
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DEFAULT = Path("out/bench.json")

Names = Optional[list[str]]  # noqa: UP045  typer evaluates it
File = Optional[Path]  # noqa: UP045
Text = Optional[str]  # noqa: UP045
Number = Optional[int]  # noqa: UP045


@app.command()
def bench(
    profile: Annotated[
        str, typer.Option(help="What to run: quick, full or growth.")
    ] = "quick",
    network: Annotated[
        Names, typer.Option(help="These networks, not the profile's. Repeatable.")
    ] = None,
    task: Annotated[
        Names, typer.Option(help="With --network: inference or training. Repeatable.")
    ] = None,
    batch: Annotated[
        Optional[list[int]],  # noqa: UP045
        typer.Option(help="With --network: images in a batch. Repeatable."),
    ] = None,
    size: Annotated[
        Text, typer.Option(help="With --network: height and width of the images.")
    ] = None,
    mode: Annotated[
        Names,
        typer.Option(
            help="These modes only: names, or twins, peers, torch, flax. Repeatable."
        ),
    ] = None,
    dtype: Annotated[
        Names, typer.Option(help="Modes of these only: float32, tf32, bfloat16.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[
        Number, typer.Option(help="Of each mode; by default every core's.", min=1)
    ] = None,
    repeats: Annotated[
        Number, typer.Option(help="Measured repetitions, at least 7.", min=7)
    ] = None,
    budget: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Seconds: no case is begun that would end later."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the JSON goes.")] = DEFAULT,
    plot: Annotated[File, typer.Option(help="Draw there what was found.")] = None,
    compare: Annotated[
        File, typer.Option(help="Show what changed since this JSON was written.")
    ] = None,
    read: Annotated[
        File, typer.Option(help="Run nothing: show this JSON again.")
    ] = None,
    list_modes: Annotated[
        bool, typer.Option("--list", help="List the modes, and why one cannot run.")
    ] = False,
) -> None:
    """Times both twins in every mode, and other libraries, in one run."""
    old = file.read(compare) if compare is not None else None
    console = Console(width=None if sys.stdout.isatty() else 160)
    if plot is not None:
        file.require_place(plot)
    if read is not None:
        found = file.read(read)
    else:
        chosen = choose_modes(mode or [], dtype or [])
        plan = _plan(profile, device, repeats)
        if mode or dtype:
            all_of_them = (replace(case, modes=()) for case in plan.cases)
            plan = replace(plan, cases=tuple(all_of_them))
        if network is not None:
            plan = replace(plan, **_grid(network, task, batch, size, device))
        elif task or batch or size:
            raise ValueError("--task, --batch and --size go with --network")
        if list_modes:
            console.print(_list(plan.cases[0], chosen))
            return
        _require_sweeping(plan, chosen)
        if out == DEFAULT:
            out.parent.mkdir(exist_ok=True)
        file.require_place(out)
        with _bar() as say:
            found = run_plan(
                *(plan, chosen, threads or _cores(), say),
                keep=lambda found: file.write(found, out),
                budget=budget,
            )
    show(found, console)
    if old is not None:
        _compare(old, found, console)
    if plot is not None:
        from benchmarks.results.plots import draw

        draw(found, plot)
        print(f"picture: {plot}", file=sys.stderr)
    if read is None:
        print(f"results: {out}", file=sys.stderr)


def run_plan(
    plan: Plan,
    chosen: Sequence[Mode],
    threads: int,
    say: Callable[[str, float], None] = lambda what, part: None,
    keep: Callable[[dict[str, Any]], None] = lambda found: None,
    budget: float | None = None,
) -> dict[str, Any]:
    """Runs a plan and returns what was found, as its JSON has it.

    Args:
        plan: what to run.
        chosen: modes; where costs are to be seen growing, those meant for it.
        threads: of each mode.
        say: told what is done, and which part of all is done.
        keep: given what there is after each case, so that it is not lost.
        budget: seconds; once a case as long as the longest so far would end later, the
            rest is left out.
    """
    start = time.monotonic()
    steps = len(plan.cases) + len(plan.sizes) + len(plan.programs)
    found: dict[str, Any] = {
        "format": file.FORMAT,
        "environment": file.environment(plan, threads),
        "took": 0.0,
        "cases": [],
        "conversion": [],
        "programs": [],
    }
    verdicts: experiment.Verdicts = {}
    for done, case in enumerate(plan.cases):
        longest = max((ran["took"] for ran in found["cases"]), default=0.0)
        if budget is not None and time.monotonic() - start + longest > budget:
            break
        those = [m for m in chosen if m.sweeps] if case.sweeps else list(chosen)

        def tell(what: str, part: float, case: Case = case, done: int = done) -> None:
            say(f"{case.key}: {what}", (done + part) / steps)

        before = time.monotonic()
        ran = experiment.run_case(
            *(case, those, plan), threads=threads, say=tell, verdicts=verdicts
        )
        found["cases"].append({**ran, "took": time.monotonic() - before})
        found["took"] = time.monotonic() - start
        keep(found)
    for done, name in enumerate(plan.sizes, len(plan.cases)):
        say(f"converting {name}", done / steps)
        found["conversion"].append(conversion.measure(name, repeats=plan.repeats))
    for done, name in enumerate(plan.programs, steps - len(plan.programs)):
        say(f"programs of {name}", done / steps)
        found["programs"] += programs.measure(name)
    found["took"] = time.monotonic() - start
    keep(found)
    return found


def show(found: dict[str, Any], console: Console) -> None:
    """Prints the tables of a run."""
    for case in found["cases"]:
        if not case["sweeps"]:
            console.print(tables.of_case(case), "")
            if (table := tables.of_bests(case)) is not None:
                console.print(table, "")
    if growths := growth.fit(found):
        console.print(tables.of_growth(growths), "")
    for table in (tables.of_conversion(found), tables.skipped(found)):
        if table is not None:
            console.print(table, "")
    console.print(f"{found['took']:.0f} s in all")


def choose_modes(names: Sequence[str], dtypes: Sequence[str]) -> list[Mode]:
    """Returns the modes that a user names; the ceilings always go with them.

    Raises:
        ValueError: there is no such mode, or no such dtype.
    """
    groups = {
        "twins": [m for m in modes.MODES if m.kind == "twin"],
        "peers": [m for m in modes.MODES if m.kind == "peer"],
        "torch": [m for m in modes.MODES if m.runner == "torch_twin"],
        "flax": [m for m in modes.MODES if m.runner == "flax_twin"],
    }
    wanted: list[Mode] = []
    for name in names or ["twins", "peers"]:
        if name not in groups and name not in modes.NAMES:
            known = ", ".join([*groups, *modes.NAMES])
            raise ValueError(f"no mode named {name!r}; there are {known}")
        wanted += groups.get(name) or [modes.NAMES[name]]
    known = ("float32", "tf32", "bfloat16")
    if wrong := [dtype for dtype in dtypes if dtype not in known]:
        raise ValueError(f"--dtype is {wrong[0]!r}; it must be one of {known}")
    ceilings = [m for m in modes.MODES if m.kind == "ceiling"]
    names = [m.name for m in [*wanted, *ceilings]]
    return [
        m
        for m in modes.MODES
        if m.name in names and (not dtypes or m.arithmetic in dtypes)
    ]


def _plan(profile: str, device: Any, repeats: int | None) -> Plan:
    for option, value, known in (
        ("--profile", profile, tuple(cases.PROFILES)),
        ("--device", device, cases.DEVICES),
    ):
        if value not in known:
            raise ValueError(f"{option} is {value!r}; it must be {_or(known)}")
    plan = cases.PROFILES[profile](device)
    if repeats is None:
        return plan
    return replace(plan, repeats=repeats, seconds=None)


def _require_sweeping(plan: Plan, chosen: Sequence[Mode]) -> None:
    if all(case.sweeps for case in plan.cases) and not any(m.sweeps for m in chosen):
        known = [mode.name for mode in modes.MODES if mode.sweeps]
        raise ValueError(f"--profile growth is for {_or(known)}; --mode names none")


def _grid(
    networks: Sequence[str],
    tasks: Sequence[Any] | None,
    batches: Sequence[int] | None,
    size: str | None,
    device: Any,
) -> dict[str, Any]:
    if wrong := [task for task in tasks or () if task not in cases.TASKS]:
        raise ValueError(f"--task is {wrong[0]!r}; it must be {_or(cases.TASKS)}")
    pixels = read_size(size) if size is not None else None
    tasks = tasks or ["inference"]
    batches = batches or ([1] if "inference" in tasks else [2])
    found = cases.grid(networks, tasks, batches, pixels, device)
    if not found:
        raise ValueError("--batch is 1; training needs at least 2 images")
    return {"name": "chosen", "cases": found, "sizes": ()}


def _compare(old: dict[str, Any], new: dict[str, Any], console: Console) -> None:
    drift = comparison.drift(old, new)
    changes = comparison.compare(old, new)
    console.print(tables.of_changes(changes, drift))
    same = sum(change.verdict == "same" for change in changes)
    console.print(f"{same} of {len(changes)} rows are the same, within the noise")
    for setting in comparison.other_settings(old, new):
        console.print(f"not the same: {setting}", highlight=False)


def _list(case: Case, chosen: Sequence[Mode]) -> Table:
    heads = ("mode", "what", "computes in", "cannot run here because")
    table = tables.make_table(f"modes, for {case.key}", heads, right=())
    for mode in chosen:
        reason = modes.why_not(mode, case) or ""
        table.add_row(mode.name, mode.what, mode.arithmetic, escape(reason))
    return table


def _or(known: Sequence[str]) -> str:
    return f"{', '.join(known[:-1])} or {known[-1]}"


def _cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _bar() -> Iterator[Callable[[str, float], None]]:
    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=1.0)
        yield lambda what, part: bar.update(task, description=what, completed=part)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; exits with 2 (bad input) or 3 (output)."""
    run(app, "python -m benchmarks", sys.argv[1:] if arguments is None else arguments)
