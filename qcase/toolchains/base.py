"""The base image: Debian by mmdebstrap."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from qcase import parsing
from qcase.config.image_lock import Lock, packages_digest
from qcase.containers.connection import hint_for
from qcase.containers.container import LABELS
from qcase.containers.engine import Engine
from qcase.disk.ext4 import Ext4Image, Kind
from qcase.errors import InfraError
from qcase.events import Emit
from qcase.guests import alpine, debian_archive
from qcase.guests.guest import alpine_guest
from qcase.host import process
from qcase.host.proxies import PROXIES
from qcase.store.policy import Policy
from qcase.store.store import Store
from qcase.toolchains import oci
from qcase.toolchains.build_log import SAID, Heartbeat, say
from qcase.toolchains.foreign import foreign
from qcase.toolchains.recipes import GUEST_ARCH, BaseDefinition, base_definition, base_digest, sha256
from qcase.toolchains.records import alone, scratch_folder, shipped_lock

BASE_TIMEOUT = 1800.0


def has_base(engine: Engine) -> bool:
    """Tell whether the engine has a base image of the current definition."""
    return bool(_newest_base(engine, base_definition()))


def reached(snapshot: str, suite: str, emit: Emit | None) -> bool:
    """Tell whether a snapshot can be reached. Emits a message where it cannot."""
    base = debian_archive.snapshots(os.environ)
    if not base or not snapshot or not suite:
        return False
    trouble = debian_archive.snapshot_trouble(base, snapshot, suite)
    if trouble:
        say(emit, f"the pinned snapshot {base}/debian/{snapshot} cannot be reached ({trouble})")
    return not trouble


SNAPSHOT_LABEL = "qcase.snapshot"  # on a base, and on every image built on it


def build_hint(text: str, name: str = "c") -> str:
    """Return the hint for a failed image build, chosen by its output."""
    if re.search(
        r"(?i)temporary failure resolving|could ?n[o']t resolve|could not connect|unable to connect|network is unreach", text
    ):
        return "the build needs the Debian mirror that the base names: is there a network, also from inside a container?"
    if re.search(r"404 +Not Found", text):
        return f"the mirror has moved on: build it anew, base and all (`qcase images build {name} --fresh`)"
    if "unable to pick chroot mode" in text:
        return (
            "without root mmdebstrap needs user namespaces, newuidmap (`apt-get install uidmap`) and ids of your own in "
            "/etc/subuid and /etc/subgid; or let root run `qcase images build c` once, for all who use this engine"
        )
    return hint_for(text)


def with_mirror(image_id: str, engine: Engine, sources: Sequence[str], mirrors: debian_archive.Mirrors) -> str:
    """Add apt's sources to a sealed image, for images built on it. A sealed image does not record its mirror or build host.

    Any other image stays as it is. The added files are left out when the new image is sealed in turn.
    """
    with engine.faults("looking at the image to build upon"):
        if oci.sealed_identity(engine.api.inspect_image(image_id)) is None:  # type: ignore[no-untyped-call]
            return image_id
    files = {"etc/apt/sources.list": "".join(f"{line}\n" for line in sources).encode()}
    for source in filter(None, (mirrors.main, mirrors.security)):
        if _own_keyring(source) and Path(source.signed_by).is_file():
            files[source.signed_by.lstrip("/")] = Path(source.signed_by).read_bytes()
    dockerfile = f"FROM {image_id}\nCOPY root /\n".encode()
    content = {"Dockerfile": dockerfile, **{f"root/{path}": content for path, content in files.items()}}
    parts = {path: hashlib.sha256(one).hexdigest() for path, one in content.items()}
    tag = f"qcase/mirrored:{sha256(parts)[:12]}"
    if engine.image_exists(tag):
        return tag
    with engine.faults("naming a mirror to the image to build upon"), _packed(content) as context:
        messages = engine.api.build(
            fileobj=context, custom_context=True, tag=tag, labels=dict(LABELS), rm=True, forcerm=True, decode=True
        )
        errors = [str(message["error"]) for message in messages if "error" in message]
    if errors:
        raise InfraError(f"no mirror could be named to it: {errors[0].strip()}", where=image_id, hint=build_hint(errors[0]))
    return tag


@contextmanager
def _packed(content: Mapping[str, bytes]) -> Iterator[IO[bytes]]:
    import io
    import tarfile

    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            for path, one in content.items():
                member = tarfile.TarInfo(path)
                member.mode, member.size = 0o644, len(one)
                tar.addfile(member, io.BytesIO(one))
        file.seek(0)
        yield file


def guest_base(engine: Engine, cache: Path, emit: Emit | None, definition: BaseDefinition) -> str:
    """Return the root filesystem of a built-in guest as an image, without files that only its kernel needs.

    Import it if it is missing.
    """
    name = f"qcase/base:{alpine.alpine_name(GUEST_ARCH)}-{base_digest(definition)[:12]}"
    if engine.image_exists(name):
        return name
    with alone(cache, "base", emit):
        if engine.image_exists(name):
            return name
        with Store(cache, writes=Policy(False, False)).leases.guests_in_use(), scratch_folder(cache) as scratch:
            guest = alpine_guest(GUEST_ARCH, cache, emit=emit or (lambda _: None))
            say(emit, f"importing the guest {guest.name} as a base image (once)")
            tarball = scratch / "base.tar"
            _archive(guest.rootfs, tarball)
            repository, _, tag = name.partition(":")
            _import(engine, tarball, repository, tag, ["LABEL qcase=1", 'CMD ["/bin/sh"]'])
    return name


_KERNEL_ONLY = ("/boot/", "/lib/modules/", "/lost+found/")


def _archive(rootfs: Path, tarball: Path) -> None:
    """Write a root filesystem as a tar file of folders, files and links. The same input gives the same bytes."""
    import io
    import tarfile

    with Ext4Image.open(rootfs) as image, tarfile.open(tarball, "w") as tar:
        for path, node in image.walk("/"):
            if path == "/" or path.startswith(_KERNEL_ONLY):
                continue
            member = tarfile.TarInfo(path.lstrip("/"))
            member.mode, member.uid, member.gid, member.mtime = node.mode, node.uid, node.gid, node.mtime
            if node.kind is Kind.DIR:
                member.type = tarfile.DIRTYPE
                tar.addfile(member)
            elif node.kind is Kind.SYMLINK:
                member.type, member.linkname = tarfile.SYMTYPE, image.readlink(node)
                tar.addfile(member)
            elif node.kind is Kind.FILE:
                content = io.BytesIO()
                image.copy_out(node, content)
                member.size = content.tell()
                content.seek(0)
                tar.addfile(member, content)


def _import(engine: Engine, tarball: Path, repository: str, tag: str, changes: Sequence[str]) -> None:
    with engine.faults("importing the base image"):
        answer = engine.api.import_image_from_file(str(tarball), repository=repository, tag=tag, changes=list(changes))
    errors = [line["error"] for line in map(parsing.from_json, str(answer).splitlines()) if "error" in line]
    if errors:
        raise InfraError(str(errors[0]), where="importing the base image", hint=hint_for(str(errors[0])))


def base(engine: Engine, cache: Path, emit: Emit | None = None, lock: Lock | None = None) -> str:
    """Return the name of the newest base image, of any snapshot. Fetch or make one if the engine has none."""
    definition = base_definition()
    if name := _newest_base(engine, definition):
        return name
    snapshot = (lock or shipped_lock()).snapshot
    return base_from(definition, snapshot if reached(snapshot, definition.suite, emit) else "", engine, cache, emit)


def base_from(
    definition: BaseDefinition, snapshot: str, engine: Engine, cache: Path, emit: Emit | None, *, fresh: bool = False
) -> str:
    """Return the base image of a snapshot, or of today's mirror where `snapshot` is empty. Fetch or make it if it is missing."""
    if not fresh and (name := _newest_base(engine, definition, snapshot)):
        return name
    with alone(cache, "base", emit):
        if not fresh and (name := _newest_base(engine, definition, snapshot)):
            return name
        if definition.registry and not snapshot:
            try:
                foreign(definition.registry, engine, cache, emit)
                return definition.registry
            except InfraError as error:
                say(emit, f"no base from a registry ({error.what.splitlines()[0]}); making it")
        return make_base(engine, cache, emit, definition, snapshot)


