"""The step that fetches packages: apk resolves a request, downloads with network, and checks signatures.

See `qcase.guests.packages.supply`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qcase.arch import Arch
from qcase.config.workspace_file import WorkspaceConfig
from qcase.errors import BuildError, InfraError
from qcase.events import Emit, Progress
from qcase.guests.packages.apk import cached_name, installed, skeleton
from qcase.guests.packages.downloads import Downloads
from qcase.guests.packages.lock import LOCK_FILE, Package, file_sha256
from qcase.guests.packages.repositories import LOCAL, Sources
from qcase.host import beneath, locks
from qcase.host.proxies import proxies_of
from qcase.host.trees import Tree

if TYPE_CHECKING:
    from qcase.containers.engine import Engine


IMAGE = "alpine"  # the toolchain image with apk
FETCH_TIMEOUT = 900.0
_LARGEST_KEY = 1 << 20  # bytes

# Paths in the step.
_ROOT = "/qcase/build/root"
_CACHE = "/qcase/cache/apk"

_FETCH = f"""\
exec 2>&1
apk="apk --root {_ROOT} --arch $ARCH --repositories-file /qcase/build/repositories --cache-dir {_CACHE}"
stage() {{ echo "$1" >/qcase/build/stage; }}
stage update
$apk update
stage resolve
$apk --cache-packages add --no-scripts --no-logfile "$@"
stage done
"""


class DatabaseError(InfraError):
    """apk cannot read the package database of a root."""


@dataclass(frozen=True)
class FetchStep:
    """Resolves and downloads packages for a root. `image` and `engine` are asked for at the first need."""

    arch: Arch
    config: WorkspaceConfig
    sources: Sources
    downloads: Downloads
    engine: Callable[[], Engine]
    image: Callable[[str], str]
    emit: Emit
    environ: Mapping[str, str]

    def run(
        self, case: str, asked: Sequence[str], expected: Sequence[Package], root: Tree, scratch: Path, log: Path | Tree
    ) -> list[Package]:
        """Resolve and download packages in a step with network. With `expected`, each one has to be the lock's."""
        from qcase.containers.step import KILLED, Mount, Step, verdict_of

        if self.downloads.readonly:
            what = f"the packages {' '.join(asked)} have not been downloaded, and nothing may be written"
            raise InfraError(what, where=case, hint="run once without --cache-readonly")
        scratch.mkdir(parents=True)
        work = Tree(scratch, what="the folder of the fetch step")
        own = Tree(scratch, "root", "the staging root")
        own.mkdir()
        skeleton(root, own)
        self._prepare_sources(own, work)
        mounts = [Mount(work, "/qcase/build", False)]
        for number, folder in enumerate(self.sources.folders):
            mounts.append(Mount(folder, f"{LOCAL}/{number}", True))
        with self._alone() as cache:
            before = installed(own)
            self.emit(Progress(f"{case}: fetching packages: {_shown(asked)}"))
            step = Step(
                image=self.image(IMAGE),
                argv=("sh", "-euc", _FETCH, "fetch", *asked),
                mounts=(*mounts, Mount(cache, _CACHE, False)),
                env={**proxies_of(self.environ), **self.config.hooks.guest_package_env, "ARCH": self.arch.value},
                network=True,
                timeout=FETCH_TIMEOUT,
                name="fetch packages",
                log=log,
            )
            result = self.engine().run(step, self.emit, case)
            stage = (work / "stage").read_text(1000).strip() if (work / "stage").is_file() else ""
            if stage != "done" or result.exit_status != 0:
                if result.timed_out or not stage or result.oom or result.exit_status == KILLED:
                    what, hint = verdict_of(step, result)
                    raise InfraError(what, where=case, hint=hint)
                raise self._refusal(case, stage, result.output, expected)
            found = []
            files = {}
            for name, facts in sorted(installed(own).items()):
                if before.get(name) == facts:
                    continue
                version, arch, checksum = facts
                file = self._file(cache, name, version, checksum)
                digest = file.sha256() if isinstance(file, Tree) else file_sha256(file)
                if digest is None:
                    raise InfraError("cannot be read", where=str(file))
                package = Package(name, version, arch, digest)
                found.append(package)
                files[package] = file
            self._compare(case, found, expected)
            for package, file in files.items():
                if not self.downloads.has(package):
                    self.downloads.take(file, package)
        with contextlib.suppress(OSError):
            work.remove()
        return found

    def _prepare_sources(self, root: Tree, work: Tree) -> None:
        """Set the repositories and the keys for this fetch step."""
        own = root / "etc/apk"
        if self.sources.repositories is None:
            try:
                text = (own / "repositories").read_text()
            except FileNotFoundError:
                text = ""
            if not re.search(r"(?m)^\s*[^#\s]", text):
                hint = "set [packages] repositories"
                raise InfraError("the guest's base image names no package repository", where="/etc/apk/repositories", hint=hint)
        else:
            text = "".join(f"{line}\n" for line in self.sources.lines())
        (work / "repositories").write_text(text)
        if self.sources.keys is not None:
            (own / "keys").remove()
            (own / "keys").mkdir(parents=True)
            for path in self.sources.keys:
                try:
                    (own / "keys" / path.name).write_bytes(beneath.read(path, _LARGEST_KEY))
                except OSError as error:
                    raise InfraError(f"cannot be read: {error.strerror}", where=str(path), hint="see [packages] keys") from None

    def _file(self, cache: Tree, name: str, version: str, checksum: str) -> Path | Tree:
        """Return the file that apk has just installed a package from: in its cache, or in a folder of the host."""
        cached = cache / cached_name(name, version, checksum)
        if cached.is_file():
            return cached
        for folder in self.sources.folders:
            path = folder / self.arch / f"{name}-{version}.apk"
            if path.is_file():
                return path
        raise InfraError(f"apk did not leave the file of {name}-{version}", where=str(cache))

    def _compare(self, case: str, found: Sequence[Package], expected: Sequence[Package]) -> None:
        if not expected:
            return
        wanted = {(p.name, p.version): p for p in expected}
        for package in found:
            locked = wanted.get((package.name, package.version))
            if locked is None:
                what = f"{package} would be installed as well, and is not in {LOCK_FILE}"
                raise InfraError(what, where=case, hint="run `qcase lock` again")
            if locked.sha256 != package.sha256:
                raise InfraError(
                    f"{package} has the sha256 {package.sha256}, and {LOCK_FILE} says {locked.sha256}",
                    where=case,
                    hint="the repository serves another file under that name; it is not used. If it is right, run `qcase lock`",
                )

    def _refusal(self, case: str, stage: str, output: str, expected: Sequence[Package]) -> Exception:
        """Return the exception for a failure of apk."""
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        for line in lines:  # of a folder, `apk update` minds nothing
            if found := re.match(
                r"(?:WARNING|ERROR): (?:updating and opening|updating|opening from cache|opening) (\S+?): (.*)", line
            ):
                address, why = found[1], found[2]
                if "UNTRUSTED" in why or "BAD signature" in why or "not trusted" in why:
                    return InfraError(
                        f"the repository's index is not signed by a key that is trusted ({why})",
                        where=self._named(address),
                        hint="[packages] keys names the files of the keys; else they are those of the guest's base image",
                    )
                return InfraError(
                    f"the repository cannot be reached: {why}",
                    where=self._named(address),
                    hint="check the network; what was fetched once is there with --offline, and [packages] repositories "
                    "names others",
                )
        if broken := next((line for line in lines if line.startswith("ERROR: Failed to open apk database")), ""):
            what = f"the package database of the staging root cannot be read: {broken.rpartition(': ')[2]}"
            return DatabaseError(what, where=case, hint="it is lib/apk/db/installed of the guest's base image")
        if stage == "update":
            return InfraError("\n".join(lines[-10:]), where=f"{case}: apk update")
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        if "unable to select packages:" in errors:
            reason = [line for line in lines[lines.index("ERROR: unable to select packages:") + 1 :] if ": " in line or line]
            if expected:
                gone = [str(p) for p in expected if any(f"world[{p.name}={p.version}]" in line for line in reason)]
                return InfraError(
                    f"no repository has {', '.join(gone) or 'all of the packages'} any more, as {LOCK_FILE} wants it",
                    where=case,
                    hint="run `qcase lock` for what there is today",
                )
            return BuildError(f"apk: unable to select packages: {' '.join(reason[:6])}", where=case, log="\n".join(lines))
        return InfraError(f"apk: {'; '.join(errors[:4]) or ' '.join(lines[-4:])}", where=case)

    def _named(self, address: str) -> str:
        """Return a repository for messages: a folder by its path on the host."""
        for number, folder in enumerate(self.sources.folders):
            address = address.replace(f"{LOCAL}/{number}/", f"{folder}/")
        return address

    @contextmanager
    def _alone(self) -> Iterator[Tree]:
        """Hold apk's cache for this architecture exclusively."""
        cache = self.downloads.root / "apk" / self.arch
        lock = self.downloads.root / f"fetch-{self.arch}.lock"
        with ExitStack() as stack:
            try:
                cache.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locks.held(lock, lambda: "another fetch step", lambda said: self.emit(Progress(said))))
            except OSError as error:
                raise InfraError(f"cannot be written: {error.strerror}", where=str(self.downloads.root)) from None
            yield Tree(cache, what="apk's cache")


def _shown(asked: Sequence[str]) -> str:
    text = " ".join(asked)
    return text if len(text) <= 80 else text[:79] + "…"
