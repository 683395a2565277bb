"""What goes wrong with files and weights, in one line that names the way out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Self

from resnet_spec.printable import plain

_SHOWN = 5


class InputError(ValueError):
    """A file, or what was in it, that cannot be used. Nothing has been changed.

    Args:
        problems: what is wrong: one clause, or clauses by kind (``missing`` and such).
        path: the file, if there is one.
        advice: what to do about it, one sentence without its full stop. About a file
            something is always advised.

    Attributes:
        problems: every problem, complete; the message shows the first few of a kind.
    """

    def __init__(
        self,
        problems: str | Mapping[str, Sequence[str]],
        *,
        path: str | os.PathLike[str] | None = None,
        advice: str | None = None,
    ) -> None:
        self.path = path
        self._said, self._advice = problems, advice
        if isinstance(problems, str):
            self.problems = [problems]
            text = plain(problems, most=1500)
        else:
            self.problems = [
                f"{k}: {p}" for k, group in problems.items() for p in group
            ]
            text = "; ".join(
                _shorten(k, group) for k, group in problems.items() if group
            )
        if path is not None:
            text = f"{_shown(path)}: {text}"
            advice = advice or "Get the file again, or another one"
        if advice is not None:
            text = f"{text}. {plain(advice)}"
        super().__init__(text)

    def at(self, path: str | os.PathLike[str]) -> Self:
        """Returns the same error, about this file."""
        return type(self)(self._said, path=path, advice=self._advice)


class CheckpointError(InputError):
    """Weights, or a file of weights, that cannot be used. Nothing has been changed."""


def _shorten(kind: str, group: Sequence[str]) -> str:
    text = f"{kind}: {', '.join(plain(p, most=300) for p in group[:_SHOWN])}"
    return text if len(group) <= _SHOWN else f"{text} and {len(group) - _SHOWN} more"


def _shown(path: str | os.PathLike[str]) -> str:
    return plain(os.fsdecode(path), most=1000)


class OutputError(OSError):
    """A file that cannot be written. What stood there before stands there still."""

    def __init__(self, path: str | os.PathLike[str], problem: str, advice: str) -> None:
        super().__init__(f"{_shown(path)}: {plain(problem)}. {advice}")


class DownloadError(OSError):
    """Published weights that could not be fetched. No unverified file stays."""

    def __init__(self, text: str) -> None:
        super().__init__(plain(text, most=1500))


class TransferWarning(UserWarning):
    """A network took only a part of its weights, and says which is new."""
