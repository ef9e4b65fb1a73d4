"""Lays out the sources of `sources.toml` in fetched/<project>, and links to them in the cases. Runs with qcase's own Python.

A file comes from the Debian mirror of `QCASE_DEBIAN_MIRROR` or of this machine's apt, a crate from where the user's cargo gets
crates. It is unpacked if its sha256 is the one that stands in `sources.toml`, and not fetched again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
import tomllib
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import tenacity

from qcase.crates.pool import CRATES_IO, Crate, parse_source
from qcase.crates.registries import Client, Index, User
from qcase.errors import InfraError, QcaseError
from qcase.guests import debian_archive

HERE = Path(__file__).resolve().parent
LARGEST = 100 << 20  # bytes of one file
PATIENCE = 60.0  # seconds for an answer
DIGEST = ".sha256"  # in a project's folder: what it was unpacked from


def main(arguments: list[str]) -> int:
    """Fetch all projects, or those that are named, into the folder of `--into` or fetched/."""
    into = HERE / "fetched"
    if arguments[:1] == ["--into"]:
        into = Path(arguments[1])
        del arguments[:2]
    projects = tomllib.loads((HERE / "sources.toml").read_text(encoding="utf-8"))
    try:
        for name in arguments or projects:
            provide(name, projects[name], into)
            link(name, projects[name], into)
    except QcaseError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def provide(name: str, source: Mapping[str, str], into: Path) -> None:
    """The folder `into/name` with the sources of a project. It is there as a whole, or as it was before."""
    folder = into / name
    if (folder / DIGEST).is_file() and (folder / DIGEST).read_text(encoding="ascii") == source["sha256"]:
        return
    print(f"{name}: fetching", flush=True)
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into, prefix=".") as scratch:
        file, whole = Path(scratch, "archive"), Path(scratch, "whole")
        if "crate" in source:
            fetch_crate(source["crate"], source["sha256"], file)
        else:
            fetch_file(f"{mirror()}/{source['debian']}", file)
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != source["sha256"]:
            raise InfraError(f"{name} is not what sources.toml says: its sha256 is {found}", where=str(HERE / "sources.toml"))
        with tarfile.open(file) as packed:
            packed.extractall(whole, filter="data")
        (unpacked,) = whole.iterdir()  # an archive has one folder
        (unpacked / DIGEST).write_text(source["sha256"], encoding="ascii")
        shutil.rmtree(folder, ignore_errors=True)
        unpacked.rename(folder)


def link(name: str, source: Mapping[str, str], into: Path) -> None:
    """The case's folder of sources, `c` or `rust`: a link to the project, which git does not keep."""
    place = HERE / "suite/normal" / name / name / ("rust" if "crate" in source else "c")
    leads_to = os.path.relpath(into / name, place.parent)
    if place.is_symlink() and os.readlink(place) == leads_to:  # noqa: PTH115
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(leads_to)


def mirror() -> str:
    """The address of Debian's archive."""
    main = debian_archive.host_mirrors(Path("/etc/apt"), os.environ).main
    if main is None:
        raise InfraError("no Debian mirror is known here", where="/etc/apt", hint="set QCASE_DEBIAN_MIRROR to the address of one")
    return main.uri.rstrip("/")


def fetch_file(url: str, target: Path) -> None:
    """Download a file, in up to three attempts."""

    def once() -> None:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:  # noqa: S310
            target.write_bytes(answer.read(LARGEST))

    try:
        tenacity.Retrying(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(2), reraise=True)(once)
    except OSError as error:
        hint = "QCASE_DEBIAN_MIRROR names another mirror, or an archive that keeps old versions"
        raise InfraError(f"cannot be fetched: {error}", where=url, hint=hint) from None


def fetch_crate(title: str, sha256: str, target: Path) -> None:
    """Download a crate, `<name> <version>`."""
    name, version = title.split()
    user = User(os.environ)
    place = user.resolve(parse_source(CRATES_IO), {})
    if not isinstance(place, Index):
        raise InfraError("the user's cargo has a folder in place of crates.io", where=name, hint="name a registry there")
    Client(place.url, user, no_git).download(Crate(name, version, parse_source(CRATES_IO), sha256), target)


def no_git(index: str) -> bytes:
    raise InfraError("this index is a git repository", where=index, hint="name a sparse registry in cargo's configuration")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
