"""Crates of a Rust case: qcase fetches them itself, and passes them to a build that has no network.

    rust/Cargo.lock ─► crate cache ─(not there)─► registry, git ─► crate cache ─► build step: unpacked, in place of every source

No program of the case runs for it, and no program has a network and the case's files at once. qcase reads the lock file and
fetches each `.crate`, which must have the digest in the lock file, and each commit of git (see `qcase.crates`). The user's own
cargo configuration names the registries (see `qcase.crates.registries`). The case's own configuration, `[source]`, `[registries]`
and `[patch]`, is read as data. The build step unpacks the crates, and cargo gets them from this folder:

    /qcase/crates/              read-only
      list                        source, folder, digest: one crate a line
      sources.toml                cargo's configuration: the replacement of each source
      <n>/<name>-<version>.crate  crates of the source n, as the registry served them
      <n>.tar                     crates of a commit of git
      Cargo.lock                  where the case has none

Without a `Cargo.lock`, cargo resolves the versions of the day. That step has a network, and of the case only the part of the
manifests that `qcase.crates.manifests.for_resolving` keeps. qcase warns about it.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qcase.containers.step import Mount, Step, StepResult, verdict_of
from qcase.crates import manifests, pool, registries
from qcase.crates.manifests import Table, table
from qcase.crates.pool import Crate, Source
from qcase.crates.registries import Brought, Client, Directory, Index, LocalRegistry, Place, User
from qcase.errors import BuildError, InfraError
from qcase.guests.packages.downloads import Downloads
from qcase.host.files import replacing
from qcase.host.proxies import proxies_of
from qcase.host.trees import Tree
from qcase.pipelines import cargo_tree
from qcase.pipelines.cargo_tree import LOCK, MANIFEST
from qcase.pipelines.pipeline import BUILD, SRC, BuildContext, read_plain
from qcase.pipelines.rust_git import Repositories, index_config
from qcase.store import keys

CRATES_RECIPE = 3
CRATES = "/qcase/crates"
PLACE = f"{BUILD}/crates"
TIMEOUT = 1800.0  # seconds
AT_ONCE = 8  # downloads


_HOME = "/qcase/cargo"
_CERTIFICATES = "/qcase/certificates.pem"
_VARIABLES = ("CARGO_REGISTRY_*", "CARGO_REGISTRIES_*", "CARGO_HTTP_*", "CARGO_NET_*")

# Each crate is unpacked in a folder of its own, so that no crate can write files into another.
UNPACK = f"""\
unpack_crates() {{
    mkdir {PLACE} {PLACE}/new
    while read -r source folder digest; do
        stage "unpacking $folder"
        mkdir -p {PLACE}/$source
        case $digest in
        git) mkdir {PLACE}/new/git && tar -xof {CRATES}/$folder -C {PLACE}/new/git && mv {PLACE}/new/git/* {PLACE}/$source/ ;;
        *)
            mkdir {PLACE}/new/$folder
            tar -xzof {CRATES}/$source/$folder.crate -C {PLACE}/new/$folder
            crate={PLACE}/new/$folder/$folder
            [ -d $crate ] && [ ! -L $crate ] || {{ echo "there is no folder $folder in the crate"; exit 1; }}
            rm -rf $crate/.cargo-checksum.json
            printf '{{"files":{{}},"package":"%s"}}' $digest >$crate/.cargo-checksum.json
            mv $crate {PLACE}/$source/
            ;;
        esac
    done <{CRATES}/list
    rm -rf {PLACE}/new
}}
"""

_RESOLVE = f"""\
exec 2>&1
umask 022
cp -R {SRC} /tmp/src
cd "/tmp/src/$FOLDER"
cargo generate-lockfile
cp "/tmp/src/$ROOT/Cargo.lock" {CRATES}/
"""


@dataclass(frozen=True)
class Fetched:
    """Crates of a case. `folder` is mounted at `CRATES`; None if the case uses no crates.

    `locked`: the case or `folder` has a lock file.

    `mounts`: folders of the user's that stand in for a source.
    """

    folder: Path | None
    locked: bool
    mounts: tuple[Mount, ...] = ()


def fetch(source: Tree, context: BuildContext) -> Fetched:
    """Fetch the crates that `source/rust` uses, from the cache or from their registries.

    `source` is a copy that no other process writes to. Raises `BuildError` for an invalid lock file and for crates that differ
    from it, `InfraError` if crates cannot be fetched.
    """
    user = User(context.environ)
    here = source / context.place if context.place else source
    configuration = cargo_tree.case_configuration(here, context.case)
    root = cargo_tree.root(source, context)
    shared = not f"{root}/".startswith(f"{context.place}/" if context.place else "")
    if shared:
        cargo_tree.narrow(source, root, context)
    written = cargo_tree.read_file(source, cargo_tree.join(root, "Cargo.lock"), context.case)
    data = written if written is not None else _resolved(source, root, configuration, user, context)
    if data is None:
        return Fetched(None, False)
    local = set(cargo_tree.package_names(source, context)) if shared else None
    lock = pool.read_lock(data, cargo_tree.join(root, "Cargo.lock") if shared else LOCK, context.case, local)
    if written is not None:
        _check_lock(cargo_tree.manifest(here, context.case), lock.names, context.case)
    folder = context.scratch / "crates"
    folder.mkdir()
    made = _Shelf(folder, context, user, configuration)
    with Downloads(context.pool.root, context.pool.readonly).in_use():
        made.fill(lock.crates)
    if written is None:
        (folder / "Cargo.lock").write_bytes(data)
    elif not lock.crates:
        return Fetched(None, not shared)
    # cargo drops entries of other members from a workspace's lock file, so `--locked` would fail.
    return Fetched(folder, not shared, tuple(made.mounts))


def registries_of(environ: Mapping[str, str]) -> str:
    """Return the addresses of the user's named registries as a cargo configuration. It contains no secrets."""
    named = {name: {"index": index} for name, index in sorted(User(environ).registries.items())}
    return manifests.render({"registries": named}).decode() if named else ""


# --- the folder -----------------------------------------------------------------------------------------------------------


@dataclass
class _Shelf:
    """Folder of crates for a build, while qcase fills it."""

    folder: Path
    context: BuildContext
    user: User
    configuration: Table
    mounts: list[Mount] = field(default_factory=list)
    _said: bool = False

    def fill(self, wanted: Sequence[Crate]) -> None:
        sources = {source: number for number, source in enumerate(sorted({crate.source for crate in wanted}))}
        rows: list[str] = []
        replaced: dict[str, Table] = {}
        jobs: list[tuple[Crate, Place]] = []
        for source, number in sources.items():
            mine = [crate for crate in wanted if crate.source == source]
            place = Brought() if source.kind == "git" else self._place(source)
            if source.kind == "git":
                self._git(source, number, mine)
                rows.append(f"{number} {number}.tar git")
                directory = f"{PLACE}/{number}/vendor"
            elif isinstance(place, Brought):
                continue
            elif isinstance(place, Directory):
                directory = f"/qcase/vendor/{number}"
                self.mounts.append(Mount(place.path.resolve(), directory, True))
            else:
                (self.folder / str(number)).mkdir()
                rows += [f"{number} {crate.folder} {crate.checksum}" for crate in mine]
                jobs += [(crate, place) for crate in mine]
                directory = f"{PLACE}/{number}"
            replaced |= _replacement(source, number, directory, self.configuration)
        self._provide(jobs, sources)
        (self.folder / "list").write_text("".join(f"{row}\n" for row in rows), encoding="ascii")
        (self.folder / "sources.toml").write_bytes(manifests.render({"source": replaced}))

    def _place(self, source: Source) -> Place:
        try:
            return self.user.resolve(source, self.configuration)
        except BuildError as error:
            raise BuildError(error.what, where=self.context.case, hint=error.hint) from None

    def missing(self) -> None:
        """Announce that crates are being fetched. Raises `InfraError` if the run is offline."""
        if self.context.offline:
            raise InfraError(
                "its crates have not been fetched, and fetching is switched off",
                where=self.context.case,
                hint="run it once without --offline",
            )
        if not self._said:
            self._said = True
            self.context.services.say("fetching crates")

    def _git(self, source: Source, number: int, wanted: Sequence[Crate]) -> None:
        scratch = self.context.scratch / "commits"
        scratch.mkdir(exist_ok=True)
        found = Repositories(self.context.pool, self.user, scratch, self.missing)
        try:
            found.tar(source, wanted, self.folder / f"{number}.tar", self.context.case)
        except (BuildError, InfraError) as error:
            raise type(error)(error.what, where=error.where or self.context.case, hint=error.hint) from None

    def _provide(self, jobs: Sequence[tuple[Crate, Place]], sources: Mapping[Source, int]) -> None:
        clients: dict[str, Client] = {}
        read = index_config(self.user, self.context.scratch)
        for _, place in jobs:
            if isinstance(place, Index) and place.url not in clients:
                clients[place.url] = Client(place.url, self.user, read)
        pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix=f"crates of {self.context.case}")
        try:
            running = [
                pool.submit(self._one, crate, place, clients, self.folder / str(sources[crate.source])) for crate, place in jobs
            ]
            for one in running:
                one.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _one(self, crate: Crate, place: Place, clients: Mapping[str, Client], folder: Path) -> None:
        """Put one crate into its folder, from the cache or from its registry."""
        target = folder / f"{crate.folder}.crate"
        blob = pool.crate_blob(crate)
        if self.context.pool.copy(blob, target, pool.sha256_of):
            return
        with replacing(target) as part:
            self._fetch(crate, place, clients, part)
            self.context.pool.take(blob, part)

    def _fetch(self, crate: Crate, place: Place, clients: Mapping[str, Client], part: Path) -> None:
        """Write one crate from its registry to the file `part`, and check it against the lock."""
        if isinstance(place, LocalRegistry):
            local = place.path / f"{crate.folder}.crate"
            if not local.is_file():
                raise BuildError(f"its crates cannot be had: {place.path} has no {crate.title}", where=self.context.case)
            shutil.copyfile(local, part)
        else:
            assert isinstance(place, Index)
            self.missing()
            try:
                clients[place.url].download(crate, part)
            except BuildError as error:
                raise BuildError(error.what, where=self.context.case, hint=error.hint) from None
        digest = pool.sha256_of(part)
        if digest != crate.checksum:
            where = place.path if isinstance(place, LocalRegistry) else place.url
            raise BuildError(
                f"its crates cannot be had: the checksum of {crate.title} from {where} is {digest}, {LOCK} says {crate.checksum}",
                where=self.context.case,
                hint=f"{LOCK} was edited, or the registry gives another file than it did",
            )


def _replacement(source: Source, number: int, directory: str, case: Table) -> dict[str, Table]:
    """Return cargo's configuration that replaces a source by a folder. The source keeps the case's name for it, if any."""
    ours = f"qcase-{number}"
    made: dict[str, Table] = {ours: {"directory": directory}}
    if source.kind == "git":
        key, _, value = source.reference.partition("=")
        made[f"qcase-for-{number}"] = {"git": source.url, **({key: value} if key else {}), "replace-with": ours}
    elif registries.normal(source.index) == "crates-io":
        made["crates-io"] = {"replace-with": ours}
    else:
        named = (
            name
            for name, entry in table(case, "source").items()
            if isinstance(entry, dict) and registries.normal(str(entry.get("registry", ""))) == registries.normal(source.index)
        )
        made[next(named, f"qcase-for-{number}")] = {"registry": source.index, "replace-with": ours}
    return made


# --- without a lock file --------------------------------------------------------------------------------------------------


def _resolved(source: Tree, root: str, configuration: Table, user: User, context: BuildContext) -> bytes | None:
    """Return the lock file that cargo generates today; None if the case needs no crates or vendors all of them."""
    kept = {path: manifests.for_resolving(found) for path, found in cargo_tree.manifests_of(source, context).items()}
    if not any(_outside(found) for found in kept.values()):
        return None
    crates_io = pool.parse_source(pool.CRATES_IO)
    if isinstance(user.resolve(crates_io, configuration), Brought):
        return None
    own = _for_resolving(configuration, user)
    key = keys.key(
        {
            "kind": "crates",
            "recipe": CRATES_RECIPE,
            "manifests": {path: _sha256(manifests.render(found)) for path, found in kept.items()},
            "configuration": _sha256(manifests.render(own)),
            "user": _sha256(json.dumps([user.registries, table(user.config, "source")], sort_keys=True).encode()),
            "toolchain": context.services.identity("rust"),  # its Rust decides how new a crate may be
        }
    )
    context.services.warn(f"there is no {LOCK}, so its crates are those of the day on which they were fetched")

    def resolve(target: Tree) -> None:
        _resolve(kept, own, root, target, user, context)

    folder = context.services.download(key, f"the crates of {context.case}", resolve)
    return read_plain(folder / "Cargo.lock", pool.LARGEST_LOCK).encode()


def _for_resolving(configuration: Table, user: User) -> Table:
    """Return the part of the case's configuration that affects resolution, without entries whose names the user's has too."""
    known = {**user.registries, **table(user.config, "source")}
    made: Table = {}
    for kind, kept in (("registries", ("index",)), ("source", ("registry", "replace-with"))):
        for name, entry in table(configuration, kind).items():
            if name not in known and isinstance(entry, dict):
                made.setdefault(kind, {})[name] = {key: entry[key] for key in kept if isinstance(entry.get(key), str)}
    if patch := table(configuration, "patch"):
        made["patch"] = patch
    return made


def _resolve(kept: Mapping[str, Table], own: Table, root: str, target: Tree, user: User, context: BuildContext) -> None:
    if context.offline:
        raise InfraError(
            "its crates have not been fetched, and fetching is switched off",
            where=context.case,
            hint="run it once without --offline",
        )
    context.services.say("resolving crates")
    home, project = context.scratch / "cargo", context.scratch / "manifests"
    home.mkdir()
    for path, manifest in kept.items():
        folder = (project / path).parent
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "Cargo.toml").write_bytes(manifests.render(manifest))
        (folder / manifests.STUB).touch()
    (project / cargo_tree.join(context.place, "rust/.cargo")).mkdir(exist_ok=True)
    (project / cargo_tree.join(context.place, "rust/.cargo/config.toml")).write_bytes(manifests.render(own))
    step = Step(
        image=context.services.image("rust"),
        argv=("sh", "-euc", _RESOLVE),
        mounts=(Mount(project, SRC, True), Mount(target, CRATES, False), *_user_mounts(home, user)),
        env={
            **_user_environment(user),
            "CARGO_HOME": _HOME,
            "CARGO_BUILD_RUSTC_WRAPPER": "",
            # The newest version that this toolchain can build: the toolchain may be years older than the crates.
            "CARGO_RESOLVER_INCOMPATIBLE_RUST_VERSIONS": "fallback",
            "FOLDER": cargo_tree.join(context.place, "rust"),
            "ROOT": root,
        },
        workdir=SRC,
        network=True,
        timeout=TIMEOUT,
        name="cargo generate-lockfile",
        log=context.log,
    )
    result = context.services.engine().run(step)
    if result.exit_status != 0 or result.timed_out:
        raise _failure(step, result, context.case)


def _user_mounts(home: Path, user: User) -> Iterator[Mount]:
    """Yield mounts of the user's cargo configuration and of the host paths that it names."""
    folder = registries.cargo_home(user.environ)
    for names in (("config.toml", "config"), ("credentials.toml", "credentials")):
        path = next((folder / name for name in names if (folder / name).is_file() and os.access(folder / name, os.R_OK)), None)
        if path is not None:
            (home / names[0]).touch()
            yield Mount(path.resolve(), f"{_HOME}/{names[0]}", True)
    named = {table(user.config, "http").get("cainfo")}
    for replacement in table(user.config, "source").values():
        if isinstance(replacement, dict):
            named |= {replacement.get("directory"), replacement.get("local-registry")}
    for path in sorted({Path(name) for name in named if isinstance(name, str) and name.startswith("/")}):
        if path.exists():
            yield Mount(path, str(path), True)
    if bundle := registries.certificates(user.environ):
        # A copy: if qcase runs in a container, the engine cannot see the container's files.
        shutil.copyfile(bundle, home.with_name("certificates.pem"))
        yield Mount(home.with_name("certificates.pem"), _CERTIFICATES, True)


def _user_environment(user: User) -> dict[str, str]:
    passed = {name: value for name, value in user.environ.items() if any(fnmatch.fnmatchcase(name, p) for p in _VARIABLES)}
    passed |= proxies_of(user.environ)
    if registries.certificates(user.environ) and "cainfo" not in table(user.config, "http"):
        passed["CARGO_HTTP_CAINFO"] = _CERTIFICATES
    return passed


def _failure(step: Step, result: StepResult, case: str) -> BuildError | InfraError:
    """Return the error for a failed resolution: `BuildError` for a crate that cannot be had, else `InfraError`."""
    said = result.output
    if fault := unresolved(said, case):
        return fault
    causes = re.findall(r"(?m)^error: (.*)|^Caused by:\n +(.*)", said)
    what = "".join(causes[-1]) if causes else verdict_of(step, result)[0]
    return InfraError(
        f"its crates could not be fetched: {what}",
        where=case,
        hint="is there a network, also inside a container? A mirror, and its token, are those of your own cargo configuration",
    )


def unresolved(said: str, case: str) -> BuildError | None:
    """Return a `BuildError` if cargo's output says that manifests and lock file do not match; else None."""
    if re.search(r"--locked was passed|cannot update the lock file", said):
        return BuildError(
            f"{LOCK} does not fit {MANIFEST}",
            where=case,
            hint="`cargo generate-lockfile` or `cargo update` in rust/ makes it fit; it belongs to the case's sources",
            log=said,
        )
    if re.search(r"no matching package|failed to select a version|checksum (?:for|of) |failed to parse manifest", said):
        causes = re.findall(r"(?m)^error: (.*)|^Caused by:\n +(.*)", said)
        what = "".join(causes[-1]) if causes else "cargo does not find them"
        if (name := re.search(r"searched package name: `([^`]+)`", said)) and name[1] not in what:
            what += f": {name[1]}"
        if by := re.search(r"required by package `(\S+)", said):
            what += f", for {by[1]}"
        hint = f"`cargo generate-lockfile` in rust/ writes {LOCK} anew, with all that its members ask for"
        return BuildError(
            f"its crates cannot be had: {what}", where=case, hint=hint if "directory source" in said else "", log=said
        )
    return None


# --- manifests and locks ------------------------------------------------------------------------------------------------


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _outside(manifest: Mapping[str, Any]) -> set[str]:
    """Return the names of the crates that a manifest depends on and that are not in the case's own folders."""
    found = set()
    for place in (manifest, table(manifest, "workspace")):
        for _, _, asked in manifests.sections(place):
            for name, one in asked.items():
                if isinstance(one, str):
                    found.add(name)
                elif isinstance(one, dict) and "path" not in one and not one.get("workspace"):
                    found.add(str(one.get("package", name)))
    return found


def _check_lock(manifest: Table, locked: frozenset[str], case: str) -> None:
    """Raise `BuildError` if the lock file lacks a crate of the root manifest. cargo reports every other mismatch."""
    missing = sorted(_outside({**manifest, "workspace": {}}) - locked)
    if missing:
        raise BuildError(
            f"{MANIFEST} asks for {', '.join(missing)}, which {LOCK} does not have",
            where=case,
            hint="`cargo generate-lockfile` in rust/ writes it; it belongs to the case's sources",
        )
