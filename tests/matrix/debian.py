"""Debian's newest kernel of a suite, unpacked into a cache directory and installed nowhere.

apt runs with a configuration of its own: the suite's package lists and archives live in the cache,
and the machine's sources, preferences and installed packages have no say. Only the mirror's address
is taken over from the machine, so proxies and local mirrors keep working.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

META_PACKAGE = "linux-image-cloud-amd64"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class Unobtainable(Exception):
    """A package cannot be had here; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel package: `release` as uname -r tells it, `version` as Debian does."""

    release: str
    version: str
    image: Path
    modules: Path


def fetch_kernel(suite: str, cache: Path, *, refresh: bool) -> Kernel:
    """Newest cloud kernel of `suite`, downloaded once into `cache` (again with `refresh`)."""
    root = cache / "root"
    if refresh or not (cache / "version").exists():
        apt = Apt(suite, cache / "apt")
        apt.update()
        package = apt.first_dependency(META_PACKAGE)
        version = apt.candidate(package)
        shutil.rmtree(root, ignore_errors=True)
        _run("dpkg", "-x", str(apt.download(package, cache)), str(root))
        (cache / "version").write_text(version)
    return _unpacked(root, (cache / "version").read_text())


def _unpacked(root: Path, version: str) -> Kernel:
    image = next(root.glob("boot/vmlinuz-*"))
    release = image.name.removeprefix("vmlinuz-")
    modules = next(d for d in root.glob("**/lib/modules/*") if d.name == release)
    return Kernel(release, version, image, modules)


class Apt:
    """apt for one Debian suite, with lists and archives under `state`."""

    def __init__(self, suite: str, state: Path) -> None:
        self.suite = suite
        for folder in ("lists/partial", "archives/partial"):
            (state / folder).mkdir(parents=True, exist_ok=True)
        sources = state / "sources.list"
        sources.write_text("".join(f"{line}\n" for line in self._sources()))
        settings = {
            "Dir::Etc::sourcelist": sources,
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State::lists": state / "lists",
            "Dir::Cache": state,
            "Dir::Cache::archives": state / "archives",
            # apt drops to a user of its own for downloads, who may not enter a checkout of root's.
            "APT::Sandbox::User": "root",
        }
        self._options = [f"-o{key}={value}" for key, value in settings.items()]

    def _sources(self) -> Iterator[str]:
        """The suite and its security updates, from wherever this machine gets its own."""
        mirrors = _debian_mirrors()
        if "Debian" not in mirrors:
            raise Unobtainable("apt knows no Debian mirror here: run this on Debian")
        yield f"deb [signed-by={KEYRING}] {mirrors['Debian']} {self.suite} main"
        if security := mirrors.get("Debian-Security"):
            yield f"deb [signed-by={KEYRING}] {security} {self.suite}-security main"

    def update(self) -> None:
        """Fetch the suite's package lists."""
        self._apt("apt-get", "-q", "update")

    def first_dependency(self, package: str) -> str:
        """What a meta package stands for."""
        listing = self._apt("apt-cache", "depends", package)
        if found := re.search(r"^\s*Depends: (\S+)", listing, re.MULTILINE):
            return found[1]
        raise Unobtainable(f"{package} of {self.suite} depends on nothing:\n{listing}")

    def candidate(self, package: str) -> str:
        """The version that a download would bring."""
        listing = self._apt("apt-cache", "policy", package)
        if found := re.search(r"^\s*Candidate: (\S+)", listing, re.MULTILINE):
            return found[1]
        raise Unobtainable(f"{package} is not in {self.suite}:\n{listing}")

    def download(self, package: str, folder: Path) -> Path:
        """The .deb, the only one of its kind left in `folder`."""
        for old in folder.glob("*.deb"):
            old.unlink()
        self._apt("apt-get", "-q", "download", package, cwd=folder)
        return next(folder.glob("*.deb"))

    def _apt(self, command: str, *arguments: str, cwd: Path | None = None) -> str:
        return _run(command, *self._options, *arguments, cwd=cwd)


def _debian_mirrors() -> dict[str, str]:
    """Label of the archive ("Debian", "Debian-Security") -> address, as this machine's apt has it.

    apt fills the labels in from downloaded lists, which a fresh container lacks: update, ask again.
    """
    ask = ("apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)")
    listing = _run(*ask)
    if "Debian|" not in listing:
        _run("apt-get", "-q", "update")
        listing = _run(*ask)
    rows = (line.split("|") for line in sorted(set(listing.splitlines())))
    return {label: address for origin, label, address in rows if origin == "Debian"}


def install(packages: dict[str, str]) -> None:
    """Install the packages whose command (or absolute path) is missing: {command: package}."""
    missing = [package for command, package in packages.items() if not _present(command)]
    if missing:
        _run("apt-get", "-q", "update")
        _run("apt-get", "-q", "-y", "install", "--no-install-recommends", *missing)


def _present(command: str) -> bool:
    return Path(command).exists() if command.startswith("/") else bool(which(command))


def which(command: str) -> str | None:
    """Where a command is, looking as root would."""
    return shutil.which(command, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _run(*command: str, cwd: Path | None = None) -> str:
    plain = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        command, cwd=cwd, env=plain, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        raise Unobtainable(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout
