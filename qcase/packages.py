"""Packages of the guest's distribution: resolved and fetched in one step, with network; installed in others, without.

    asked ─► lock ─► downloads ─(not there)─► fetch step ─► downloads ─► installed by apk from a repository of just these files

The fetch step runs apk in the image `alpine`, with network. What it is given is a skeleton, the package database and the keys of
a staging root and nothing else, so what is there already counts, and apk itself decides which packages are missing, downloads
them, and checks them against the repository's signed index. It writes to the skeleton, which is thrown away, and to the download
cache. Build steps see the fetched files alone, have no network, and trust them because of where they come from: below a name that
is their sha256.

    <store>/downloads/
        packages/<sha256>.apk        read-only, checked at each use
        asked/<key>.json             what a request came to the last time: what `--offline` goes by where there is no lock
        apk/<arch>/                  apk's own cache, of indexes and packages; only fetch steps see it, one at a time
        fetch-<arch>.lock
        lock                         held shared from when packages are looked up until they are laid out for a step

A *lock* (`qcase.lock` beside `qcase.toml`) says for each architecture and case which packages there are: name, version, sha256.
Where there is one, its packages enter the key, nothing else can be installed, and the repositories are asked only for what has
not been downloaded. Without, what the repositories are enters the key, and what they hold is as of the day of the build.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qcase import keys, locks
from qcase.config import WorkspaceConfig
from qcase.containers import PROXIES, Mount, Step, verdict_of
from qcase.content import copy_tree, flush, write_aside
from qcase.errors import BuildError, ConfigError, InfraError, Problem, UsageError
from qcase.events import Emit, Progress
from qcase.keys import JSON
from qcase.model import Arch

if TYPE_CHECKING:
    from qcase.containers import Engine

IMAGE = "alpine"
LOCK_FILE = "qcase.lock"
LOCK_FORMAT = 1
RECIPE = 1  # raised when the same packages would be installed otherwise

REPOSITORIES_VARIABLE = "QCASE_PACKAGE_REPOSITORIES"
KEYS_VARIABLE = "QCASE_PACKAGE_KEYS"

FETCH_TIMEOUT = 900.0
INSTALL_TIMEOUT = 600.0

# Where a step finds its things.
STAGING = "/qcase/staging"
FETCHED = "/qcase/packages/fetched"
_ROOT = "/qcase/build/root"
_CACHE = "/qcase/cache/apk"
_LOCAL = "/qcase/repositories"

_DATABASE = ("lib/apk", "usr/lib/apk", "etc/apk")  # where apk keeps what it knows, by version
# What apk writes for itself: no part of what packages bring.
OWN_FILES = (*_DATABASE, "var/cache/apk", "var/cache/misc", "var/log/apk.log")

_SPECIFICATION = re.compile(r"!?[A-Za-z0-9_][A-Za-z0-9._+:/-]*((?:[<>]=?|[=~])[A-Za-z0-9._+~-]+)?")


@dataclass(frozen=True, order=True)
class Package:
    """A package as it was downloaded."""

    name: str
    version: str
    arch: str
    sha256: str

    @property
    def file(self) -> str:
        """The file's name in a repository."""
        return f"{self.name}-{self.version}.apk"

    def __str__(self) -> str:
        return f"{self.name}-{self.version}"

    @property
    def row(self) -> list[str]:
        return [self.name, self.version, self.arch, self.sha256]


def check_specification(text: str) -> str:
    """What is asked for, as apk takes it: `name`, `name=1.2-r0`, `name>1`, `so:libz.so.1`. Raises `ValueError`."""
    if not _SPECIFICATION.fullmatch(text):
        raise ValueError(f"{text!r} names no package")
    return text


# --- the lock -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lock:
    """What `qcase.lock` says: the packages of each case, by architecture and by its name (a subcase's, for a group)."""

    path: Path
    cases: Mapping[tuple[Arch, str], tuple[Package, ...]]

    def of(self, arch: Arch, case: str) -> tuple[Package, ...]:
        """The packages of a case. Raises `ConfigError` if it is not in the lock."""
        if (arch, case) not in self.cases:
            what = f"it has no packages for the case {case} on {arch}"
            raise ConfigError([Problem(what, self.path.name, hint="run `qcase lock` again")])
        return self.cases[arch, case]


