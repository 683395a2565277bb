"""What a run says of itself: JSON lines, TensorBoard's events, curves, a page."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parity.files.atomic import replacing
from parity.inputs import read_text

METRICS, CURVES, PAGE = "metrics.jsonl", "curves.png", "run.html"

_MOST_BYTES = 2**32

Line = dict[str, Any]


class Metrics:
    """A run's lines of numbers: each step's loss, each evaluation's accuracy.

    They hold no times: a run that was stopped and one that was not have the same bytes.

    Args:
        folder: of the run.
        step: that the run goes on from; what lines there are behind it are cut off.
        tensorboard: write TensorBoard's events too.

    Raises:
        ModuleNotFoundError: there is no tensorboardX.
    """

    def __init__(self, folder: Path, step: int, *, tensorboard: bool = False) -> None:
        self._path = folder / METRICS
        kept = [line for line in read(folder) if line["step"] <= step]
        with replacing(self._path, True) as temporary:
            temporary.write_text("".join(map(_text, kept)), "utf-8")
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115  kept open
        self._events: Any = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            events = folder / "tensorboard"
            self._events = SummaryWriter(str(events), purge_step=step + 1)

    def write(self, lines: Sequence[Line]) -> None:
        """Adds lines, and hands them to the system."""
        self._file.write("".join(map(_text, lines)))
        self._file.flush()
        if self._events is not None:
            for line in lines:
                for name, value in line.items():
                    if name not in ("step", "epoch"):
                        self._events.add_scalar(name, value, line["step"])

    def close(self) -> None:
        """Closes what is open."""
        self._file.close()
        if self._events is not None:
            self._events.close()


def _text(line: Line) -> str:
    return json.dumps(line) + "\n"


def read(folder: Path) -> list[Line]:
    """Returns a run's lines; the last one, if it is half written, is left out.

    Raises:
        InputError: they are in no regular file, or no text.
    """
    path, found = folder / METRICS, []
    empty = not path.exists() or (path.is_file() and not path.stat().st_size)
    for text in [] if empty else read_text(path, _MOST_BYTES).split("\n"):
        try:
            line = json.loads(text)
        except ValueError:
            break
        found.append(line)
    return found


def draw(lines: Sequence[Line], title: str) -> bytes | None:
    """Draws loss and accuracy over the epochs, as PNG.

    Args:
        lines: of the run.
        title: what is trained.

    Returns:
        The picture; ``None`` before anything was learnt.

    Raises:
        ModuleNotFoundError: there is no matplotlib.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "validation_accuracy" in line]
    if not steps:
        return None
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    loss, accuracy = figure.subplots(1, 2)
    window = max(1, len(steps) // 100)  # steps behind one another in a hundredth of all
    means = [
        (some[-1]["epoch"], sum(line["loss"] for line in some) / len(some))
        for some in (steps[i : i + window] for i in range(0, len(steps), window))
    ]
    loss.plot(*zip(*means, strict=True), label="training")
    epochs = [line["epoch"] for line in evaluations]
    marker = "o" if len(epochs) < 30 else None
    loss.plot(
        epochs,
        [line["validation_loss"] for line in evaluations],
        marker=marker,
        label="validation",
    )
    loss.set(xlabel="epoch", ylabel="loss", yscale="log")
    loss.legend()
    accuracy.plot(
        epochs,
        [100 * line["validation_accuracy"] for line in evaluations],
        marker=marker,
        color="C1",
    )
    accuracy.set(xlabel="epoch", ylabel="validation accuracy, %")
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120, metadata={"Software": None})
    return picture.getvalue()


def write_picture(folder: Path, title: str, facts: Mapping[str, str]) -> None:
    """Writes the curves, and the page that has them beside the numbers.

    Args:
        folder: of the run.
        title: what is trained.
        facts: what there is to know of it, by name.

    Raises:
        ModuleNotFoundError: there is no matplotlib.
        OutputError: they cannot be written.
    """
    lines = read(folder)
    picture = draw(lines, title)
    if picture is None:
        return
    with replacing(folder / CURVES, True) as temporary:
        temporary.write_bytes(picture)
    evaluations = [line for line in lines if "validation_accuracy" in line]
    rows = [
        (
            f"{line['epoch']:.2f}",
            str(line["step"]),
            f"{line['validation_loss']:.4f}",
            f"{line['validation_accuracy']:.2%}",
        )
        for line in evaluations
    ]
    heads = ("epoch", "step", "validation loss", "validation accuracy")
    page = _PAGE.format(
        title=html.escape(title),
        picture=base64.b64encode(picture).decode(),
        facts=_table(None, list(facts.items())),
        evaluations=_table(heads, rows),
    )
    with replacing(folder / PAGE, True) as temporary:
        temporary.write_text(page, "utf-8")


def _table(heads: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)

    head = f"<tr>{row(heads, 'th')}</tr>" if heads else ""
    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    return f"<table>{head}{body}</table>"


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem;
  padding: 0 1rem; color: #222; background: #fff }}
img {{ max-width: 100%; height: auto }}
.wide {{ overflow-x: auto }}
table {{ border-collapse: collapse; margin: 1rem 0 }}
td, th {{ border-bottom: 1px solid #ddd; padding: .2rem .8rem .2rem 0;
  text-align: left; vertical-align: top; overflow-wrap: anywhere }}
td:first-child {{ white-space: nowrap }}
</style>
<h1>{title}</h1>
<img src="data:image/png;base64,{picture}" alt="loss and accuracy over the epochs">
<div class="wide">{facts}</div>
<h2>Evaluations</h2>
<div class="wide">{evaluations}</div>
</html>
"""
