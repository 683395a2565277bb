"""``make bench-report``: the README's table and picture, from a JSON in the repository.

``python -m benchmarks.results.readme [JSON]``; nothing is timed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import file, tables
from benchmarks.results.plots import draw
from parity.files.atomic import replacing
from resnet_cli.failures import BAD_INPUT

START, END = (
    "<!-- benchmarks: made by `make bench-report` -->",
    "<!-- benchmarks end -->",
)

JSON = file.ROOT / "docs" / "bench.json"


def update(json: Path, readme: Path, picture: Path) -> None:
    """Puts a run's figures between the README's markers, and draws the picture.

    Args:
        json: the run.
        readme: with both markers, each once.
        picture: to write, in a folder below the README's.

    Raises:
        ValueError: the JSON is none of a run, or the README lacks a marker.
    """
    found = file.read(json)
    text = readme.read_text("utf-8")
    if text.count(START) != 1 or text.count(END) != 1:
        raise ValueError(f"{readme}: needs the lines {START} and {END}, once each")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    draw(found, picture)
    link = picture.relative_to(readme.parent).as_posix()
    made = f"{tables.markdown(found)}\n\n![Throughput by mode]({link})"
    with replacing(readme, overwrite=True) as temporary:
        temporary.write_text(f"{before}{START}\n\n{made}\n\n{END}{after}", "utf-8")


def main(arguments: Sequence[str]) -> int:
    """Updates this repository's README."""
    try:
        json = Path(arguments[0]) if arguments else JSON
        update(json, file.ROOT / "README.md", JSON.with_suffix(".png"))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
