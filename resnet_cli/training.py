"""What ``train`` and ``evaluate`` do: choose, watch a run, say how it went."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
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
from resnet_cli.failures import tell
from resnet_cli.progress import say_notes
from resnet_spec import TrainingRecipe, get_recipe
from resnet_spec.printable import plain
from resnet_training import (
    BEST,
    Backend,
    Data,
    Options,
    Outcome,
    Seen,
    begin,
    evaluate,
    open_data,
    open_images,
    resume,
)


def recipe_of(
    name: str | None,
    model: str | None,
    settings: dict[str, Any],
    fields: dict[str, Any],
) -> TrainingRecipe:
    """Returns the recipe that was asked for.

    Args:
        name: of a recipe, or a file of its JSON.
        model: the network, if not the recipe's.
        settings: of the network.
        fields: of the recipe, other than its own.
    """
    if model is not None:
        fields = {"network": model, **fields}
    if settings:
        fields = {"settings": settings, **fields}
    if name is None or not name.endswith(".json"):
        return get_recipe(name or "reference", **fields)
    try:
        recipe = TrainingRecipe.from_json(Path(name).read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"{name}: cannot be read ({error.strerror})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}: is no JSON ({error})") from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return changed(recipe, fields)


def changed(recipe: TrainingRecipe, fields: dict[str, Any]) -> TrainingRecipe:
    """Returns a recipe with other values in some fields."""
    if fields.get("steps") is not None:
        fields = {"epochs": None, **fields}
    elif fields.get("epochs") is not None:
        fields = {"steps": None, **fields}
    return replace(recipe, **fields)


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
    if again:
        found = _data(data, val_split, out)
        run = resume(out, found, backend, recipe=recipe, options=options)
    else:
        asked = recipe(None)
        found = open_data(data, val_split=val_split, seed=asked.seed)
        state, asked = _start(asked, weights, len(found.classes))
        run = begin(out, found, asked, backend, weights=state, options=options)
    at, plan = run.at, run.plan
    begun = f"from step {at.step}" if at.step else "from new weights"
    if weights is not None:
        begun = f"from {weights}"
    first = run.engine.rank == 0  # speaks for all processes that train together
    if first:
        tell(
            f"{plan.recipe.network} in {backend} on {run.engine.device}: {plan.images} "
            f"images of {plan.classes} classes, {len(found.validation)} to validate "
            f"on; {plan.steps} steps of {plan.recipe.batch}, {begun}"
        )
    with _bar(plan.steps, shown=first) as watch:
        outcome = run.to(stop_at, watch=watch)
    if outcome.skipped:
        some = ", ".join(outcome.skipped[:3])
        tell(f"note: {len(outcome.skipped)} images could not be read, as {some}")
    if first:
        _say(outcome, out, data, backend)
    elif outcome.signal and not outcome.done:
        raise SystemExit(128 + outcome.signal)


def _start(
    recipe: TrainingRecipe, weights: str | None, classes: int
) -> tuple[dict[str, Any] | None, TrainingRecipe]:
    """Returns the weights to start from, and the recipe with their digest."""
    if weights is None:
        return None, recipe
    from resnet_cli.progress import download_bar
    from resnet_training import transferred

    with download_bar() as progress:
        state, digest, notes = transferred(recipe, classes, weights, progress=progress)
    say_notes(weights, notes)
    return state, replace(recipe, weights=digest)


def _data(data: Path, val_split: float | None, out: Path) -> Data:
    """Opens the images as they were when the run was begun."""
    path = out if out.is_file() else out / "recipe.json"
    seed = 0
    if path.name == "recipe.json" and path.exists():
        seed = TrainingRecipe.from_json(path.read_text("utf-8")).seed
    return open_data(data, val_split=val_split, seed=seed)


def _say(outcome: Outcome, out: Path, data: Path, backend: str) -> None:
    if outcome.images_per_second > 0:
        rate = f"{outcome.images_per_second:.0f} images/s"
        tell(f"first step after {outcome.first:.1f} s, then {rate}")
    waiting = outcome.waited / max(outcome.seconds, 1e-9)
    if waiting > 0.1 and outcome.seconds > 10:
        tell(f"note: {waiting:.0%} of the time went into waiting for images: --workers")
    on = plain(f"resnet-twins train {data} --resume {out} --backend {backend}")
    if outcome.best >= 0:
        print(
            f"best validation accuracy {outcome.best:.2%}, after step "
            f"{outcome.best_step}: {plain(str(out / BEST))}"
        )
    if outcome.done:
        print(f"done: {outcome.step} steps")
        return
    tell(f"saved after step {outcome.step}; to go on: {on}")
    if outcome.signal:
        raise SystemExit(128 + outcome.signal)


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
    from resnet_cli.progress import download_bar, status

    rows, source = [], open_images(data)
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
        say_notes(weights, found.notes)
        rows.append({"backend": framework, **found.facts})
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(
            f"{row['backend']}: accuracy {row['accuracy']:.2%} "
            f"({row['right']} of {row['images']}), loss {row['loss']:.4f}"
        )
