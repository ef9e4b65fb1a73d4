"""Crates from git, for `qcase.pipelines.rust_crates`: packs of commits in the cache, and a tar of crates made of them.

All that looks into a repository is a child, `qcase.crates.git_crates`, with limits of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from qcase import parsing
from qcase.crates import pool
from qcase.crates.git_crates import CERTIFICATES, Order, Submodule
from qcase.crates.pool import Crate, Pool, Source
from qcase.crates.registries import User, certificates
from qcase.errors import BuildError, InfraError
from qcase.host import process

SUBMODULES = 64


def work(user: User, *words: str) -> process.Completed:
    """Run the child process `qcase.crates.git_crates` with the certificates that the user trusts."""
    bundle = certificates(user.environ, user.config)
    return pool.git(*words, env={CERTIFICATES: str(bundle)} if bundle else {})


def _said(done: process.Completed) -> str:
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return lines[0] if lines else f"it ended with status {done.returncode}"


def index_config(user: User, scratch: Path) -> Callable[[str], bytes]:
    """Return a function that reads `config.json` of an index that is a git repository."""

    def read(url: str) -> bytes:
        pack = scratch / "index.pack"
        done = work(user, "config", url, str(pack))
        pack.unlink(missing_ok=True)
        if done.returncode:
            raise InfraError(f"its crates could not be fetched: {_said(done)}", where=url)
        return done.stdout

    return read


class Repositories:
    """Commits that one case needs, in files of `scratch`. `missing` is called before a download."""

    def __init__(self, pool: Pool, user: User, scratch: Path, missing: Callable[[], None]) -> None:
        self._pool = pool
        self._user = user
        self._scratch = scratch
        self._missing = missing

    def tar(self, source: Source, wanted: Sequence[Crate], target: Path, case: str) -> None:
        """Write a tar of crates of one commit: folders in cargo's layout, below `vendor/`."""
        packs = self._packs("", self._user.mirror(source.url), source.commit)
        order = Order(tuple(packs), tuple((crate.name, crate.version) for crate in wanted), str(target))
        path = target.with_suffix(".json")
        path.write_text(json.dumps(asdict(order)), encoding="utf-8")
        done = work(self._user, "vendor", str(path))
        path.unlink()
        if done.returncode:
            raise BuildError(f"its crates cannot be had from {source.url}: {_said(done)}", where=case)

    def _packs(self, folder: str, url: str, commit: str) -> list[tuple[str, str, str]]:
        """Return the pack of a commit, and those of its submodules, as (folder, pack file, commit)."""
        found: list[tuple[str, str, str]] = []
        pending = [(folder, url, commit)]
        while pending:
            folder, url, commit = pending.pop(0)
            if len(found) > SUBMODULES:
                raise BuildError(f"its crates cannot be had: {url} has more than {SUBMODULES} submodules")
            pack = self._scratch / f"{commit}.pack"
            below = self._pack(url, commit, pack)
            found.append((folder, str(pack), commit))
            pending += [(f"{folder}/{one.path}".lstrip("/"), one.url, one.commit) for one in below]
        return found

    def _pack(self, url: str, commit: str, target: Path) -> list[Submodule]:
        blob = pool.pack_blob(commit)
        if target.exists() or self._pool.copy(blob, target, pool.commit_of):
            done = work(self._user, "submodules", url, commit, str(target))
        else:
            self._missing()
            done = work(self._user, "fetch", url, commit, str(target))
            if done.returncode == 0 and pool.commit_of(target) == commit:
                self._pool.take(blob, target)
        if done.returncode:
            raise _fault(_said(done))
        return [Submodule(**row) for row in parsing.from_json(done.stdout)]


def _fault(said: str) -> BuildError | InfraError:
    if "is not fetched: only" in said or "it has a file of the name" in said or "it has more than" in said:
        return BuildError(f"its crates cannot be had: {said}")
    hint = "is there a network? Repositories are fetched without a password, and only over https://, http:// and git://"
    return InfraError(f"its crates could not be fetched: {said}", hint=hint)
