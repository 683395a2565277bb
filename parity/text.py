"""What people read, as plain text: the same in a terminal, a file and a mail."""

from __future__ import annotations

from collections.abc import Sequence


def plain(text: str, *, keep: str = "", most: int | None = None) -> str:
    r"""Returns a text with what is not printable escaped, as ``\x1b`` or ``\udc80``.

    Names come from files and from strangers: they could clear a terminal, or be text
    that no terminal can show.

    Args:
        text: anything.
        keep: characters that stay as they are, such as a line's end.
        most: characters to show; of a longer text the middle is left out.
    """
    if most is not None and len(text) > most:
        text = f"{text[: most * 2 // 3]} … {text[-most // 3 :]}"
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode()
        for c in text
    )


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
