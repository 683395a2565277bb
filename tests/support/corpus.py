"""What tests of bad files share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import parity
from parity.errors import CheckpointError


def refused(path: Path, *parts: str, **settings: Any) -> CheckpointError:
    """Loads a bad file: one line that names it and these parts, nothing left behind."""
    before = sorted(path.parent.iterdir())
    with pytest.raises(CheckpointError) as error:
        parity.load(path, **settings)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert "weights_only=False" not in text
    for part in parts:
        assert part in text
    assert sorted(path.parent.iterdir()) == before
    return error.value
