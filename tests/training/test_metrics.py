"""A run's lines of numbers, and what only has their name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from parity.errors import InputError
from resnet_training.metrics import METRICS, Metrics, read


@pytest.mark.parametrize("content", [None, b"", b"{}\xff"])
def test_lines_that_are_none_are_left_out_or_refused(
    tmp_path: Path, content: bytes | None
):
    path = tmp_path / METRICS
    assert read(tmp_path) == []
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    if content == b"":
        assert read(tmp_path) == []
        return
    said = "is no regular file" if content is None else "it is no UTF-8"
    for call in (read, lambda folder: Metrics(folder, 0)):
        with pytest.raises(InputError, match=f"{METRICS}: .*{said}"):
            call(tmp_path)
