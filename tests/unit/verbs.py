"""Runs `l7proxy` within the test's process, in a folder of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from l7proxy import cli


class Verbs:
    """Runs `l7proxy` in a folder of its own."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys

    def write(self, text: str, name: str = "p.yaml") -> str:
        (self.folder / name).write_text(text)
        return name

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        code = cli.main(arguments)
        out, err = self._capsys.readouterr()
        return code, out, err

    def json(self, *arguments: str) -> tuple[int, Any]:
        code, out, err = self(*arguments)
        assert err == ""
        return code, json.loads(out)
