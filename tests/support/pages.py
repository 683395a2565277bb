"""The code that the README and the pages of docs/ show; ``python -m`` runs Python's.

The command reads ``[[page, line, code], …]`` from standard input and writes, for each,
what it printed and the traceback if it failed. Blocks of a page share their names.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.torchvision_import import import_torchvision

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        page: where it stands.
        line: of its first line of code.
        language: behind the fence.
        text: the code.
        slow: whether ``<!-- slow -->`` stands before it.
        shown: of Python, the ``text`` block right behind it: what it prints.
    """

    page: str
    line: int
    language: str
    text: str
    slow: bool
    shown: str | None = None


_FENCE = re.compile(
    r"(?P<slow><!-- slow -->\n+)?^```(?P<language>\S*)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


def blocks(*languages: str) -> list[Block]:
    """Every fenced block of every page, in order; of these languages, if any."""
    found = [block for page in PAGES for block in _blocks(page)]
    return [block for block in found if not languages or block.language in languages]


def _blocks(path: Path) -> list[Block]:
    text, found, end = path.read_text("utf-8"), [], 0
    for match in _FENCE.finditer(text):
        block = Block(
            page=path.relative_to(ROOT).as_posix(),
            line=text.count("\n", 0, match.start("text")) + 1,
            language=match["language"],
            text=match["text"],
            slow=match["slow"] is not None,
        )
        behind = not text[end : match.start()].strip() and found
        if block.language == "text" and behind and found[-1].language == "python":
            found[-1] = replace(found[-1], shown=block.text)
        else:
            found.append(block)
        end = match.end()
    return found


def run(asked: list[tuple[str, int, str]]) -> list[dict[str, str]]:
    """Runs blocks of Python; of a page, none behind one that failed."""
    names: dict[str, dict[str, Any]] = {}
    done = []
    for page, line, code in asked:
        out, error = io.StringIO(), ""
        if names.setdefault(page, {"__name__": "__main__"}).get("failed"):
            error = "not run: a block before it failed"
        else:
            try:
                with contextlib.redirect_stdout(out):
                    # So that a traceback has the page's line.
                    code = compile("\n" * (line - 1) + code, page, "exec")
                    exec(code, names[page])
            except BaseException:
                names[page]["failed"], error = True, traceback.format_exc()
        done.append({"out": out.getvalue(), "error": error})
    return done


if __name__ == "__main__":
    import_torchvision()  # a build of another torch's fails where it is imported first
    asked = json.load(sys.stdin)
    print(json.dumps(run(asked)))
