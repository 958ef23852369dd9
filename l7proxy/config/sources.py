"""From a path to texts: a file, or the files of a folder.

A folder is how Kubernetes mounts a ConfigMap: `policy.yaml` is a symlink into `..data`, which is a
symlink to `..2026_01_31_...`, and an update swaps `..data` in one step. So hidden entries are left
alone, symlinks are followed, and files are read again when `..data` was swapped in between: a
policy is never put together from two versions.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from difflib import get_close_matches

from l7proxy.config.problems import Place, Problem, Severity, Source
from l7proxy.model import Location

MAX_BYTES = 16 * 1024 * 1024  # security limit, of all files; 10,000 routes are about 2 MiB
MAX_FILES = 1_000  # security limit: policy files of one folder

_SUFFIXES = (".yaml", ".yml")
_SWAPPED = "..data"
_ATTEMPTS = 5


@dataclass(slots=True)
class Texts:
    """What was read: names and texts in the order of the names, and what could not be."""

    path: str
    folder: bool = False
    files: list[tuple[str, str]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # of all files, those with problems as well
    problems: list[Problem] = field(default_factory=list)
    _left: int = MAX_BYTES

    def fail(self, name: str, message: str, hint: str = "") -> None:
        """Report an error about a whole file or folder."""
        place = Place(Location(name, 1, 1))
        self.problems.append(Problem(Severity.ERROR, message, place, hint))

    def add(self, name: str) -> None:
        """Read one file."""
        self.names.append(name)
        try:
            with open(name, "rb") as file:
                data = file.read(self._left + 1)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            reason = error.strerror if isinstance(error, OSError) else None
            self.fail(name, f"cannot read this file: {reason or error}", _remedy(name, error))
            return
        self._left -= len(data)
        if self._left < 0:
            self._left = 0
            self.fail(name, f"a policy has at most {MAX_BYTES // 1024 // 1024} MiB")
            return
        try:
            self.files.append((name, data.decode("utf-8").removeprefix("\ufeff")))
        except UnicodeDecodeError as error:
            self.problems.append(_not_utf8(name, data, error.start))


def read(path: str) -> Texts:
    """The texts of the policy at `path`, a file or a folder; never raises for what is there."""
    for _ in range(_ATTEMPTS):
        before = _version(path)
        texts = _read(path)
        if _version(path) == before:
            break
    return texts


def _read(path: str) -> Texts:
    texts = Texts(path)
    try:
        texts.folder = stat.S_ISDIR(os.stat(path).st_mode)
    except (OSError, ValueError):
        pass  # reading it says why
    if not texts.folder:
        texts.add(path)
        return texts
    try:
        found = names(path)
    except OSError as error:
        texts.fail(path, f"cannot read this folder: {error.strerror}", _remedy(path, error))
        return texts
    if not found:
        hint = "the names of its files end with .yaml or .yml; sub-folders are not looked into"
        texts.fail(path, "there is no policy in this folder", hint)
    elif len(found) > MAX_FILES:
        texts.fail(path, f"there are more than {MAX_FILES:,} policy files in this folder")
    else:
        for name in found:
            texts.add(name)
    return texts


def names(folder: str) -> list[str]:
    """The policy files of a folder, in order. Raises OSError."""
    with os.scandir(folder) as entries:
        return sorted(
            os.path.join(folder, entry.name)
            for entry in entries
            if entry.name.endswith(_SUFFIXES) and entry.name[0] != "." and _may_be_read(entry)
        )


def _may_be_read(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file, or a link to nothing, which is to be reported."""
    try:
        return stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return True


def _version(path: str) -> str:
    """Where `..data` of a folder points to, "" when there is none."""
    try:
        return os.readlink(os.path.join(path, _SWAPPED))
    except (OSError, ValueError):
        return ""


def _remedy(path: str, error: OSError | ValueError) -> str:
    if isinstance(error, PermissionError):
        return "run as a user who may read it, or give this one the right to"
    if isinstance(error, FileNotFoundError):
        folder, name = os.path.split(path)
        try:
            there = [one for one in os.listdir(folder or ".") if one.endswith(_SUFFIXES)]
        except OSError:
            return ""
        stems = {os.path.splitext(one)[0]: one for one in there[:MAX_FILES]}
        near = get_close_matches(os.path.splitext(name)[0], stems, n=1, cutoff=0.6)
        return f"did you mean `{os.path.join(folder, stems[near[0]])}`?" if near else ""
    return ""


def _not_utf8(name: str, data: bytes, at: int) -> Problem:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        place = Place(Location(name, 1, 1))
        return Problem(Severity.ERROR, "this file is UTF-16", place, "save it as UTF-8")
    source = Source(name, data.decode("utf-8", errors="replace"))
    place = source.place(len(data[:at].decode("utf-8")))
    message = f"the byte 0x{data[at]:02x} is not UTF-8"
    return Problem(Severity.ERROR, message, place, "save the file as UTF-8")
