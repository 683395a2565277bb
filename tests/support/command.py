"""The command, called in this process."""

from __future__ import annotations

import pytest

from resnet_cli.main import main


class Called:
    """One call in this process: quick, and frameworks stay loaded."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object, code: int = 0) -> tuple[str, str]:
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        captured = self._capsys.readouterr()
        assert (exit.value.code or 0) == code, captured.err
        return captured.out, captured.err

    def error(self, *arguments: object, code: int = 2) -> str:
        out, err = self(*arguments, code=code)
        assert out == ""
        (line,) = err.splitlines()
        assert line.startswith("error: ")
        return line