def _newest_base(engine: Engine, definition: BaseDefinition, snapshot: str | None = None) -> str:
    """Return the name of the newest base of a definition, and of a snapshot unless that is None."""
    with engine.faults("looking for the base image"):
        images = engine.api.images(filters={"label": f"qcase.base={base_digest(definition)[:12]}"})
    for image in sorted(images, key=lambda image: int(image["Created"]), reverse=True):
        if snapshot is not None and (image["Labels"] or {}).get(SNAPSHOT_LABEL, "") != snapshot:
            continue
        for tag in image["RepoTags"] or ():
            if str(tag).startswith("qcase/base:"):
                return str(tag)
    return ""


def make_base(engine: Engine, cache: Path, emit: Emit | None, definition: BaseDefinition, snapshot: str = "") -> str:
    """Make a base with mmdebstrap and import it. Returns its name, `qcase/base:<suite>-<digest of its packages>`.

    `snapshot`: the time of the archive that it is made from; empty for today's mirror.
    """
    if snapshot:
        mirrors = debian_archive.snapshot_mirrors(debian_archive.snapshots(os.environ), snapshot)
    else:
        mirrors = debian_archive.host_mirrors(debian_archive.APT, os.environ)
    origin = mirrors.main.uri if mirrors.main else "mmdebstrap's own mirror"
    say(emit, f"making the base image, Debian {definition.suite}, from {origin} (once)")
    with scratch_folder(cache) as scratch, Heartbeat("base image", emit):
        tarball = scratch / "base.tar"
        # A host that is not Debian may keep Debian's keys elsewhere.
        argv = mmdebstrap_arguments(definition, mirrors, tarball, os.environ.get("QCASE_DEBIAN_KEYRING", ""))
        # As root, mmdebstrap works in our scratch folder, which is removed later. An ordinary user's is entered by mapped users,
        # who cannot reach a cache folder below a closed home.
        folder = {"TMPDIR": str(scratch)} if os.geteuid() == 0 else {}
        install = "install it (`apt-get install mmdebstrap`)"
        done = process.run(argv, env=folder, allow=PROXIES, timeout=BASE_TIMEOUT, check=False, hint=install)
        if done.returncode != 0:
            tail = "\n".join(done.output.splitlines()[-SAID:])
            hint = build_hint(done.output) or ("is the package debian-archive-keyring new enough?" if "NO_PUBKEY" in tail else "")
            raise InfraError(
                f"the base image could not be made (status {done.returncode})\n{tail}", where=shlex.join(argv), hint=hint
            )
        digest = packages_digest(packages_of_archive(tarball))
        tag = f"{definition.suite}-{digest[:12]}{f'-{snapshot}' if snapshot else ''}"
        # A new base of the same packages takes the name over; the old image stays for containers that still run it.
        label = f"LABEL qcase=1 qcase.base={base_digest(definition)[:12]} qcase.packages={digest}"
        label += f" {SNAPSHOT_LABEL}={snapshot}" if snapshot else ""
        _import(engine, tarball, "qcase/base", tag, [label, 'CMD ["/bin/bash"]'])
    return f"qcase/base:{tag}"