def read_lock(workspace: Path) -> Lock | None:
    """The lock of a workspace, if there is one. Raises `ConfigError` with all that is wrong with it."""
    import tomli

    path = workspace / LOCK_FILE

    def wrong(what: str) -> ConfigError:
        hint = f"it is written by `qcase lock`; remove {LOCK_FILE}, and run that again"
        return ConfigError([Problem(what, LOCK_FILE, hint=hint)])

    try:
        table = tomli.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise wrong(f"cannot be read: {error.strerror}") from None
    except (tomli.TOMLDecodeError, UnicodeDecodeError) as error:
        raise wrong(f"is not TOML: {error}") from None
    if table.get("format") != LOCK_FORMAT:
        raise wrong(f"is of the format {table.get('format')!r}; this qcase knows {LOCK_FORMAT}")
    try:
        cases: dict[tuple[Arch, str], tuple[Package, ...]] = {}
        known = {}
        for arch in Arch:
            part = table.get(arch.value, {})
            for row in part.get("packages", []):
                name, version, architecture, sha256 = (str(row[key]) for key in ("name", "version", "arch", "sha256"))
                if not re.fullmatch("[0-9a-f]{64}", sha256):
                    raise wrong(f"{arch}: {name}-{version} has no sha256, but {sha256!r}")
                check_specification(f"{name}={version}")
                known[arch, f"{name}-{version}"] = Package(name, version, architecture, sha256)
            for case, chosen in part.get("cases", {}).items():
                cases[arch, case] = tuple(sorted(known[arch, one] for one in chosen))
    except KeyError as error:
        raise wrong(f"{error.args[0]!r} is missing") from None
    except (TypeError, AttributeError, ValueError) as error:
        raise wrong(f"is no lock: {error}") from None
    return Lock(path, cases)


def lock_text(cases: Mapping[tuple[Arch, str], Sequence[Package]]) -> str:
    """The text of a lock. The same packages give the same text."""
    lines = ["# The packages that cases are built with. Written by `qcase lock`; to be kept under version control.", ""]
    lines.append(f"format = {LOCK_FORMAT}")
    for arch in Arch:
        own = {case: packages for (of, case), packages in cases.items() if of is arch}
        if not own:
            continue
        every = sorted({package for packages in own.values() for package in packages})
        lines += ["", f"[{arch}]", "packages = ["]
        for package in every:
            fields = ", ".join(f"{key} = {json.dumps(getattr(package, key))}" for key in ("name", "version", "arch", "sha256"))
            lines.append(f"    {{ {fields} }},")
        lines += ["]", "", f"[{arch}.cases]"]
        for case in sorted(own):
            lines.append(f"{json.dumps(case)} = [{', '.join(json.dumps(str(package)) for package in sorted(own[case]))}]")
    return "\n".join(lines) + "\n"


def write_lock(workspace: Path, cases: Mapping[tuple[Arch, str], Sequence[Package]]) -> Path:
    """Write the lock anew, whole or not at all. Returns where it is."""
    path = workspace / LOCK_FILE
    try:
        write_aside(path, lock_text(cases).encode())
    except OSError as error:
        raise InfraError(f"cannot be written: {error.strerror}", where=str(path)) from None
    return path


def lock_differences(old: Lock | None, new: Mapping[tuple[Arch, str], Sequence[Package]]) -> list[str]:
    """What a new lock changes, package by package, one line each."""
    lines = []
    before = old.cases if old is not None else {}
    for arch in Arch:
        was, now = (
            {(p.name, p.version): p for (of, _), packages in cases.items() if of is arch for p in packages}
            for cases in (before, new)
        )
        for name in sorted({name for name, _ in {*was, *now}}):
            gone = {version: p for (of, version), p in was.items() if of == name}
            come = {version: p for (of, version), p in now.items() if of == name}
            if gone == come:
                continue
            if not gone:
                lines.append(f"{arch}: {name} {', '.join(sorted(come))} is new")
            elif not come:
                lines.append(f"{arch}: {name} {', '.join(sorted(gone))} is gone")
            elif set(gone) == set(come):
                lines.append(f"{arch}: {name} {', '.join(sorted(come))} has another content")
            else:
                lines.append(f"{arch}: {name} {', '.join(sorted(gone))} → {', '.join(sorted(come))}")
    return lines


