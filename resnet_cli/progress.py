"""What a user sees on standard error: notes, and on a terminal what is being done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from resnet_cli.failures import tell
from resnet_spec.printable import plain


@contextmanager
def status(what: str) -> Iterator[Callable[[str], None]]:
    """Shows on a terminal what is being done."""

    def line(what: str) -> Text:  # a text of rich's may hold markup, and a name too
        return Text(f"{plain(what)} …")

    with Console(stderr=True).status(line(what)) as shown:
        yield lambda what: shown.update(line(what))


@contextmanager
def download_bar() -> Iterator[Callable[[int, int | None], None]]:
    """Shows a bar from the first byte of a download on."""
    columns = (
        TextColumn("downloading"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task("download")

    def progress(done: int, total: int | None) -> None:
        if not bar.live.is_started:  # an empty bar would leave an empty line
            bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield progress
    finally:
        if bar.live.is_started:
            bar.stop()


def say_notes(path: object, notes: Sequence[str]) -> None:
    """Prints on standard error what was accepted or changed on the way."""
    for note in notes:
        tell(f"note: {path}: {note}")
