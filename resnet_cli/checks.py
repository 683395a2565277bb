"""What ``resnet-twins check`` does: check, write down, run again, test itself."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from parity.errors import OutputError
from parity.exporting import ProgramRecipe
from parity.exports.programs import CONTAINERS, MOST_BYTES, container_of
from parity.files.atomic import replacing
from parity.inputs import open_regular
from parity.judging.report import Report
from parity.mutants import selftest
from parity.recipe import FieldError, Recipe
from parity.reports import certificate as certificates
from parity.reports.page import write_html
from parity.weights.twins import require
from resnet_cli import tables
from resnet_cli.failures import tell
from resnet_cli.progress import download_bar, say_notes, status
from resnet_spec.printable import plain


def check(
    asked: Mapping[str, Any],
    *,
    brief: bool,
    as_json: bool,
    html: Path | None,
    certificate: Path | None,
) -> bool:
    """Runs a check, prints and writes what was found; says whether it passed."""
    require("torch", "flax")
    if html is not None:
        tables.require_plot(html)
    for path in (html, certificate):
        if path is not None:
            _require_place(path)
    try:
        recipe = Recipe(**asked)
    except FieldError as error:
        raise ValueError(f"--{error}") from error
    what, report = _run(recipe)
    if as_json:
        print(certificates.to_certificate(report, recipe.to_dict()), end="")
    else:
        print(f"{what}\n")
        print(report.brief() if brief else report)
    if html is not None:
        write_html(report, html, title=what)
        tell(f"report: {html}")
    if certificate is not None:
        text = certificates.to_certificate(report, recipe.to_dict())
        with replacing(certificate, overwrite=True) as temporary:
            temporary.write_text(text, encoding="utf-8")
        tell(f"certificate: {certificate}")
    return report.ok


def check_run(
    name: str,
    recipe: str,
    settings: dict[str, Any],
    *,
    batch: int,
    steps: int,
    seed: int,
    as_json: bool,
    html: Path | None,
) -> bool:
    """Runs a recipe's first steps in both engines; says whether they are one run."""
    from resnet_cli.training import recipe_of
    from resnet_spec.recipes import with_fields
    from resnet_training.proof import compare_runs

    require("torch", "flax")
    if html is not None:
        tables.require_plot(html)
        _require_place(html)
    # In float64 and in both: as many images as a check has, but two a part at least.
    asked = recipe_of(recipe, {}, None)
    batch = max(batch, 4) * asked.accumulate
    fields = {"network": name, "settings": settings, "batch": batch, "seed": seed}
    asked = with_fields(asked, **fields)
    with status("building both engines") as say:
        report = compare_runs(asked, steps=steps, progress=say)
    what = f"{name}: {steps} steps of {recipe}, batches of {batch} random images"
    if as_json:
        print(report.to_json())
    else:
        print(f"{what}\n\n{report.brief()}")
    if html is not None:
        write_html(report, html, title=what)
        tell(f"report: {html}")
    return report.ok


def verify(path: Path, *, weights: str | None) -> bool:
    """Runs a certificate's check again; prints and says whether it is confirmed."""
    certified = certificates.read_certificate(path)
    asked = certified["recipe"]
    try:
        of_program = "program" in asked
        kind = ProgramRecipe if of_program else Recipe
        recipe = kind.from_certificate(asked)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if weights is not None:  # they may lie elsewhere here
        recipe = recipe.with_weights(weights)
    if isinstance(recipe, ProgramRecipe):
        what, report = _run_program(recipe, path.parent)
    else:
        what, report = _run(recipe)
    print(f"{what}\n\n{report.brief()}\n")
    elsewhere = certificates.elsewhere(certified, report)
    found = certificates.differences(certified, report)
    for line in (*elsewhere, *found):
        print(line)
    if found:
        print(f"NOT VERIFIED: {path} says otherwise in {len(found)} places")
    elif elsewhere:
        print(f"VERIFIED: {path} says the same, within what another machine may differ")
    else:
        print(f"VERIFIED: {path} says the same, to the last bit")
    return not found


def self_test(*, as_json: bool) -> bool:
    """Checks the check, prints its kill table, and says whether it caught every one."""
    with status("making networks with faults") as say:
        kills = selftest.self_test(progress=say)
    print(selftest.to_json(kills) if as_json else selftest.kill_table(kills))
    return all(kill.ok for kill in kills)


def _run(recipe: Recipe) -> tuple[str, Report]:
    images = recipe.images()  # before anything is downloaded for them
    with download_bar() as progress:
        chosen = recipe.choose(progress)
    say_notes(recipe.weights, chosen.notes)
    with status("building both twins") as say:
        return recipe.describe(chosen, images), recipe.run(chosen, images, say)


def _run_program(recipe: ProgramRecipe, folder: Path) -> tuple[str, Report]:
    require("torch", *CONTAINERS[container_of(recipe.program)].NEEDS)
    with open_regular(folder / recipe.program, MOST_BYTES):  # is it there?
        pass
    with download_bar() as progress:
        chosen = recipe.recipe.choose(progress)
    say_notes(recipe.recipe.weights, chosen.notes)
    what = plain(f"{recipe.program}: {recipe.recipe.name}, {chosen.what}")
    with status(f"judging {recipe.program}") as say:
        return what, recipe.run(chosen.config, chosen.state, folder, say)


def _require_place(path: Path) -> None:
    problem, advice = "", "Check the name, and the folder's permissions"
    folder = Path(os.path.realpath(path)).parent
    try:
        if not folder.is_dir():
            problem, advice = f"there is no folder {folder}", "Make it first"
        elif path.is_dir():
            problem, advice = "is a directory", "Name a file in it"
        else:
            with suppress(FileNotFoundError):  # its name may be too long, too
                if not stat.S_ISREG(path.stat().st_mode):
                    raise OutputError(path, "is no regular file", "Name another one")
            with TemporaryFile(dir=folder):  # os.access() tells less
                pass
    except OutputError:
        raise
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error})"
    if problem:
        raise OutputError(path, problem, advice)
