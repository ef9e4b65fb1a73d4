"""Packages that were fetched: kept by their digest."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qcase import parsing
from qcase.errors import BuildError, InfraError
from qcase.guests.packages.lock import Package, file_sha256
from qcase.host import locks
from qcase.host.files import replacing, write_aside
from qcase.host.trees import Tree
from qcase.store.leases import make_lock

# --- downloads ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Downloads:
    """The download cache. With `readonly`, nothing is written."""

    root: Path
    readonly: bool = False

    def path(self, package: Package) -> Path:
        return self.root / "packages" / f"{package.sha256}.apk"

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Hold the lock against collection.

        Where the lock is missing and cannot be made, no process has collected anything yet.
        """
        lock = self.root / "lock"
        fd = None
        with contextlib.suppress(OSError):
            fd = locks.share(lock)
            while fd is None and not self.readonly:
                make_lock(lock)
                fd = locks.share(lock)
        try:
            yield
        finally:
            locks.close(fd)

    def has(self, package: Package) -> bool:
        """Tell whether a package is in the cache and intact. A damaged file is removed."""
        path = self.path(package)
        try:
            with path.open("rb") as file:
                whole = hashlib.file_digest(file, "sha256").hexdigest() == package.sha256
                # Another process may have replaced it with a good one.
                if not whole and not self.readonly and locks.is_at(file.fileno(), path):
                    path.unlink(missing_ok=True)
        except OSError:
            return False
        if not whole:
            return False
        if not self.readonly:
            with contextlib.suppress(OSError):
                os.utime(path)  # its last use
        return True

    def take(self, file: Path | Tree, package: Package) -> None:
        """Move a downloaded file into the cache."""
        target = self.path(package)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target, flushed=True) as staged:
                if isinstance(file, Tree):
                    with file.opened() as fd:
                        Tree(target.parent, staged.name, "the packages").copy_in(fd)
                else:
                    shutil.copyfile(file, staged)
                staged.chmod(0o444)
                if file_sha256(staged) != package.sha256:
                    raise InfraError("was changed while it was stored", where=str(file))
        except OSError as error:
            raise InfraError(f"cannot keep the package: {error.strerror}", where=str(error.filename or target)) from None

    def remembered(self, key: str) -> list[Package] | None:
        """Return the last result of a request, if all its packages are still cached.

        Raises the `BuildError` that was its result.
        """
        try:
            plain = parsing.from_json((self.root / "asked" / f"{key}.json").read_bytes())
            if refused := str(plain.get("refused", "")):
                raise BuildError(refused)
            found = [Package(*(str(word) for word in row)) for row in plain["packages"]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return found if all(self.has(package) for package in found) else None

    def remember(self, key: str, asked: Sequence[str], packages: Iterable[Package], refused: str = "") -> None:
        """Record the result of a request. `refused`: the error of a request that failed.

        A script may continue after a failed request, and has to get the same failure without a network.
        """
        path = self.root / "asked" / f"{key}.json"
        plain = {"asked": list(asked), "packages": [package.row for package in packages], "refused": refused}
        with contextlib.suppress(OSError):  # then it has to be asked for again
            path.parent.mkdir(parents=True, exist_ok=True)
            write_aside(path, json.dumps(plain, indent=1).encode())
