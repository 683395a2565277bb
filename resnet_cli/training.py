"""What ``train`` and ``evaluate`` do: choose, watch a run, say how it went."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

import resnet_spec
from parity.errors import InputError
from parity.inputs import read_text
from parity.weights.twins import require
from resnet_cli.failures import tell
from resnet_cli.progress import download_bar, say_notes, status
from resnet_spec import TrainingRecipe, get_recipe
from resnet_spec.printable import plain
from resnet_spec.recipes import with_fields
from resnet_training import (
    BEST,
    Backend,
    Options,
    Outcome,
    Run,
    Seen,
    begin,
    evaluate,
    open_images,
    resume,
)

_MOST_BYTES = 2**20  # of a recipe


def recipe_of(
    name: str | None, fields: dict[str, Any], done: TrainingRecipe | None
) -> TrainingRecipe:
    """Returns the recipe that was asked for.

    Args:
        name: of a recipe, or a file of its JSON; ``None`` for what was done, or the
            reference's.
        fields: of the recipe, other than its own.
        done: what was done, if anything was.
    """
    if name is None:
        return with_fields(done or get_recipe("reference"), **fields)
    recipe = _read(name) if name.endswith(".json") else get_recipe(name)
    if done is not None:  # the file of weights need not be there any more
        fields = {"weights": done.weights, **fields}
    return with_fields(recipe, **fields)


def _read(path: str) -> TrainingRecipe:
    try:
        return TrainingRecipe.from_json(read_text(path, _MOST_BYTES))
    except InputError:
        raise
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is no JSON ({error})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def train(
    data: Path,
    out: Path,
    *,
    backend: Backend,
    recipe: Callable[[TrainingRecipe | None], TrainingRecipe],
    again: bool,
    weights: str | None,
    val_split: float | None,
    stop_at: int | None,
    options: Options,
) -> None:
    """Begins a run, or goes on with one, and says how it went.

    Args:
        data: the images.
        out: folder of the run.
        backend: ``"torch"`` or ``"flax"``.
        recipe: what is asked for, given what was done, if anything was.
        again: go on with what is in the folder.
        weights: published ones or a file to start from.
        val_split: part of the images to validate on, where nothing says which.
        stop_at: steps after which to stop.
        options: what changes no number.
    """
    if options.tensorboard:
        require("tensorboardX")
    if again:
        run = resume(
            out, data, backend, recipe=recipe, val_split=val_split, options=options
        )
    else:
        with download_bar() as progress:
            run = begin(
                out,
                data,
                recipe(None),
                backend,
                weights=weights,
                val_split=val_split,
                options=options,
                progress=progress,
            )
    at, plan = run.at, run.plan
    begun = f"from step {at.step}" if at.step else f"from {weights or 'new weights'}"
    first = run.engine.rank == 0  # speaks for all processes that train together
    if first:
        say_notes(weights, run.notes)
        tell(
            f"{plan.recipe.network} in {backend} on {run.engine.device}: {plan.images} "
            f"images of {plan.classes} classes, {len(run.data.validation)} to validate "
            f"on; {plan.steps} steps of {plan.recipe.batch}, {begun}"
        )
    with _bar(plan.steps, shown=first) as watch:
        outcome = run.to(stop_at, watch=watch)
    if outcome.skipped:
        some = ", ".join(outcome.skipped[:3])
        tell(f"note: {len(outcome.skipped)} images could not be read, as {some}")
    if first:
        _say(outcome, run, data)
    elif outcome.signal and not outcome.done:
        raise SystemExit(128 + outcome.signal)


def _say(outcome: Outcome, run: Run, data: Path) -> None:
    if outcome.images_per_second > 0:
        rate = f"{outcome.images_per_second:.0f} images/s"
        tell(f"first step after {outcome.first:.1f} s, then {rate}")
    waiting = outcome.waited / max(outcome.seconds, 1e-9)
    if waiting > 0.1 and outcome.seconds > 10:
        tell(f"note: {waiting:.0%} of the time went into waiting for images: --workers")
    if outcome.best >= 0:
        print(
            f"best validation accuracy {outcome.best:.2%}, after step "
            f"{outcome.best_step}: {plain(str(run.folder / BEST))}"
        )
    if outcome.done:
        print(f"done: {outcome.step} steps")
        return
    every = ", in each process," if run.engine.ranks > 1 else ""
    tell(f"saved after step {outcome.step}; to go on{every}: {_again(run, data)}")
    if outcome.signal:
        raise SystemExit(128 + outcome.signal)


def _again(run: Run, data: Path) -> str:
    """Returns the command that goes on as it was begun."""
    words = ["resnet-twins", "train", str(data), "--resume", str(run.folder)]
    words += ["--backend", run.backend]
    usual = vars(Options())
    given = {name: v for name, v in vars(run.options).items() if v != usual[name]}
    engine = given.pop("engine", {})
    for name, value in {**given, **engine}.items():
        option = f"--{name.replace('_', '-')}".replace("--compiled", "--compile")
        if value is True:
            words.append(option)
        elif value not in (None, False):
            words += [option, str(value)]
    return plain(shlex.join(words))


@contextmanager
def _bar(steps: int, *, shown: bool) -> Iterator[Callable[[Seen], None]]:
    """Shows on a terminal how a run goes."""
    columns = (
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    hidden = not (shown and console.is_terminal)
    with Progress(*columns, console=console, disable=hidden) as bar:
        task = bar.add_task("", total=steps)

        def watch(seen: Seen) -> None:
            said = f"loss {seen.loss:.4f}"
            if seen.accuracy is not None:
                said += f", accuracy {seen.accuracy:.2%}"
            said += f", {seen.images_per_second:.0f} images/s"
            bar.update(task, completed=seen.step, description=said)

        yield watch


def evaluate_(
    data: Path,
    weights: str,
    model: str | None,
    settings: dict[str, Any],
    frameworks: Sequence[Backend],
    *,
    batch: int | None,
    workers: int,
    skip_broken: bool,
    as_json: bool,
) -> None:
    """Prints the accuracy of weights over images, by each framework's twin."""
    require(*frameworks)
    rows, source, speaks = [], open_images(data), True
    for framework in frameworks:
        with download_bar() as progress, status(f"evaluating in {framework}"):
            found = evaluate(
                source,
                weights,
                framework,
                model=resnet_spec.resolve(model, **settings) if model else None,
                batch=batch,
                workers=workers,
                skip_broken=skip_broken,
                progress=progress,
            )
        speaks = found.rank == 0  # for all processes that evaluate together
        if speaks:
            say_notes(weights, found.notes)
        rows.append({"backend": framework, **found.facts})
    if not speaks:
        return
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        skipped = f", {row['skipped']} skipped" if row["skipped"] else ""
        print(
            f"{row['backend']}: accuracy {row['accuracy']:.2%} "
            f"({row['right']} of {row['images']}{skipped}), loss {row['loss']:.4f}"
        )
