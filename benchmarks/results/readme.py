"""``make bench-report``: tables and picture of docs/, from a JSON in the repository.

``python -m benchmarks.results.readme [JSON]``; nothing is timed. docs/benchmarks.md
gets every table and the picture, the README a line for each case.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.results import file, tables
from benchmarks.results.figures import Results, bests, figures, ours_of, single
from benchmarks.results.plots import draw
from parity.files.atomic import replacing
from resnet_cli.failures import BAD_INPUT

START, END = (
    "<!-- benchmarks: made by `make bench-report` -->",
    "<!-- benchmarks end -->",
)
START_SHORT, END_SHORT = (
    "<!-- times: made by `make bench-report` -->",
    "<!-- times end -->",
)

JSON = file.ROOT / "docs" / "bench.json"


def update(json: Path, page: Path, picture: Path) -> None:
    """Puts a run's figures between a page's markers, and draws the picture.

    Args:
        json: the run.
        page: with both markers, each once.
        picture: to write, in the page's folder or below it.

    Raises:
        ValueError: the JSON is none of a run, or the page lacks a marker.
    """
    found = file.read(json)
    link = picture.relative_to(page.parent).as_posix()
    made = f"{tables.markdown(found)}\n\n![Throughput by mode]({link})"
    text = _between(page, START, END, made)
    draw(found, picture)
    _write(page, text)


def update_short(json: Path, readme: Path) -> None:
    """Puts a line for each of a run's cases between the README's markers.

    Args:
        json: the run.
        readme: with both markers, each once.

    Raises:
        ValueError: the JSON is none of a run, or the README lacks a marker.
    """
    made = "\n".join(_short(file.read(json)))
    _write(readme, _between(readme, START_SHORT, END_SHORT, made))


def _short(found: Results) -> Iterator[str]:
    """The median of the fastest float32 modes: of each twin, and of any library."""
    where = found["environment"]
    yield (
        f"Milliseconds, float32, on {where['device']} with {where['threads']} threads "
        f"({where['date'][:10]}): the fastest mode timed of each."
    )
    yield "\n| | torch twin | Flax twin | fastest other |\n|---|--:|--:|--:|"
    for case in single(found):
        times = {row["mode"]: it.time.value for row, it in figures(case)}
        ours = ours_of(case)
        cells = [
            tables.milliseconds(times[ours[name]]) if name in ours else ""
            for name in ("torch", "flax")
        ]
        others = sorted(bests(case), key=lambda mode: times[mode])
        cells += [f"{tables.milliseconds(times[o])} ({o})" for o in others[:1]] or [""]
        yield f"| {case['key']} | {' | '.join(cells)} |"


def _between(page: Path, start: str, end: str, made: str) -> str:
    text = page.read_text("utf-8")
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(f"{page}: needs the lines {start} and {end}, once each")
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    return f"{before}{start}\n\n{made}\n\n{end}{after}"


def _write(page: Path, text: str) -> None:
    with replacing(page, overwrite=True) as temporary:
        temporary.write_text(text, "utf-8")


def main(arguments: Sequence[str]) -> int:
    """Updates this repository's pages."""
    try:
        json = Path(arguments[0]) if arguments else JSON
        update(json, JSON.with_name("benchmarks.md"), JSON.with_suffix(".png"))
        update_short(json, file.ROOT / "README.md")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
