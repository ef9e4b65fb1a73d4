"""The crates that a Rust case uses: fetched in a step of their own, with network; built in another one, without.

    Cargo.lock ─► store ─(not there)─► fetch step: `cargo vendor --locked` ─► store ─► build step, read-only

What is fetched is kept in the store under a key of the lock file, as crates in folders with a digest of every file, which cargo
compares when it builds:

    vendor/<name>-<version>/     the crates
    config.toml                  tells cargo to take them in place of every registry and repository that the lock names
    Cargo.lock                   what was fetched

The fetch step, and no other, sees the user's own cargo configuration: `config.toml` and `credentials.toml` of his `CARGO_HOME`,
variables of the registries, proxies, and the certificates of this machine. So crates come from the mirror that he uses, with
his tokens, and no token reaches a build or the store. The addresses of registries that have names are the exception: a
`Cargo.toml` that says `registry = "…"` is not understood without them, so the build is told those.

Without a `Cargo.lock` the versions are those of the day of the fetch; that is said.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcase import containers, keys
from qcase.containers import Mount, Step
from qcase.errors import BuildError, InfraError
from qcase.pipelines import SRC, Workshop

RECIPE = 1
CRATES = "/qcase/crates"
TIMEOUT = 1800.0  # seconds

_HOME = "/qcase/cargo"
_CERTIFICATES = "/qcase/certificates.pem"
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_VARIABLES = ("CARGO_REGISTRY_*", "CARGO_REGISTRIES_*", "CARGO_HTTP_*", "CARGO_NET_*", "CARGO_SOURCE_*")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")

# A copy in memory, because without a lock file cargo writes one.
_PROGRAM = f"""\
exec 2>&1
umask 022
cp -R {SRC} /tmp/src
cd /tmp/src/rust
cargo vendor --respect-source-config --versioned-dirs $LOCKED {CRATES}/vendor >{CRATES}/config.toml
cp Cargo.lock {CRATES}/
"""


@dataclass(frozen=True)
class Fetched:
    """The crates of a case. `folder`: None where it uses none. `locked`: there is a lock file, its own or that of the fetch."""

    folder: Path | None
    locked: bool


def fetch(source: Path, workshop: Workshop) -> Fetched:
    """The crates that `source/rust` uses, from the store or fetched now.

    Raises `BuildError` for a lock file that does not fit, `InfraError` where they cannot be fetched.
    """
    lock = source / "rust" / "Cargo.lock"
    manifests = _manifests(source)
    if lock.is_symlink() and not lock.resolve().is_relative_to(source.resolve()):
        raise BuildError("rust/Cargo.lock is a symbolic link that leads out of the case", where=workshop.case)
    if not lock.is_file():
        if not any(_outside(manifest) for manifest in manifests.values()):
            return Fetched(None, False)
        # What says which versions are wanted, and from where: cargo heeds a configuration of its own in the case, too.
        named: dict[str, keys.JSON] = {path: _sha256(source / path) for path in sorted({*manifests, *_configurations(source)})}
        key = keys.key({"kind": "crates", "recipe": RECIPE, "manifests": named})
        workshop.warn("there is no rust/Cargo.lock, so its crates are those of the day on which they were fetched")
    else:
        locked = _load(lock)
        packages = locked.get("package", [])
        _check_lock(manifests, {str(package.get("name")) for package in packages if isinstance(package, dict)}, workshop.case)
        if not any(isinstance(package, dict) and "source" in package for package in packages):
            return Fetched(None, True)
        key = keys.key({"kind": "crates", "recipe": RECIPE, "lock": _sha256(lock)})
    folder = workshop.download(key, f"the crates of {workshop.case}", lambda path: _fetch(source, path, lock.is_file(), workshop))
    return Fetched(folder, True)


def registries(environ: Mapping[str, str]) -> str:
    """The addresses of the user's registries that have names, as cargo's configuration. Nothing secret is in it."""
    named = _table(_user_config(environ)[1], "registries")
    lines = []
    for name, registry in sorted(named.items()):
        if isinstance(registry, dict) and isinstance(registry.get("index"), str):
            lines.append(f"[registries.{json.dumps(name)}]\nindex = {json.dumps(registry['index'])}\n")
    return "".join(lines)


# --- the step -----------------------------------------------------------------------------------------------------------


def _fetch(source: Path, target: Path, locked: bool, workshop: Workshop) -> None:
    if workshop.offline:
        raise InfraError(
            "its crates have not been fetched, and fetching is switched off",
            where=workshop.case,
            hint="run it once without --offline",
        )
    workshop.say("fetching crates")
    home = workshop.scratch / "cargo"
    home.mkdir()
    (target / "vendor").mkdir()
    step = Step(
        image=workshop.image("rust"),
        argv=("sh", "-euc", _PROGRAM),
        mounts=(Mount(source, SRC, True), Mount(target, CRATES, False), *_user_mounts(home, workshop.environ)),
        env={
            **_user_environment(workshop.environ),
            "CARGO_HOME": _HOME,
            "CARGO_BUILD_RUSTC_WRAPPER": "",
            "LOCKED": "--locked" if locked else "",
        },
        workdir=SRC,
        network=True,
        timeout=TIMEOUT,
        name="cargo vendor",
        log=workshop.log,
    )
    result = workshop.engine().run(step)
    if result.exit_status != 0 or result.timed_out:
        raise _failure(step, result, workshop.case)


def _user_mounts(home: Path, environ: Mapping[str, str]) -> Iterator[Mount]:
    """The user's configuration, where cargo looks for it, and what it names of this machine."""
    yield Mount(home, _HOME, False)
    config, table = _user_config(environ)
    folder = _cargo_home(environ)
    credentials = next((folder / name for name in ("credentials.toml", "credentials") if (folder / name).is_file()), None)
    for path, name in ((config, "config.toml"), (credentials, "credentials.toml")):
        if path is not None:
            (home / name).touch()
            yield Mount(path.resolve(), f"{_HOME}/{name}", True)
    named = {_table(table, "http").get("cainfo")}
    for replacement in _table(table, "source").values():
        if isinstance(replacement, dict):
            named |= {replacement.get("directory"), replacement.get("local-registry")}
    for path in sorted({Path(name) for name in named if isinstance(name, str) and name.startswith("/")}):
        if path.exists():
            yield Mount(path, str(path), True)
    if bundle := certificates(environ):
        # A copy: where qcase is in a container, the engine does not see what is in there.
        shutil.copyfile(bundle, home.with_name("certificates.pem"))
        yield Mount(home.with_name("certificates.pem"), _CERTIFICATES, True)


