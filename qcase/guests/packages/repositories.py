"""Repositories of packages: addresses, keys and local folders."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qcase.arch import Arch
from qcase.canonical import JSON
from qcase.config.workspace_file import WorkspaceConfig
from qcase.errors import UsageError
from qcase.guests.packages.lock import file_sha256

REPOSITORIES_VARIABLE = "QCASE_PACKAGE_REPOSITORIES"
KEYS_VARIABLE = "QCASE_PACKAGE_KEYS"
LOCAL = "/qcase/repositories"


# --- repositories -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sources:
    """Package sources.

    `repositories`: None for those of the staging root, else apk's lines, in which a folder of the host is an absolute path.
    `keys`: files; None for those of the staging root.
    """

    repositories: tuple[str, ...] | None = None
    keys: tuple[Path, ...] | None = None

    @classmethod
    def of(cls, config: WorkspaceConfig, workspace: Path, environ: Mapping[str, str]) -> Sources:
        """Make the sources from `[packages]`; the environment overrides it.

        Raises `ConfigError`; `UsageError` for a missing file.
        """
        lines, files = named(config, workspace, environ)
        where = REPOSITORIES_VARIABLE if environ.get(REPOSITORIES_VARIABLE, "").split() else "[packages]"
        for line in lines or ():
            if not is_remote(line) and not Path(line).is_dir():
                hint = "a repository is an address, or a folder that holds <arch>/APKINDEX.tar.gz"
                raise UsageError("there is no such folder", where=f"{where} repositories: {line}", hint=hint)
        for path in files or ():
            if not path.is_file():
                raise UsageError("there is no such key", where=f"{where}: {path}", hint="a key is a file, *.rsa.pub")
        return cls(lines, files)

    @property
    def folders(self) -> tuple[Path, ...]:
        """Return the folders of the host among the repositories."""
        return tuple(Path(line) for line in self.repositories or () if not is_remote(line))

    def lines(self) -> tuple[str, ...]:
        """Return the repository lines as a fetch step sees them."""
        numbers = {str(folder): number for number, folder in enumerate(self.folders)}
        return tuple(f"{LOCAL}/{numbers[line]}" if line in numbers else line for line in self.repositories or ())

    def part(self, arch: Arch) -> dict[str, JSON]:
        """Return the sources' part of a key where there is no lock: for a folder, its index without its location."""
        found: list[JSON] | None = None
        if self.repositories is not None:
            found = [
                line if is_remote(line) else {"index": file_sha256(Path(line) / arch / "APKINDEX.tar.gz")}
                for line in self.repositories
            ]
        signers: list[JSON] | None = None
        if self.keys is not None:
            signers = [[path.name, file_sha256(path)] for path in self.keys]
        return {"repositories": found, "keys": signers}


def is_remote(line: str) -> bool:
    return re.match(r"(@\S+ +)?[a-z+]+://", line) is not None


def named(
    config: WorkspaceConfig, workspace: Path, environ: Mapping[str, str]
) -> tuple[tuple[str, ...] | None, tuple[Path, ...] | None]:
    """Return the repositories and the keys that `[packages]` names, or the environment in its place. They need not exist."""
    lines: tuple[str, ...] | None = config.packages.repositories
    keys: tuple[str, ...] | None = config.packages.keys
    if override := environ.get(REPOSITORIES_VARIABLE, "").split():
        lines = tuple(override)
    if override := environ.get(KEYS_VARIABLE, "").split():
        keys = tuple(override)
    if lines is not None:
        lines = tuple(line if is_remote(line) else os.path.normpath(workspace / line) for line in lines)
    return lines, None if keys is None else tuple(workspace / name for name in keys)
