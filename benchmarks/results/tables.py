"""Tables of a run's JSON: for a terminal, and as Markdown for the README."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from rich import box
from rich.markup import escape
from rich.table import Table

from benchmarks.results.comparison import Change
from benchmarks.results.estimates import Estimate
from benchmarks.results.figures import (
    Figures,
    Record,
    Results,
    bests,
    ceilings_of,
    figures,
    ours_of,
    single,
)
from benchmarks.results.growth import Growth, fit

HEADS = (
    *("mode", "ms", "95 %", "quartiles", "images/s", "of ceiling", "speed", "95 %"),
    *("compiling", "peak memory, building / running"),
)


def of_case(case: Record) -> Table:
    """Returns a line for each mode: timed, fastest first, then the others' reasons."""
    ceilings = ", ".join(
        f"{arithmetic} {rate / 1e9:,.0f}"
        for arithmetic, rate in ceilings_of(case).items()
    )
    work = f"{case['flops'] / 1e9:,.2f} GFLOP a batch"
    caption = f"{work}; matrix products, GFLOP/s: {ceilings or 'not measured'}"
    table = make_table(case["key"], HEADS, caption=caption)
    for row, found in sorted(figures(case), key=lambda pair: pair[1].time.value):
        table.add_row(row["mode"], *_cells(found))
    for row in case["rows"]:
        if row["status"] in ("refused", "failed"):
            table.add_row(
                row["mode"], f"[red]{row['status']}[/]: {escape(row['reason'])}"
            )
    return table


def of_bests(case: Record) -> Table | None:
    """Returns how our fastest modes here compare with each library's, in float32.

    ``None`` where no other library was timed. A library under XLA's faster settings
    stands for itself.
    """
    found = bests(case)
    if not found:
        return None
    table = make_table(
        f"{case['key']}: our fastest float32 mode timed here over theirs",
        ("theirs", "torch twin", "95 %", "Flax twin", "95 %"),
        caption=", ".join(f"{name}: {mode}" for name, mode in ours_of(case).items()),
    )
    for theirs, by in found.items():
        cells = [theirs]
        for name in ("torch", "flax"):
            it = by.get(name)
            cells += [f"{it.value:.2f}", _interval(it)] if it else ["", ""]
        table.add_row(*cells)
    return table


def skipped(results: Results) -> Table | None:
    """Returns the reasons of what did not run, each once; ``None`` if all did."""
    reasons: dict[str, list[str]] = {}
    for case in results["cases"]:
        for row in case["rows"]:
            if row["status"] == "skipped":
                modes = reasons.setdefault(row["reason"], [])
                if row["mode"] not in modes:
                    modes.append(row["mode"])
    if not reasons:
        return None
    table = make_table("skipped", ("modes", "because"), right=())
    for reason, modes in reasons.items():
        table.add_row(" ".join(modes), escape(reason))
    return table


def of_growth(growths: Sequence[Growth]) -> Table:
    """Returns a line for each sweep and mode: slopes, and whether they are the work's.

    The work's slope is that of the floating-point operations, or of a file's bytes.
    """
    heads = (
        *("along", "mode", "from … to", "ms at these", "MiB", "time's slope"),
        *("memory's slope", "work's slope", "time over work", ""),
    )
    table = make_table("growth: b of cost ~ x^b", heads)
    for it in growths:
        table.add_row(
            *(it.sweep, it.mode, *_ends(it)),
            *(_slope(s) for s in (it.time_slope, it.memory_slope)),
            *(f"{it.work_slope:.2f}", _slope(it.by_work[0])),
            "" if it.ok else "[red]faster than the work[/]",
        )
    return table


def of_conversion(results: Results) -> Table | None:
    """Returns a line for each file that was converted; ``None`` if none was."""
    rows = results.get("conversion") or []
    if not rows:
        return None
    heads = (
        *("network", "MB", "convert, ms", "fsync", "validation", "the rest", "copy"),
        *("rest / copy", "memory / file"),
    )
    table = make_table(
        "converting .pth to .safetensors, beside copying the file", heads
    )
    for row in rows:
        parts = [row[name] for name in ("times", "fsync", "validation")]
        rest = [t - f - v for t, f, v in zip(*parts, strict=True)]
        times = [median(times) for times in (*parts, rest, row["copy"])]
        table.add_row(
            *(row["network"], f"{row['bytes'] / 1e6:.0f}"),
            *map(milliseconds, times),
            f"{times[3] / times[4]:.2f}",
            f"{row['memory'] / row['bytes']:.2f}",
        )
    return table


def of_changes(changes: Sequence[Change], drift: float) -> Table:
    """Returns a line for each row that changed, besides what the machine did."""
    heads = ("case", "mode", "time, new / old", "99 %", "")
    caption = f"the machine's own products took {drift:.3f} times as long; divided out"
    table = make_table("against the other run", heads, caption=caption)
    colours = {"slower": "red", "faster": "green"}
    for it in changes:
        if it.verdict == "same":
            continue
        cells = ("", "")
        if it.time is not None:
            cells = (f"{it.time.value:.3f}", f"{it.time.low:.3f} … {it.time.high:.3f}")
        colour = colours.get(it.verdict, "yellow")
        table.add_row(it.case, it.mode, *cells, f"[{colour}]{it.verdict}[/]")
    return table