# --- repositories -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sources:
    """Where packages come from. `repositories`: None means those of the staging root, else apk's lines, in which a folder of
    the host is an absolute path. `keys`: files; None likewise."""

    repositories: tuple[str, ...] | None = None
    keys: tuple[Path, ...] | None = None

    @classmethod
    def of(cls, config: WorkspaceConfig, workspace: Path, environ: Mapping[str, str]) -> Sources:
        """`[packages]`, over which the environment goes. Raises `ConfigError`, `UsageError` for a file that is not there."""
        lines: tuple[str, ...] | None = config.packages.repositories
        named: tuple[str, ...] | None = config.packages.keys
        where = "[packages]"
        if override := environ.get(REPOSITORIES_VARIABLE, "").split():
            lines = tuple(override)
            where = REPOSITORIES_VARIABLE
        if override := environ.get(KEYS_VARIABLE, "").split():
            named = tuple(override)
        folders = None
        if lines is not None:
            folders = tuple(line if _is_remote(line) else _folder(line, workspace, where) for line in lines)
        files = None
        if named is not None:
            files = tuple(workspace / name for name in named)
            for path in files:
                if not path.is_file():
                    raise UsageError("there is no such key", where=f"{where}: {path}", hint="a key is a file, *.rsa.pub")
        return cls(folders, files)

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders of the host among the repositories."""
        return tuple(Path(line) for line in self.repositories or () if not _is_remote(line))

    def lines(self) -> tuple[str, ...]:
        """The repositories as apk finds them in a fetch step."""
        numbers = {str(folder): number for number, folder in enumerate(self.folders)}
        return tuple(f"{_LOCAL}/{numbers[line]}" if line in numbers else line for line in self.repositories or ())

    def part(self, arch: Arch) -> dict[str, JSON]:
        """What of it enters a key where there is no lock: of a folder its index, wherever it is."""
        found: list[JSON] | None = None
        if self.repositories is not None:
            found = [
                line if _is_remote(line) else {"index": _digest(Path(line) / arch / "APKINDEX.tar.gz")}
                for line in self.repositories
            ]
        signers: list[JSON] | None = None
        if self.keys is not None:
            signers = [[path.name, _digest(path)] for path in self.keys]
        return {"repositories": found, "keys": signers}


def _is_remote(line: str) -> bool:
    return re.match(r"(@\S+ +)?[a-z+]+://", line) is not None


def _folder(line: str, workspace: Path, where: str) -> str:
    path = Path(os.path.normpath(workspace / line))
    if not path.is_dir():
        hint = "a repository is an address, or a folder that holds <arch>/APKINDEX.tar.gz"
        raise UsageError("there is no such folder", where=f"{where} repositories: {line}", hint=hint)
    return str(path)


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


# --- downloads ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Downloads:
    """The download cache. Nothing is written where it is `readonly`."""

    root: Path
    readonly: bool = False

    def path(self, package: Package) -> Path:
        return self.root / "packages" / f"{package.sha256}.apk"

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let nothing be collected. Where the lock is not there and cannot be made, nobody has collected anything yet."""
        lock = self.root / "lock"
        fd = None
        with contextlib.suppress(OSError):
            fd = locks.share(lock)
            while fd is None and not self.readonly:
                _make_lock(lock)
                fd = locks.share(lock)
        try:
            yield
        finally:
            locks.close(fd)

    def has(self, package: Package) -> bool:
        """Whether a package is there, and whole. A damaged one is thrown away."""
        path = self.path(package)
        try:
            with path.open("rb") as file:
                whole = hashlib.file_digest(file, "sha256").hexdigest() == package.sha256
                # Somebody may have put a good one in its place meanwhile.
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

    def take(self, file: Path, package: Package) -> None:
        """Put a downloaded file in its place."""
        target = self.path(package)
        staged = target.with_name(f".{package.sha256}.{uuid.uuid4().hex[:12]}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, staged)
            staged.chmod(0o444)
            flush(staged)
            if _digest(staged) != package.sha256:
                raise InfraError("was changed while it was stored", where=str(file))
            staged.rename(target)
            flush(target.parent)
        except OSError as error:
            raise InfraError(f"cannot keep the package: {error.strerror}", where=str(error.filename or target)) from None
        finally:
            with contextlib.suppress(OSError):
                staged.unlink()

    def remembered(self, key: str) -> list[Package] | None:
        """What a request came to the last time, if all of it is still there. Raises the `BuildError` that it came to."""
        try:
            plain = json.loads((self.root / "asked" / f"{key}.json").read_bytes())
            if refused := str(plain.get("refused", "")):
                raise BuildError(refused)
            found = [Package(*(str(word) for word in row)) for row in plain["packages"]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return found if all(self.has(package) for package in found) else None

    def remember(self, key: str, asked: Sequence[str], packages: Iterable[Package], refused: str = "") -> None:
        """`refused`: why it came to nothing. A script may go on all the same, and has to find the same without a network."""
        path = self.root / "asked" / f"{key}.json"
        plain = {"asked": list(asked), "packages": [package.row for package in packages], "refused": refused}
        with contextlib.suppress(OSError):  # then it has to be asked for again
            path.parent.mkdir(parents=True, exist_ok=True)
            write_aside(path, json.dumps(plain, indent=1).encode())


@contextmanager
def unused(root: Path, *, looking: bool = False) -> Iterator[bool]:
    """Hold the lock of the download cache `root` for ourselves alone, without waiting. False, and not held, while it is in use.

    `looking`: nothing is made.
    """
    lock = root / "lock"
    fd = None
    free = False
    with contextlib.suppress(OSError):
        free = looking and not lock.exists()
        if not looking:
            _make_lock(lock)
        if not free:
            fd = locks.sole(lock)
            free = fd is not None
    try:
        yield free
    finally:
        locks.close(fd)


def _make_lock(lock: Path) -> None:
    if not lock.exists():
        lock.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))


