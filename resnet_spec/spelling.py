"""What somebody may have meant who wrote a name that there is not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str], others: Mapping[str, str]) -> str:
    """Returns `` did you mean …?`` with the likely names, or nothing.

    Args:
        name: as written.
        known: the names that there are.
        others: what else they are called elsewhere, to the name here.
    """
    plain = {_plain(other): right for other, right in others.items()}
    plain |= {_plain(right): right for right in known}
    wanted = _plain(name)
    close = [wanted] if wanted in plain else get_close_matches(wanted, plain)
    likely = list(dict.fromkeys(repr(plain[one]) for one in close))
    return f" did you mean {' or '.join(likely)}?" if likely else ""


def _plain(name: str) -> str:
    """Without what is written now so, now so: case, separators, O for 0."""
    kept = "".join(c for c in name.lower() if c.isalnum())
    return kept.replace("o", "0")