def markdown(results: Results) -> str:
    """Returns the README's part: where it was measured, and a table for each case."""
    return "\n".join(_markdown(results))


def _markdown(results: Results) -> Iterator[str]:
    found = results["environment"]
    versions = ", ".join(
        f"{name} {found['versions'][name]}"
        for name in ("torch", "jax", "flax")
        if name in found["versions"]
    )
    yield (
        f"Measured {found['date'][:10]} on {found['device']}, {found['threads']} "
        f"threads, with {versions}: medians of interleaved repetitions in one run. "
        "*Speed* is over the mode that has 1.00, with the interval of 95 % for its "
        "median; *of ceiling* is the share of the fastest "
        "matrix product in the same arithmetic, measured in the same run."
    )
    for case in single(results):
        yield f"\n**{case['key']}**\n"
        heads = (
            *("mode", "ms", "images/s", "speed", "of ceiling", "compiling"),
            "peak memory, building / running",
        )
        yield f"| {' | '.join(heads)} |"
        yield "|---|--:|--:|--:|--:|--:|--:|"
        pairs = sorted(figures(case), key=lambda pair: pair[1].time.value)
        for row, it in pairs:
            speed = f"{it.speed.value:.2f} ({it.speed.low:.2f}–{it.speed.high:.2f})"
            cells = (
                *(row["what"], milliseconds(it.time.value), f"{it.rate:.1f}", speed),
                *(_share(it), f"{it.compiling:.1f} s", _memory(it)),
            )
            yield f"| {' | '.join(cells)} |"
        for row in case["rows"]:
            if row["status"] in ("refused", "failed"):
                yield f"| {row['what']} | {row['status']}: {row['reason']} ||||||"
        if found_bests := bests(case):
            head = "our fastest float32 mode timed here, over"
            yield f"\n| {head} | torch twin | Flax twin |"
            yield "|---|--:|--:|"
            for theirs, by in found_bests.items():
                speeds = [
                    f"{it.value:.2f} ({it.low:.2f}–{it.high:.2f})" if it else ""
                    for it in (by.get("torch"), by.get("flax"))
                ]
                yield f"| {theirs} | {' | '.join(speeds)} |"
    if growths := fit(results):
        yield "\n**Growth**\n"
        yield (
            "Costs as powers of what grows, and of the work: the floating-point "
            "operations, or a file's bytes. Where time or memory over the work is 1, "
            "twice the work takes twice as much; programs are made once for each depth."
        )
        heads = ("along", "mode", "from … to", "ms", "MiB")
        yield f"\n| {' | '.join(heads)} | time over work | memory over work |"
        yield "|---|---|--:|--:|--:|--:|--:|"
        for it in growths:
            cells = (it.sweep, it.mode, *_ends(it), *map(_slope, it.by_work))
            yield f"| {' | '.join(cells)} |"


def _ends(it: Growth) -> tuple[str, str, str]:
    """The first and the last of the points, times and memory, in words."""
    pairs = [(values[0], values[-1]) for values in (it.points, it.times, it.memory)]
    points, times, memory = pairs
    return (
        " … ".join(f"{x:,.0f}" for x in points),
        " … ".join(map(milliseconds, times)),
        " … ".join(f"{size / 2**20:,.0f}" for size in memory),
    )


def _cells(it: Figures) -> tuple[str, ...]:
    low, high = it.quartiles
    return (
        *(
            milliseconds(it.time.value),
            _interval(it.time, 1000),
            f"{milliseconds(low)} … {milliseconds(high)}",
        ),
        *(f"{it.rate:.1f}", _share(it), f"{it.speed.value:.2f}", _interval(it.speed)),
        *(f"{it.compiling:.1f} s", _memory(it)),
    )


def _share(it: Figures) -> str:
    return "" if it.share is None else f"{it.share:.0%}"


def _memory(it: Figures) -> str:
    built, running = (f"{size / 2**20:,.0f}" for size in it.memory)
    return f"{built} / {running} MiB"


def milliseconds(seconds: float) -> str:
    """Returns a time as tables have it: three digits, whole above a second."""
    return f"{seconds * 1000:.3g}" if seconds < 1 else f"{seconds * 1000:,.0f}"


def _interval(it: Estimate, factor: float = 1) -> str:
    return f"{it.low * factor:.3g} … {it.high * factor:.3g}"


def _slope(it: Estimate) -> str:
    return f"{it.value:.2f} ({it.low:.2f} … {it.high:.2f})"


def make_table(
    title: str,
    heads: Sequence[str],
    *,
    caption: str | None = None,
    right: Sequence[int] | None = None,
) -> Table:
    """Returns an empty table: text in the first column, numbers in the others.

    Args:
        title: above it.
        heads: of its columns.
        caption: below it.
        right: the columns that have numbers, if they are others.
    """
    table = Table(
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for index, head in enumerate(heads):
        text = index == 0 if right is None else index not in right
        table.add_column(head, justify="left" if text else "right", overflow="fold")
    return table