def mmdebstrap_arguments(
    definition: BaseDefinition, mirrors: debian_archive.Mirrors, tarball: Path, keyring: str = ""
) -> list[str]:
    """Build mmdebstrap's command line. A host keyring that Debian does not ship itself is copied into the base too."""
    argv = ["mmdebstrap", f"--variant={definition.variant}", "--format=tar", *([f"--keyring={keyring}"] if keyring else [])]
    if mirrors.main is not None and mirrors.main.expired:  # snapshots are slower than mirrors, and busy at times
        argv.append('--aptopt=Acquire::Retries "5"')
    for source in (mirrors.main, mirrors.security):
        if source is not None and _own_keyring(source):
            folder = str(Path(source.signed_by).parent)
            hooks = [
                f'--setup-hook=mkdir -p "$1"{shlex.quote(folder)}',
                f"--setup-hook=copy-in {shlex.quote(source.signed_by)} {shlex.quote(folder)}",
            ]
            argv += [hook for hook in hooks if hook not in argv]
    # Without a main mirror mmdebstrap takes its own, with updates and security.
    return [*argv, definition.suite, str(tarball), *sources_list(definition.suite, mirrors)]


def sources_list(suite: str, mirrors: debian_archive.Mirrors) -> list[str]:
    """Return the lines of apt's `sources.list`; none where the main mirror is not known."""
    lines = []
    for source, name in [(mirrors.main, suite), (mirrors.main, f"{suite}-updates"), (mirrors.security, f"{suite}-security")]:
        if source is None:
            continue
        options = [f"signed-by={source.signed_by}"] if _own_keyring(source) else []
        options += ["check-valid-until=no"] if source.expired else []
        lines.append(" ".join(["deb", *([f"[{' '.join(options)}]"] if options else []), source.uri, name, "main"]))
    return lines if mirrors.main else []


def own_sources(suite: str) -> list[str]:
    """Return the lines of `sources.list` that mmdebstrap writes by default."""
    security = debian_archive.Source("http://deb.debian.org/debian-security", "", ("main",))
    return sources_list(
        suite, debian_archive.Mirrors(debian_archive.Source("http://deb.debian.org/debian", "", ("main",)), security)
    )


def mirrors_of(snapshot: str) -> debian_archive.Mirrors:
    """Return the package mirrors: those of a snapshot, or this machine's own where `snapshot` is empty."""
    if snapshot:
        return debian_archive.snapshot_mirrors(debian_archive.snapshots(os.environ), snapshot)
    return debian_archive.host_mirrors(debian_archive.APT, os.environ)


def _own_keyring(source: debian_archive.Source) -> bool:
    """Tell whether a mirror is signed by a key that Debian does not ship."""
    return bool(source.signed_by) and "debian-archive" not in source.signed_by


def packages_of_archive(tarball: Path) -> list[str]:
    """List the packages of a root file system in a tar file, as `name architecture version`."""
    import tarfile

    with tarfile.open(tarball, "r|") as tar:
        for member in tar:
            if member.name.removeprefix("./") == "var/lib/dpkg/status":
                status = tar.extractfile(member)
                assert status is not None
                return sorted(
                    f"{stanza['package']} {stanza['architecture']} {stanza['version']}"
                    for stanza in debian_archive.stanzas(status.read().decode())
                    if stanza.get("status", "").endswith(" installed")
                )
    raise InfraError("no list of packages in it", where=str(tarball))