def verify(path: Path) -> str:
    """What is wrong with a downloaded package, in words; empty if nothing is."""
    return "" if _digest(path) == path.stem else "it is not what was downloaded"


# --- what a staging root holds ------------------------------------------------------------------------------------------


def installed(root: Path) -> dict[str, tuple[str, str, str]]:
    """The packages of a root by name: version, architecture, and apk's checksum. Raises `BuildError` where there is no apk."""
    for folder in ("lib/apk/db", "usr/lib/apk/db"):
        try:
            text = (root / folder / "installed").read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            continue
        found = {}
        for stanza in text.split("\n\n"):
            fields = {line[0]: line[2:] for line in reversed(stanza.splitlines()) if line[1:2] == ":" and line[0] in "PVAC"}
            if "P" in fields:
                found[fields["P"]] = (fields.get("V", ""), fields.get("A", ""), fields.get("C", ""))
        return found
    raise BuildError(
        "the guest's base image has no package database of apk, so nothing can be installed into it",
        hint="packages need a guest made of Alpine",
    )


def skeleton(root: Path, target: Path) -> None:
    """The part of a root that apk goes by, as a root of its own."""
    for name in _DATABASE:
        if (root / name).is_dir():
            copy_tree(root / name, target / name, copy=shutil.copyfile)
    for folder in (target, *target.rglob("*")):
        if not folder.is_symlink():
            folder.chmod(0o755 if folder.is_dir() else 0o644)


def _state(root: Path) -> str:
    """A digest of what is installed, and asked for, in a root.

    Virtual packages (`apk add --virtual .tools`) are left out: apk gives them the time of day as their version.
    """
    rows = sorted([name, *facts] for name, facts in installed(root).items() if not name.startswith("."))
    world = root / "etc/apk/world"
    asked = world.read_text().splitlines() if world.is_file() else []
    return keys.digest({"installed": rows, "world": [line for line in asked if not line.startswith(".")]})


def _sources_in(root: Path) -> dict[str, JSON]:
    """Where a root itself says that packages come from, as `Sources.part` has it. Its own script may have changed that."""
    signers: list[JSON] = [[path.name, _digest(path)] for path in sorted((root / "etc/apk/keys").glob("*"))]
    return {"repositories": _digest(root / "etc/apk/repositories"), "keys": signers}


def _cached_name(name: str, version: str, checksum: str) -> str:
    """How apk names a package in its cache: with the first four bytes of its checksum."""
    return f"{name}-{version}.{base64.b64decode(checksum[2:])[:4].hex()}.apk"


# --- getting packages ---------------------------------------------------------------------------------------------------

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


