"""`qcase.lock`: packages of each case, pinned by version and digest."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qcase import parsing
from qcase.arch import Arch
from qcase.config.toml_document import toml_value
from qcase.errors import ConfigError, InfraError, Problem
from qcase.host import beneath, file_state
from qcase.host.files import write_aside

LOCK_FILE = "qcase.lock"
LOCK_FORMAT = 1
_LARGEST = 4 << 30  # bytes of a package, an index or a key
# The parts of a file's name, from any source: none of them can contain a path.
NAME = re.compile(r"\.?[A-Za-z0-9_][A-Za-z0-9._+-]*")
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]*")
_SPECIFICATION = re.compile(r"!?[A-Za-z0-9_][A-Za-z0-9._+:/-]*((?:[<>]=?|[=~])[A-Za-z0-9._+~-]+)?")


@dataclass(frozen=True, order=True)
class Package:
    """A downloaded package."""

    name: str
    version: str
    arch: str
    sha256: str

    @property
    def file(self) -> str:
        """Return the file's name in a repository."""
        return f"{self.name}-{self.version}.apk"

    def __str__(self) -> str:
        return f"{self.name}-{self.version}"

    @property
    def row(self) -> list[str]:
        return [self.name, self.version, self.arch, self.sha256]


def check_specification(text: str) -> str:
    """Check a package specification in apk's syntax: `name`, `name=1.2-r0`, `name>1`, `so:libz.so.1`. Raises `ValueError`."""
    if not _SPECIFICATION.fullmatch(text):
        raise ValueError(f"{text!r} names no package")
    return text


# --- the lock -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lock:
    """Content of `qcase.lock`: the packages of each case, by architecture and case name (a subcase's, for a group)."""

    path: Path
    cases: Mapping[tuple[Arch, str], tuple[Package, ...]]

    def of(self, arch: Arch, case: str) -> tuple[Package, ...]:
        """Return the packages of a case. Raises `ConfigError` if it is not in the lock."""
        if (arch, case) not in self.cases:
            what = f"it has no packages for the case {case} on {arch}"
            raise ConfigError([Problem(what, self.path.name, hint="run `qcase lock` again")])
        return self.cases[arch, case]


def read_lock(workspace: Path) -> Lock | None:
    """Read the lock of a workspace; None if there is none. Raises `ConfigError` that lists every fault."""
    path = workspace / LOCK_FILE

    def wrong(what: str) -> ConfigError:
        hint = f"it is written by `qcase lock`; remove {LOCK_FILE}, and run that again"
        return ConfigError([Problem(what, LOCK_FILE, hint=hint)])

    try:
        table = parsing.toml(beneath.read(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise wrong(f"cannot be read: {error.strerror}") from None
    except ValueError as error:
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
                if not (NAME.fullmatch(name) and VERSION.fullmatch(version)):
                    raise wrong(f"{arch}: {f'{name}-{version}'!r} names no package")
                known[arch, f"{name}-{version}"] = Package(name, version, architecture, sha256)
            for case, chosen in part.get("cases", {}).items():
                cases[arch, case] = tuple(sorted(known[arch, one] for one in chosen))
    except KeyError as error:
        raise wrong(f"{error.args[0]!r} is missing") from None
    except (TypeError, AttributeError, ValueError) as error:
        raise wrong(f"is no lock: {error}") from None
    return Lock(path, cases)


def lock_text(cases: Mapping[tuple[Arch, str], Sequence[Package]]) -> str:
    """Format the text of a lock. The same packages give the same text."""
    lines = ["# The packages that cases are built with. Written by `qcase lock`; to be kept under version control.", ""]
    lines.append(f"format = {LOCK_FORMAT}")
    for arch in Arch:
        own = {case: packages for (of, case), packages in cases.items() if of is arch}
        if not own:
            continue
        every = sorted({package for packages in own.values() for package in packages})
        lines += ["", f"[{arch}]", "packages = ["]
        for package in every:
            fields = ", ".join(f"{key} = {toml_value(getattr(package, key))}" for key in ("name", "version", "arch", "sha256"))
            lines.append(f"    {{ {fields} }},")
        lines += ["]", "", f"[{arch}.cases]"]
        for case in sorted(own):
            lines.append(f"{toml_value(case)} = [{', '.join(toml_value(str(package)) for package in sorted(own[case]))}]")
    return "\n".join(lines) + "\n"


def write_lock(workspace: Path, cases: Mapping[tuple[Arch, str], Sequence[Package]]) -> Path:
    """Write the lock atomically. Returns its path."""
    path = workspace / LOCK_FILE
    try:
        write_aside(path, lock_text(cases).encode())
    except OSError as error:
        raise InfraError(f"cannot be written: {error.strerror}", where=str(path)) from None
    return path


def lock_differences(old: Lock | None, new: Mapping[tuple[Arch, str], Sequence[Package]]) -> list[str]:
    """List the changes of a new lock, package by package, one line each."""
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


def file_sha256(path: Path) -> str | None:
    try:
        return file_state.sha256(path, _LARGEST)
    except OSError:
        return None
