"""Plain text that reads the same in a terminal, a file and a mail."""

from __future__ import annotations

from collections.abc import Sequence


def table(heads: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """Returns aligned columns under their heads; numbers stand to the right."""
    cells = [[str(cell) for cell in line] for line in lines]
    columns = list(zip(heads, *cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [
        bool(cells) and all(isinstance(line[i], int | float) for line in lines)
        for i in range(len(heads))
    ]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in (heads, *cells)
    )


def told_apart(name: str) -> str:
    """Returns a name so that no two look the same: what is not ASCII is escaped.

    A letter of another alphabet, or one with its accent apart, looks like ours.
    """
    return name.encode("ascii", "backslashreplace").decode()


def counted(number: int, one: str, many: str = "") -> str:
    """Returns a number of things in words.

    Args:
        number: of them.
        one: what one is called.
        many: what several are called; by default ``one`` with an s.
    """
    return f"{number} {one if number == 1 else many or one + 's'}"