@dataclass
class Supply:
    """What the cases of one run get packages by. `image` and `engine` are asked for at the first need.

    `recorded`: with a dictionary in it, any lock is passed over, and what each case gets is noted there.
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
    recorded: dict[tuple[Arch, str], tuple[Package, ...]] | None = None
    _resolved: dict[str, list[Package]] = field(default_factory=dict)  # in this run: what is asked for once is asked for once

    def part(self, case: str) -> dict[str, JSON]:
        """What enters the keys of a case that gets packages: those of the lock, or else where they would come from."""
        environment = dict(self.config.hooks.guest_package_env)
        if self.lock is not None and self.recorded is None:
            # A script may ask for nothing after all, so a case that is not there is no error yet.
            packages: list[JSON] = [package.row for package in self.lock.cases.get((self.arch, case), ())]
            return {"recipe": RECIPE, "locked": packages, "environment": environment}
        return {"recipe": RECIPE, **self.sources.part(self.arch), "environment": environment}

    def provide(self, case: str, asked: Sequence[str], root: Path, scratch: Path, log: Path, folder: Path) -> None:
        """Put the packages into a folder that have to be there for apk to add what is asked for to a root: see `_lay_out`.

        `scratch`: a folder that does not exist yet. Raises `BuildError` if there is no such package, `ConfigError` if the lock
        does not hold the case, `InfraError` if it cannot be fetched.
        """
        with self.downloads.in_use():
            self._lay_out(self._downloaded(case, asked, root, scratch, log), folder)

    def _downloaded(self, case: str, asked: Sequence[str], root: Path, scratch: Path, log: Path) -> list[Package]:
        """The packages that have to be there, all of them downloaded."""
        if self.lock is not None and self.recorded is None:
            return self._locked(case, root, scratch, log)
        own = _sources_in(root)
        key = keys.digest(
            {
                "arch": self.arch.value,
                "asked": list(asked),
                "state": _state(root),
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
        if self.recorded is not None:
            self.recorded[self.arch, case] = tuple(sorted({*self.recorded.get((self.arch, case), ()), *found}))
        return found

    def _locked(self, case: str, root: Path, scratch: Path, log: Path) -> list[Package]:
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
            # All of the lock's, not the missing alone: that is what apk can solve to nothing else.
            self._fetch(case, [f"{p.name}={p.version}" for p in packages], packages, root, scratch, log)
        return packages

    def _fetch(
        self, case: str, asked: Sequence[str], expected: Sequence[Package], root: Path, scratch: Path, log: Path
    ) -> list[Package]:
        """Resolve and download, in a step with network. With `expected`, every one has to be what the lock says."""
        if self.downloads.readonly:
            what = f"the packages {' '.join(asked)} have not been downloaded, and nothing may be written"
            raise InfraError(what, where=case, hint="run once without --cache-readonly")
        scratch.mkdir(parents=True)
        skeleton(root, scratch / "root")
        self._prepare_sources(scratch)
        mounts = [Mount(scratch, "/qcase/build", False)]
        for number, folder in enumerate(self.sources.folders):
            mounts.append(Mount(folder, f"{_LOCAL}/{number}", True))
        with self._alone() as cache:
            before = installed(scratch / "root")
            self.emit(Progress(f"{case}: fetching packages: {_shown(asked)}"))
            step = Step(
                image=self.image(IMAGE),
                argv=("sh", "-euc", _FETCH, "fetch", *asked),
                mounts=(*mounts, Mount(cache, _CACHE, False)),
                env={**self._proxies(), **self.config.hooks.guest_package_env, "ARCH": self.arch.value},
                network=True,
                timeout=FETCH_TIMEOUT,
                name="fetch packages",
                log=log,
            )
            result = self.engine().run(step, self.emit, case)
            stage = (scratch / "stage").read_text().strip() if (scratch / "stage").is_file() else ""
            if stage != "done" or result.exit_status != 0:
                if result.timed_out or not stage or result.oom:
                    what, hint = verdict_of(step, result)
                    raise InfraError(what, where=case, hint=hint)
                raise self._refusal(case, stage, result.output, expected)
            found = []
            files = {}
            for name, facts in sorted(installed(scratch / "root").items()):
                if before.get(name) == facts:
                    continue
                version, arch, checksum = facts
                file = self._file(cache, name, version, checksum)
                package = Package(name, version, arch, hashlib.sha256(file.read_bytes()).hexdigest())
                found.append(package)
                files[package] = file
            self._compare(case, found, expected)
            for package, file in files.items():
                if not self.downloads.has(package):
                    self.downloads.take(file, package)
        shutil.rmtree(scratch, ignore_errors=True)
        return found

    def _prepare_sources(self, scratch: Path) -> None:
        """The repositories and the keys that this fetch step goes by."""
        own = scratch / "root/etc/apk"
        if self.sources.repositories is None:
            try:
                text = (own / "repositories").read_text(encoding="utf-8")
            except OSError:
                text = ""
            if not re.search(r"(?m)^\s*[^#\s]", text):
                hint = "set [packages] repositories"
                raise InfraError("the guest's base image names no package repository", where="/etc/apk/repositories", hint=hint)
        else:
            text = "".join(f"{line}\n" for line in self.sources.lines())
        (scratch / "repositories").write_text(text, encoding="utf-8")
        if self.sources.keys is not None:
            shutil.rmtree(own / "keys", ignore_errors=True)
            (own / "keys").mkdir(parents=True)
            for path in self.sources.keys:
                shutil.copyfile(path, own / "keys" / path.name)

    def _file(self, cache: Path, name: str, version: str, checksum: str) -> Path:
        """The file that apk has just installed a package from: in its cache, or in a folder of the host."""
        cached = cache / _cached_name(name, version, checksum)
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
        """What apk's failure means."""
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
        """A repository as a person knows it: a folder by its place on the host."""
        for number, folder in enumerate(self.sources.folders):
            address = address.replace(f"{_LOCAL}/{number}/", f"{folder}/")
        return address

    def _proxies(self) -> dict[str, str]:
        both = [spelling for name in PROXIES for spelling in (name, name.upper())]
        return {name: self.environ[name] for name in both if self.environ.get(name)}

    @contextmanager
    def _alone(self) -> Iterator[Path]:
        """apk's cache for this architecture, for ourselves."""
        from filelock import FileLock, Timeout

        cache = self.downloads.root / "apk" / self.arch
        try:
            cache.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.downloads.root / f"fetch-{self.arch}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                self.emit(Progress("waiting for another fetch step"))
                lock.acquire()
        except OSError as error:
            raise InfraError(f"cannot be written: {error.strerror}", where=str(self.downloads.root)) from None
        try:
            yield cache
        finally:
            lock.release()

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


