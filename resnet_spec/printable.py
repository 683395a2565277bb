"""Text that a terminal shows as it stands, whatever names are in it."""

from __future__ import annotations


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
