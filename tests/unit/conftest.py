from __future__ import annotations

from pathlib import Path

import pytest
from verbs import Verbs


@pytest.fixture
def l7proxy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Verbs:
    monkeypatch.chdir(tmp_path)
    return Verbs(tmp_path, capsys)