def _user_environment(environ: Mapping[str, str]) -> dict[str, str]:
    patterns = (*_VARIABLES, *_PROXIES)
    passed = {name: value for name, value in environ.items() if any(fnmatch.fnmatchcase(name, p) for p in patterns)}
    has_own = "cainfo" in _table(_user_config(environ)[1], "http")
    if certificates(environ) and not has_own:
        passed["CARGO_HTTP_CAINFO"] = _CERTIFICATES
    return passed


def certificates(environ: Mapping[str, str]) -> Path | None:
    """The certificates that this machine trusts, in one file: an organisation's own is often among them."""
    named = (environ.get("CARGO_HTTP_CAINFO"), environ.get("SSL_CERT_FILE"), *_BUNDLES)
    return next((Path(name).resolve() for name in named if name and Path(name).is_file()), None)


def _cargo_home(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("CARGO_HOME") or Path(environ.get("HOME") or "/nonexistent") / ".cargo")


def _user_config(environ: Mapping[str, str]) -> tuple[Path | None, dict[str, Any]]:
    """The user's cargo configuration: its file, if there is one, and what it says."""
    for name in ("config.toml", "config"):
        path = _cargo_home(environ) / name
        if path.is_file() and os.access(path, os.R_OK):
            return path, _load(path)
    return None, {}


def _failure(step: Step, result: containers.StepResult, case: str) -> BuildError | InfraError:
    """What to say of a fetch that failed: the lock does not fit, a registry has no such crate, or the way there is at fault."""
    said = result.output
    causes = re.findall(r"(?m)^error: (.*)|^Caused by:\n +(.*)", said)
    what = "".join(causes[-1]) if causes else containers.verdict_of(step, result)[0]
    if re.search(r"--locked was passed", said):
        return BuildError(
            "rust/Cargo.lock does not fit rust/Cargo.toml",
            where=case,
            hint="`cargo generate-lockfile` or `cargo update` in rust/ makes it fit; it belongs to the case's sources",
            log=said,
        )
    if re.search(r"no matching package|failed to select a version|checksum (?:for|of) |failed to parse manifest", said):
        return BuildError(f"its crates cannot be had: {what}", where=case, log=said)
    return InfraError(
        f"its crates could not be fetched: {what}",
        where=case,
        hint="is there a network, also inside a container? A mirror, and its token, are those of your own cargo configuration",
    )


# --- manifests and locks ------------------------------------------------------------------------------------------------


def _manifests(source: Path) -> dict[str, dict[str, Any]]:
    """All `Cargo.toml` of a case, by their paths. One that cannot be read is for cargo to complain about."""
    found = {}
    # (Path.rglob before Python 3.11.4 fails at a link whose target is too long for a name.)
    for path in sorted(Path(folder, "Cargo.toml") for folder, _, files in os.walk(source) if "Cargo.toml" in files):
        if path.is_file() and not path.is_symlink():
            found[str(path.relative_to(source))] = _load(path)
    return found


def _configurations(source: Path) -> set[str]:
    """The case's own configurations of cargo that its `rust/` is under, by their paths."""
    named = {f"{folder}.cargo/{name}" for folder in ("", "rust/") for name in ("config.toml", "config")}
    return {path for path in named if (source / path).is_file()}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _load(path: Path) -> dict[str, Any]:
    import tomli

    try:
        return tomli.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomli.TOMLDecodeError):
        return {}


def _table(table: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = table.get(name)
    return found if isinstance(found, dict) else {}


def _outside(manifest: Mapping[str, Any]) -> set[str]:
    """The names of the crates that a manifest asks for and that are not in the case's own folders."""
    places = [manifest, _table(manifest, "workspace"), *_table(manifest, "target").values()]
    found = set()
    for place in places:
        if not isinstance(place, dict):
            continue
        for kind in ("dependencies", "dev-dependencies", "build-dependencies"):
            for name, asked in _table(place, kind).items():
                if isinstance(asked, str):
                    found.add(name)
                elif isinstance(asked, dict) and "path" not in asked and not asked.get("workspace"):
                    found.add(str(asked.get("package", name)))
    return found


def _check_lock(manifests: Mapping[str, Mapping[str, Any]], locked: set[str], case: str) -> None:
    """A crate of the root manifest that the lock does not know at all is named; all else that does not fit cargo finds."""
    missing = sorted(_outside({**manifests.get("rust/Cargo.toml", {}), "workspace": {}}) - locked)
    if missing:
        raise BuildError(
            f"rust/Cargo.toml asks for {', '.join(missing)}, which rust/Cargo.lock does not have",
            where=case,
            hint="`cargo generate-lockfile` in rust/ writes it; it belongs to the case's sources",
        )
