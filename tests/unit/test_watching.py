"""Whether the files of a policy have changed, and when that is to be acted upon."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from l7proxy.config.fingerprint import fingerprint
from l7proxy.supervisor import watching


def changed(path: Path, change: Callable[[], object]) -> bool:
    before = fingerprint(str(path))
    change()
    return fingerprint(str(path)) != before


def swap(link: Path, to: str) -> None:
    new = link.with_name("..new")
    new.symlink_to(to)
    new.rename(link)


def test_a_file_that_is_written_replaced_or_gone(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("a")
    assert not changed(file, lambda: file.read_text())
    assert changed(file, lambda: file.write_text("ab"))
    (tmp_path / "q").write_text("ab")
    assert changed(file, lambda: (tmp_path / "q").replace(file)), "as editors do it"
    assert changed(file, file.unlink)
    assert not changed(file, lambda: None)
    assert changed(file, lambda: file.write_text("ab"))


def test_the_same_size_and_inode_at_another_time(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("a")
    assert changed(file, lambda: os.utime(file, ns=(1, 1)))


def test_a_link_that_is_swapped_somewhere_on_the_way(tmp_path: Path) -> None:
    for version in ("..1", "..2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "p.yaml").write_text("a")
    (tmp_path / "..data").symlink_to("..1")
    file = tmp_path / "p.yaml"
    file.symlink_to("..data/p.yaml")
    for path in (file, tmp_path):
        swap(tmp_path / "..data", "..1")
        assert changed(path, lambda: swap(tmp_path / "..data", "..2"))


def test_what_is_no_policy_file_of_a_folder_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a")
    assert not changed(tmp_path, lambda: (tmp_path / ".a.yaml.swp").write_text("x"))
    assert not changed(tmp_path, lambda: (tmp_path / "README").write_text("x"))
    assert changed(tmp_path, lambda: (tmp_path / "b.yml").write_text("x"))
    assert changed(tmp_path, (tmp_path / "b.yml").unlink)


@pytest.mark.parametrize("path", ["/no/such/file", "\0", ""])
def test_what_is_not_there_is_no_error(path: str) -> None:
    assert fingerprint(path) == ((path, None),)


def test_files_are_read_when_they_have_settled_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """>> the file changes at every look; << nothing. >> It stays; << one reload."""
    file = tmp_path / "p.yaml"
    file.write_text("")
    looks = 0
    reloads: list[int] = []

    async def sleep(_seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks <= 5:
            file.write_text("x" * looks)
        if looks == 12:
            raise asyncio.CancelledError

    monkeypatch.setattr("l7proxy.supervisor.watching.asyncio.sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(
            watching.watch(str(file), fingerprint(str(file)), lambda: reloads.append(looks))
        )
    assert reloads == [6]