def _shown(asked: Sequence[str]) -> str:
    text = " ".join(asked)
    return text if len(text) <= 80 else text[:79] + "…"


# --- installing ---------------------------------------------------------------------------------------------------------

# A repository of just the files that were fetched, and apk that knows no other. They were checked when they were fetched, and
# their names are their digests, so neither the index nor a package needs a signature here.
_INSTALL = """\
umask 022
repository=$(mktemp -d)
folder=$repository/$QCASE_APK_ARCH
mkdir "$folder"
for file in @FETCHED@/*.apk; do
    [ ! -f "$file" ] || ln -s "$file" "$folder/"
done
[ ! -f "$file" ] || @APK@ mkndx --allow-untrusted --quiet --output "$folder/APKINDEX.tar.gz" "$folder"/*.apk
status=0
@APK@ --root @STAGING@ --arch "$QCASE_APK_ARCH" --repositories-file /dev/null --repository "$repository" \\
    --allow-untrusted --no-network --no-cache add --no-scripts --no-logfile "$@" || status=$?
rm -rf "$repository"
exit "$status"
"""


def install_program(apk: str) -> str:
    """A shell program that adds its arguments to the staging root, with the apk that is called by the word `apk`."""
    return _INSTALL.replace("@FETCHED@", FETCHED).replace("@STAGING@", STAGING).replace("@APK@", apk)


def install(supply: Supply, case: str, asked: Sequence[str], root: Path, scratch: Path, log: Path) -> None:
    """Get packages, and add them to a staging root that is the caller's own. No network but in the fetch step."""
    fetched = scratch / "fetched"
    supply.provide(case, asked, root, scratch / "fetch", log, fetched)
    step = Step(
        image=supply.image(IMAGE),
        argv=("sh", "-euc", "exec 2>&1\n" + install_program("apk"), "install", *asked),
        mounts=(Mount(root, STAGING, False), Mount(fetched, FETCHED, True)),
        env={**supply.config.hooks.guest_package_env, "QCASE_APK_ARCH": supply.arch.value},
        timeout=INSTALL_TIMEOUT,
        name="install packages",
        log=log,
    )
    supply.engine().check(step, supply.emit, case)
