"""An initramfs out of this machine's own files: its Python, libbpf, a few tools, the checkout.

Everything keeps the path it has here, so interpreters, rpaths and shebangs work unchanged. The
archive is "newc" cpio (buffer-format.rst in the kernel's early-userspace documentation), not
compressed: qemu copies it into the guest at once, while unpacking costs an emulated CPU seconds.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

_TRAILER = "TRAILER!!!"


class Tree:
    """What goes into the archive: path in the guest -> a file here, a link's target, text."""

    def __init__(self) -> None:
        self._files: dict[Path, Path] = {}
        self._links: dict[Path, str] = {}
        self._texts: dict[Path, tuple[str, int]] = {}
        self._folders: set[Path] = set()

    def add(self, path: Path | str) -> None:
        """A file at its own path; every symbolic link on the way to it comes along."""
        real = self._follow(Path(path))
        self._files[real] = real

    def _follow(self, path: Path) -> Path:
        """Record the links on `path` one by one (/lib -> usr/lib, x.so.1 -> x.so.1.2)."""
        walked = Path("/")
        parts = list(path.absolute().parts[1:])
        while parts:
            step = walked / parts.pop(0)
            if step.is_symlink():
                self._links[step] = target = os.readlink(step)
                path = Path(os.path.normpath(walked / target))
                walked, parts = Path("/"), [*path.parts[1:], *parts]
            else:
                walked = step
        return walked

    def place(self, source: Path, path: Path | str) -> None:
        """A file from here at another path."""
        self._files[Path(path)] = source

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """A small file made up for the guest."""
        self._texts[Path(path)] = (text, mode)

    def folder(self, *paths: str) -> None:
        """Empty directories: mount points."""
        self._folders.update(map(Path, paths))

    def link(self, path: str, target: str) -> None:
        """A symbolic link."""
        self._links[Path(path)] = target

    def copy(self, source: Path, path: Path, skip: Iterable[str] = ()) -> None:
        """A directory tree; `skip` names directories and files that stay out, at any depth."""
        unwanted = set(skip)
        for folder, folders, files in os.walk(source):
            folders[:] = [name for name in folders if name not in unwanted]
            into = path / Path(folder).relative_to(source)
            for name in files:
                origin = Path(folder, name)
                if name not in unwanted and origin.is_file():
                    self.place(origin.resolve(), into / name)

    def add_libraries(self) -> None:
        """The shared libraries that the ELF files among the entries need, by asking ldd."""
        elves = [source for source in self._files.values() if _is_dynamic(source)]
        listing = subprocess.run(
            ["ldd", *map(str, elves)], capture_output=True, text=True, check=False
        ).stdout
        for library in set(re.findall(r"(?:=> |^\s+)(/\S+) \(0x", listing, re.MULTILINE)):
            self.add(library)

    def pack(self, archive: Path) -> None:
        """Write the archive; parents come before what is in them."""
        entries: dict[Path, tuple[int, bytes | Path]] = {
            Path("/dev/console"): (stat.S_IFCHR | 0o600, b"")  # what process 1 reads and writes
        }
        for path in self._folders:
            entries[path] = (stat.S_IFDIR | 0o755, b"")
        for path, (text, mode) in self._texts.items():
            entries[path] = (stat.S_IFREG | mode, text.encode())
        for path, source in self._files.items():
            entries[path] = (stat.S_IFREG | (source.stat().st_mode & 0o755), source)
        for path, target in self._links.items():
            entries[path] = (stat.S_IFLNK | 0o777, target.encode())
        for path in list(entries):
            for parent in path.parents:
                entries.setdefault(parent, (stat.S_IFDIR | 0o755, b""))
        with archive.open("wb") as out:
            for number, path in enumerate(sorted(entries), 1):
                mode, content = entries[path]
                data = content.read_bytes() if isinstance(content, Path) else content
                _member(out, str(path).lstrip("/") or ".", number, mode, data)
            _member(out, _TRAILER, 0, 0, b"")


def _member(out: BinaryIO, name: str, inode: int, mode: int, data: bytes) -> None:
    major, minor = (5, 1) if stat.S_ISCHR(mode) else (0, 0)  # the one device: /dev/console
    raw = name.encode() + b"\0"
    # inode mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(raw), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    for piece in (header + raw, data):
        out.write(piece)
        out.write(bytes(-len(piece) % 4))


def _is_dynamic(path: Path) -> bool:
    with path.open("rb") as file:
        if file.read(4) != b"\x7fELF":
            return False
        file.seek(16)
        # e_type ET_EXEC or ET_DYN: neither a kernel module nor a BPF object (ET_REL).
        return int.from_bytes(file.read(2), "little") in (2, 3)


def module_closure(modules: Path, release: str, wanted: Iterable[str]) -> Iterator[Path]:
    """The files under `modules` that the modules called `wanted` need, themselves included.

    Also what modprobe reads to load them on demand. A name that the kernel has built in, or lacks,
    is left out: the tests say what they miss.
    """
    base = modules.parents[2]
    subprocess.run([shutil.which("depmod") or "/sbin/depmod", "-b", str(base), release], check=True)
    needs: dict[str, list[str]] = {}
    by_name: dict[str, str] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        file, _, dependencies = line.partition(":")
        needs[file] = dependencies.split()
        by_name[Path(file).name.split(".")[0].replace("-", "_")] = file
    files = {by_name[name] for name in wanted if name in by_name}
    for file in list(files):
        files.update(needs[file])
    yield from (modules / file for file in sorted(files))
    yield from sorted(modules.glob("modules.*"))
