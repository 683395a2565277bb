"""What stands beside a network in a state, and what to write to leave it out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from glob import escape

_MOST = 6  # patterns that one message has


def advice_on(strangers: Sequence[str], kept: Collection[str]) -> str:
    """Returns what leaves out strangers of a file, and nothing of its network.

    Args:
        strangers: their names, as the file has them.
        kept: names of all of the network, as the file has them.
    """
    patterns = [*dict.fromkeys(_pattern(name, kept) for name in strangers)]
    options = [f"--ignore '{pattern}'" for pattern in patterns[:_MOST]]
    more = f" and {len(patterns) - _MOST} more" if len(patterns) > _MOST else ""
    return f"Leave these out with {' '.join(options)}{more}"


def _pattern(name: str, kept: Collection[str]) -> str:
    ends = [place for place, letter in enumerate(name) if letter in "./"]
    for end in (*ends, len(name)):
        if not any(other.startswith(name[:end]) for other in kept):
            return f"{escape(name[:end])}*"
    return escape(name)


def within_blocks(strangers: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """Returns those strangers that stand among the layers of a block.

    Args:
        strangers: their names there.
        names: name in the twins → name there.
    """
    blocks: dict[str, list[str]] = {}
    for own, there in names.items():
        stage, _, rest = own.partition(".")
        if stage.startswith("layer"):
            blocks.setdefault(f"{stage}.{rest.partition('.')[0]}", []).append(there)
    begins = tuple(filter(None, map(_common, blocks.values())))
    return [name for name in strangers if name.startswith(begins)]


def _common(names: Sequence[str]) -> str:
    """Returns the parts that names have in common, with a dot behind; or nothing."""
    least, most = min(names).split("."), max(names).split(".")
    alike = 0
    while alike < len(least) and least[alike] == most[alike]:
        alike += 1
    return "".join(f"{part}." for part in least[:alike])
