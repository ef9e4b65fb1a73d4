"""Packages of the guest's distribution: resolved and fetched in one step with network, installed in others without.

    asked ─► lock ─► downloads ─(not there)─► fetch step ─► downloads ─► installed by apk from a repository of just these files

The fetch step runs apk in the image `alpine`, with network. Its input is a skeleton: the package database and the keys of a
staging root and nothing else. So installed packages count, and apk itself decides which packages are missing, downloads them, and
checks them against the repository's signed index. It writes to the skeleton, which is thrown away, and to the download cache.
Build steps see the fetched files alone and have no network. They trust the files by their location: each file's name is its
sha256.

    <store>/downloads/
        packages/<sha256>.apk        read-only, checked at each use
        asked/<key>.json             last result of a request; `--offline` uses it where there is no lock
        apk/<arch>/                  apk's own cache, of indexes and packages; only fetch steps see it, one at a time
        fetch-<arch>.lock
        lock                         held shared from the look-up of packages until they are laid out for a step

A *lock* (`qcase.lock` beside `qcase.toml`) lists the packages for each architecture and case: name, version, sha256. With a lock,
its packages enter the key, nothing else can be installed, and the repositories are asked only for packages that have not been
downloaded. Without a lock, the repositories' names enter the key, and the package versions are those of the day of the build.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qcase import canonical
from qcase.arch import Arch
from qcase.canonical import JSON
from qcase.config.workspace_file import WorkspaceConfig
from qcase.errors import BuildError, InfraError
from qcase.events import Emit
from qcase.guests.packages.apk import state
from qcase.guests.packages.downloads import Downloads
from qcase.guests.packages.fetch_step import FetchStep
from qcase.guests.packages.lock import LOCK_FILE, Lock, Package
from qcase.guests.packages.repositories import Sources
from qcase.host.trees import LIMIT, Tree

if TYPE_CHECKING:
    from qcase.containers.engine import Engine


INSTALL_RECIPE = 1  # raised when the same packages would be installed otherwise


def sources_in(root: Tree) -> dict[str, JSON]:
    """Return the package sources in a root's own files, as `Sources.part` has them. The root's script may have changed them."""
    signers: list[JSON] = []
    keys_of_it, repositories = root / "etc/apk/keys", root / "etc/apk/repositories"
    try:
        signers = [[place.name, place.sha256(LIMIT)] for place in keys_of_it.iterdir()]
    except FileNotFoundError:
        signers = []
    try:
        return {"repositories": repositories.sha256(LIMIT), "keys": signers}
    except FileNotFoundError:
        return {"repositories": None, "keys": signers}


@dataclass
class PackageSupplier:
    """Package provider for the cases of one run. `image` and `engine` are asked for at the first need.

    `record_into`: if it is a dictionary, locks are ignored, and each case's packages are noted there.
    """

    arch: Arch
    config: WorkspaceConfig
    sources: Sources
    downloads: Downloads
    lock: Lock | None
    engine: Callable[[], Engine]
    image: Callable[[str], str]
    emit: Emit
    environ: Mapping[str, str]
    offline: bool = False
    record_into: dict[tuple[Arch, str], tuple[Package, ...]] | None = None
    _resolved: dict[str, list[Package]] = field(default_factory=dict)  # requests of this run, so that each is resolved once

    def part(self, case: str) -> dict[str, JSON]:
        """Return the part of a case's key for its packages: those of the lock, else their sources."""
        environment = dict(self.config.hooks.guest_package_env)
        if self.lock is not None and self.record_into is None:
            # A script may request nothing after all, so a case that is not in the lock is no error yet.
            packages: list[JSON] = [package.row for package in self.lock.cases.get((self.arch, case), ())]
            return {"recipe": INSTALL_RECIPE, "locked": packages, "environment": environment}
        return {"recipe": INSTALL_RECIPE, **self.sources.part(self.arch), "environment": environment}

    def provide(self, case: str, asked: Sequence[str], root: Tree, scratch: Path, log: Path | Tree, folder: Path) -> None:
        """Put every package that apk needs for a request to a root into a folder: see `_lay_out`.

        `scratch`: a folder that does not exist yet. Raises `BuildError` if there is no such package, `ConfigError` if the lock
        does not hold the case, `InfraError` if it cannot be fetched.
        """
        with self.downloads.in_use():
            self._lay_out(self._downloaded(case, asked, root, scratch, log), folder)

    def _downloaded(self, case: str, asked: Sequence[str], root: Tree, scratch: Path, log: Path | Tree) -> list[Package]:
        """Return the packages that apk needs, all of them downloaded."""
        if self.lock is not None and self.record_into is None:
            return self._locked(case, root, scratch, log)
        own = sources_in(root)
        key = canonical.digest(
            {
                "arch": self.arch.value,
                "asked": list(asked),
                "state": state(root),
                "from": {name: own[name] if part is None else part for name, part in self.sources.part(self.arch).items()},
                "environment": dict(self.config.hooks.guest_package_env),
            }
        )
        if key in self._resolved and all(self.downloads.has(package) for package in self._resolved[key]):
            return self._note(case, self._resolved[key])
        if self.offline:
            remembered = self.downloads.remembered(key)
            if remembered is None:
                raise InfraError(
                    f"the packages {' '.join(asked)} have not been downloaded, and fetching is switched off",
                    where=case,
                    hint="run once without --offline",
                )
            return remembered
        try:
            self._resolved[key] = self._fetch(case, asked, (), root, scratch, log)
        except BuildError as error:
            self.downloads.remember(key, asked, (), error.what)
            raise
        self.downloads.remember(key, asked, self._resolved[key])
        return self._note(case, self._resolved[key])

    def _note(self, case: str, found: list[Package]) -> list[Package]:
        if self.record_into is not None:
            self.record_into[self.arch, case] = tuple(sorted({*self.record_into.get((self.arch, case), ()), *found}))
        return found

    def _locked(self, case: str, root: Tree, scratch: Path, log: Path | Tree) -> list[Package]:
        assert self.lock is not None
        packages = list(self.lock.of(self.arch, case))
        missing = [package for package in packages if not self.downloads.has(package)]
        if missing and self.offline:
            raise InfraError(
                f"{', '.join(map(str, missing))} of {LOCK_FILE} have not been downloaded, and fetching is switched off",
                where=case,
                hint="run once without --offline",
            )
        if missing:
            # All of the lock's packages, not the missing ones alone: only then is apk's solution unique.
            self._fetch(case, [f"{p.name}={p.version}" for p in packages], packages, root, scratch, log)
        return packages

    def _fetch(
        self, case: str, asked: Sequence[str], expected: Sequence[Package], root: Tree, scratch: Path, log: Path | Tree
    ) -> list[Package]:
        step = FetchStep(self.arch, self.config, self.sources, self.downloads, self.engine, self.image, self.emit, self.environ)
        return step.run(case, asked, expected, root, scratch, log)

    def _lay_out(self, packages: Iterable[Package], folder: Path) -> None:
        """Put downloaded packages into a folder that a step sees read-only, under their names in a repository."""
        folder.mkdir(parents=True, exist_ok=True)
        for package in packages:
            target = folder / package.file
            if target.exists():
                continue
            source = self.downloads.path(package)
            try:
                target.hardlink_to(source)
            except OSError:
                try:
                    shutil.copyfile(source, target)
                except FileNotFoundError:
                    raise InfraError("was taken away just now", where=str(source), hint="run it again") from None
