"""Toolchain images: made from a recipe once, known by what is installed in them.

A recipe is a folder with a `Containerfile` whose `ARG BASE` names the base image. The recipes are `images/<name>/` in a
checkout, and `qcase/_images/<name>/` in an installed qcase; `base.toml` beside them says what the base is, and one inside a
recipe's folder says it for that recipe.

    <cache>/images/<name>.json     the image that this recipe gave: {format, recipe, image, identity}
    <cache>/images/<image>.json    what is in an image: {format, identity, packages}
    <cache>/images/<name>.log      what its last build said
    <cache>/images/<name>.lock     held by the one who builds it; <name>.owner says who
    <cache>/images/base.lock       likewise for the base

The *identity* is a sha256 over the recipe (paths, executable bits, bytes) and the list of the installed packages with their
versions, which is read back from the image: `/opt/qcase/packages.txt` where the recipe wrote one, else what dpkg says. The
image's id is no part of it, for it differs from build to build, nor is the mirror, nor a proxy. It enters every key, so it has
to be known without an engine: `known_identity`.

The base is Debian, from a registry by digest where `base.toml` names one that answers, else made by mmdebstrap from the mirror
that the host's own apt uses, and imported. Its `sources.list` names that mirror, so recipes need not. A recipe can start from a
built-in guest's root filesystem instead (`guest = "alpine"`), or from another recipe's image (`image = "c"`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import tempfile
import threading
import time
import urllib.parse
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING

from qcase import guests, locks, process
from qcase.containers import LABELS, PROXIES, Engine, Step, hint_for
from qcase.content import write_aside
from qcase.errors import ConfigError, InfraError, Problem, UsageError
from qcase.events import Emit, Event, Progress
from qcase.ext4 import Ext4Image, Kind
from qcase.model import Arch
from qcase.store import Policy, Store

if TYPE_CHECKING:
    import tarfile

FORMAT = 1  # of the records, and part of every identity

HEARTBEAT = 15.0  # seconds of silence after which a build says that it still lives
BASE_TIMEOUT = 1800.0
SAID = 15  # lines of a failed build that its error shows


@dataclass(frozen=True)
class Image:
    """A toolchain image. `id` is the engine's (`sha256:…`), `packages` one line each: name, architecture, version."""

    name: str
    id: str
    identity: str
    packages: tuple[str, ...] = ()


def recipes_dir() -> Path:
    """The folder of the recipes: in a checkout, or inside the installed package."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "_images", package.parent / "images"):
        if (candidate / "base.toml").is_file():
            return candidate
    raise InfraError(
        "the recipes of the toolchain images are missing", where=str(package / "_images"), hint="install qcase again"
    )


def names(recipes: Path | None = None) -> list[str]:
    """The images that there are recipes for."""
    return sorted(path.parent.name for path in (recipes or recipes_dir()).glob("*/Containerfile"))


def known_identity(name: str, cache: Path, recipes: Path | None = None) -> str | None:
    """The identity of an image that was built from the recipe as it is now; None if none was. Asks no engine.

    Should the image be gone from the engine, `ensure` builds it again, and its identity may be another one then.
    """
    record = _read_record(cache, name)
    return record["identity"] if record and record.get("recipe") == recipe_digest(name, recipes) else None


def find(name: str, engine: Engine, cache: Path, recipes: Path | None = None) -> Image | None:
    """The image of this name if it was built from the recipe as it is now. Nothing is built."""
    return _find(name, engine, cache, recipes)


def has_base(engine: Engine) -> bool:
    """Whether the engine has a base of the definition as it is now."""
    return bool(_newest_base(engine))


def ensure(name: str, engine: Engine, cache: Path, emit: Emit | None = None, recipes: Path | None = None) -> Image:
    """The image of this name, built now if it is not there. Others who want it meanwhile wait, and say for whom."""
    if found := _find(name, engine, cache, recipes):
        return found
    with _alone(cache, name, emit):
        return _find(name, engine, cache, recipes) or _build(name, engine, cache, emit, recipes, fresh=False)


def build(
    name: str, engine: Engine, cache: Path, emit: Emit | None = None, recipes: Path | None = None, *, fresh: bool = False
) -> Image:
    """Build an image, with the layers that the engine remembers; all of it anew, the base too, where `fresh`."""
    with _alone(cache, name, emit):
        return _build(name, engine, cache, emit, recipes, fresh=fresh)


def identity(recipe: str, packages: Sequence[str]) -> str:
    """The identity of an image, from its recipe's digest and the lines of its package list."""
    return _sha256({"format": FORMAT, "recipe": recipe, "packages": packages_digest(packages)})


def packages_digest(packages: Sequence[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in sorted(packages)).encode()).hexdigest()


def recipe_digest(name: str, recipes: Path | None = None) -> str:
    """The digest of a recipe: of its folder's paths, executable bits and bytes, and of what the base is."""
    folder = (recipes or recipes_dir()) / name
    if not (folder / "Containerfile").is_file():
        known = ", ".join(names(recipes)) or "none"
        raise UsageError(f"no such toolchain image: {name}", where=str(folder), hint=f"there are: {known}")
    entries = []
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        where = path.relative_to(folder).as_posix()
        if path.is_symlink():
            entries.append([where, "link", str(path.readlink())])
        elif path.is_file():
            kind = "program" if path.stat().st_mode & 0o100 else "file"
            entries.append([where, kind, hashlib.sha256(path.read_bytes()).hexdigest()])
    return _sha256({"base": _base_digest(base_definition(folder)), "files": entries})


# --- the lock ------------------------------------------------------------------------------------------------------------

LOCK_FILE = "lock.toml"


@dataclass(frozen=True)
class Pin:
    """What the lock says of an image. `base` is for people: it is part of the recipe's digest."""

    name: str
    recipe: str
    base: str
    packages: tuple[str, ...]

    @property
    def identity(self) -> str:
        return identity(self.recipe, self.packages)


def pin(image: Image, recipes: Path | None = None) -> Pin:
    """What the lock is to say of an image that was built from the recipe as it is now."""
    base = str(base_definition((recipes or recipes_dir()) / image.name))
    return Pin(image.name, recipe_digest(image.name, recipes), base, tuple(sorted(image.packages)))


def read_lock(recipes: Path | None = None) -> dict[str, Pin]:
    """The pinned images by name; none where there is no lock. Raises `ConfigError` for one that was not written by us."""
    import tomli

    path = (recipes or recipes_dir()) / LOCK_FILE

    def wrong(what: str) -> ConfigError:
        return ConfigError([Problem(what, str(path), hint="`qcase images lock` writes it")])

    try:
        table = tomli.loads(path.read_text(encoding="utf-8"))
        if table.pop("format", None) != FORMAT:
            raise wrong(f"is not of the format {FORMAT}")
        pins = {name: Pin(name, part["recipe"], part["base"], tuple(part["list"])) for name, part in table.items()}
        for name, part in table.items():
            if packages_digest(part["list"]) != part["packages"]:
                raise wrong(f"the digest of the packages of {name} is not that of their list")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise wrong(f"cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise wrong(f"is no lock: {error}") from None
    return pins


def write_lock(pins: Mapping[str, Pin], recipes: Path | None = None) -> Path:
    """Write the lock anew, whole or not at all. Returns where it is."""
    path = (recipes or recipes_dir()) / LOCK_FILE
    lines = ["# What each toolchain image is made of. Written by `qcase images lock`.", "", f"format = {FORMAT}"]
    for name in sorted(pins):
        one = pins[name]
        lines += ["", f"[{name}]", f'recipe = "{one.recipe}"', f"base = {json.dumps(one.base)}"]
        lines += [f'packages = "{packages_digest(one.packages)}"', "list = ["]
        lines += [f"    {json.dumps(line)}," for line in one.packages] + ["]"]
    try:
        write_aside(path, ("\n".join(lines) + "\n").encode())
    except OSError as error:
        raise InfraError(f"cannot be written: {error.strerror}", where=str(path)) from None
    return path


def differences(wanted: Pin, image: Image, recipe: str) -> list[str]:
    """How an image differs from what is pinned, package by package; empty where it does not."""
    lines = [] if recipe == wanted.recipe else [f"the recipe is another: {recipe[:12]}, pinned is {wanted.recipe[:12]}"]
    before, after = _by_name(wanted.packages), _by_name(image.packages)
    for name in sorted({*before, *after}):
        if name not in after:
            lines.append(f"{name} is missing, pinned is {before[name]}")
        elif name not in before:
            lines.append(f"{name} {after[name]} is not pinned")
        elif before[name] != after[name]:
            lines.append(f"{name} is {after[name]}, pinned is {before[name]}")
    return lines


def _by_name(packages: Sequence[str]) -> dict[str, str]:
    """`name architecture version` lines as version by `name:architecture`."""
    found = {}
    for line in packages:
        name, _, rest = line.partition(" ")
        architecture, _, version = rest.partition(" ")
        found[f"{name}:{architecture}"] = version
    return found


def refuse_other(image: Image, recipes: Path | None = None) -> None:
    """Raise `InfraError` if an image is not what the lock says, with each package that differs."""
    wanted = read_lock(recipes).get(image.name)
    if wanted is None:
        hint = f"qcase images lock {image.name}"
        raise InfraError(f"the toolchain image {image.name} is not pinned", where=LOCK_FILE, hint=hint)
    lines = differences(wanted, image, recipe_digest(image.name, recipes))
    if lines:
        more = [f"… and {len(lines) - SAID} more"] if len(lines) > SAID else []
        said = "\n".join([*lines[:SAID], *more])
        raise InfraError(
            f"the toolchain image {image.name} is not the one that is pinned\n{said}",
            where=LOCK_FILE,
            hint="`qcase images build --fresh` takes today's packages, `qcase images lock` pins what is there",
        )


def known(name: str, cache: Path, recipes: Path | None = None) -> Image | None:
    """As `known_identity`, with the packages."""
    record = _read_record(cache, name)
    if not record or record.get("recipe") != recipe_digest(name, recipes):
        return None
    content = _read_record(cache, _short(record["image"]))
    if not content or content.get("identity") != record["identity"]:
        return None
    return Image(name, record["image"], record["identity"], tuple(content["packages"]))


def reread(name: str, engine: Engine, cache: Path, recipes: Path | None = None) -> Image | None:
    """An image with the list of packages as it is in the engine now; None if it is not built from this recipe."""
    found = _find(name, engine, cache, recipes)
    if found is None:
        return None
    packages = _installed(engine, cache, found.id)
    return Image(name, found.id, identity(recipe_digest(name, recipes), packages), packages)


# --- images of others ---------------------------------------------------------------------------------------------------

_BY_DIGEST = re.compile(r"[^@\s]+@sha256:(?P<digest>[0-9a-f]{64})")


def foreign_identity(reference: str) -> str:
    """The identity of an image that is not ours: its digest, whatever registry it comes from. `UsageError` without one."""
    match = _BY_DIGEST.fullmatch(reference)
    if match is None:
        raise UsageError(
            "an image of others is taken by its digest alone: the same tag can be another image tomorrow",
            where=f'image = "{reference}"',
            hint='write "name@sha256:…"; `docker images --digests` shows it',
        )
    return _sha256({"format": FORMAT, "foreign": match["digest"]})


def foreign(reference: str, engine: Engine, emit: Emit | None = None, *, offline: bool = False) -> Image:
    """An image by `name@sha256:…`, pulled if the engine does not have it, unless `offline`. Raises `InfraError`."""
    identity = foreign_identity(reference)
    found = engine.image_id(reference)
    if found is None:
        if offline:
            raise InfraError("is not there, and fetching is switched off", where=reference, hint="run once without --offline")
        _say(emit, f"pulling {reference}")
        where = f"pulling {reference}"
        try:
            with engine.faults(where):
                for message in engine.api.pull(reference, stream=True, decode=True):
                    if "error" in message:
                        raise InfraError(str(message["error"]), where=where)
        except InfraError as error:
            hint = error.hint or "does the engine reach the registry, and has it an image of that digest?"
            raise InfraError(" ".join(error.what.split()), where=where, hint=hint) from None
        found = engine.image_id(reference)
        if found is None:
            raise InfraError("pulled, and not there", where=reference)
    return Image(reference, found, identity)


# --- one image ----------------------------------------------------------------------------------------------------------


def _find(name: str, engine: Engine, cache: Path, recipes: Path | None) -> Image | None:
    """The image that the record names, if the recipe is still the same and the engine still has it; else one that somebody else
    on this machine, with another store, had built from this recipe."""
    record = _read_record(cache, name)
    recipe = recipe_digest(name, recipes)
    if not record or record.get("recipe") != recipe or not engine.image_exists(record["image"]):
        others = engine.labelled_image(_tag(name, recipe), _RECIPE_LABEL, recipe)
        return None if others is None else _take_in(name, engine, cache, recipe, others)
    content = _read_record(cache, _short(record["image"]))
    if not content or content.get("identity") != record["identity"]:
        return _take_in(name, engine, cache, record["recipe"], record["image"])
    return Image(name, record["image"], record["identity"], tuple(content["packages"]))


def _build(name: str, engine: Engine, cache: Path, emit: Emit | None, recipes: Path | None, *, fresh: bool) -> Image:
    recipe = recipe_digest(name, recipes)
    folder = (recipes or recipes_dir()) / name
    began = time.monotonic()
    base_name = _base_of(folder, engine, cache, emit, recipes, fresh=fresh)
    _say(emit, f"building the image {name} (once; {folder / 'Containerfile'})")
    arguments = {"BASE": base_name, **_proxies(os.environ)}
    tag = _tag(name, recipe)
    with (
        ExitStack() as stack,
        engine.faults(f"building the image {name}"),
        Heart(f"image {name}", emit) as heart,
        BuildLog(cache / "images" / f"{name}.log", heart) as said,
    ):
        # When we go away, the engine sees the connection close, kills the step that runs and, with forcerm, removes it.
        messages = engine.api.build(
            fileobj=stack.enter_context(_context(folder)),
            custom_context=True,
            dockerfile="Containerfile",
            tag=tag,
            buildargs=arguments,
            labels={**LABELS, "qcase.image": name, _RECIPE_LABEL: recipe},
            nocache=fresh,
            rm=True,
            forcerm=True,
            decode=True,
        )
        try:
            for message in messages:
                said.take(message)
        finally:
            messages.close()
        if said.error:
            tail = "\n".join(said.last)
            raise InfraError(
                f"the image {name} could not be built: {said.error}\n{tail}",
                where=f"{folder / 'Containerfile'}, {said.step}" if said.step else str(folder / "Containerfile"),
                hint=build_hint(f"{said.error}\n{tail}") or f"all that it said is in {said.path}",
            )
    image_id = engine.image_id(tag)
    if image_id is None:
        raise InfraError("built, and not there", where=tag)
    image = _take_in(name, engine, cache, recipe, image_id)
    _say(emit, f"image {name}: built in {time.monotonic() - began:.0f} s")
    return image


_RECIPE_LABEL = "qcase.recipe"


def _tag(name: str, recipe: str) -> str:
    return f"qcase/{name}:{recipe[:12]}"


@contextmanager
def _context(folder: Path) -> Iterator[IO[bytes]]:
    """A recipe's folder as the engine takes it: of the modes the executable bit, owner root, so that the layers of one user serve
    the next."""
    import tarfile

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        member.mtime = 0
        return member

    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            for path in sorted(folder.rglob("*")):
                archive.add(path, path.relative_to(folder).as_posix(), recursive=False, filter=plain)
        file.seek(0)
        yield file


def _take_in(name: str, engine: Engine, cache: Path, recipe: str, image_id: str) -> Image:
    """Read back what is installed in an image, and write both records."""
    packages = _installed(engine, cache, image_id)
    image = Image(name, image_id, identity(recipe, packages), packages)
    _write_record(cache, _short(image_id), {"format": FORMAT, "identity": image.identity, "packages": list(packages)})
    record = {"format": FORMAT, "recipe": recipe, "image": image_id, "identity": image.identity}
    _write_record(cache, name, record)
    return image


_LIST_PACKAGES = """
if [ -f /opt/qcase/packages.txt ]; then
    cat /opt/qcase/packages.txt
else
    dpkg-query -W -f '${Package} ${Architecture} ${Version}\\n'
fi
"""


def _installed(engine: Engine, cache: Path, image_id: str) -> tuple[str, ...]:
    with _scratch(cache) as scratch:
        log = scratch / "packages"
        step = Step(image=image_id, argv=("sh", "-euc", _LIST_PACKAGES), timeout=120, name="list the packages", log=log)
        result = engine.run(step)
        if result.exit_status != 0 or result.timed_out:
            raise InfraError(f"its packages cannot be listed\n{result.output}".strip(), where=image_id)
        return tuple(sorted(line for line in log.read_text().splitlines() if line.strip()))


def build_hint(text: str) -> str:
    """What to do about a build that failed, by what it said."""
    if re.search(
        r"(?i)temporary failure resolving|could ?n[o']t resolve|could not connect|unable to connect|network is unreach", text
    ):
        return "the build needs the Debian mirror that the base names: is there a network, also from inside a container?"
    if re.search(r"404 +Not Found", text):
        return "the mirror has moved on: build it anew, base and all (`qcase images build --fresh`)"
    if "unable to pick chroot mode" in text:
        return (
            "without root mmdebstrap needs user namespaces, newuidmap (`apt-get install uidmap`) and ids of your own in "
            "/etc/subuid and /etc/subgid; or let root run `qcase images build c` once, for all who use this engine"
        )
    return hint_for(text)


def _proxies(environ: Mapping[str, str]) -> dict[str, str]:
    both = [spelling for name in PROXIES for spelling in (name, name.upper())]
    return {name: environ[name] for name in both if environ.get(name)}


# The engine's builder shows what a step writes to its standard error in red, in the midst of lines too.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class BuildLog:
    """What a build says: to a file, its steps to the heart, its last lines for an error."""

    def __init__(self, path: Path, heart: Heart) -> None:
        self.path = path
        self.step = ""
        self.error = ""
        self.last: deque[str] = deque(maxlen=SAID)
        self._heart = heart
        self._partial = ""

    def __enter__(self) -> BuildLog:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("w", encoding="utf-8", errors="replace")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def take(self, message: Mapping[str, object]) -> None:
        """One message of the engine's builder: `{"stream": text}`, `{"error": text}`, or what is of no interest."""
        if "error" in message:
            self.error = str(message["error"]).strip()
            self._file.write(self.error + "\n")
        *lines, self._partial = (self._partial + str(message.get("stream", ""))).split("\n")
        for line in (_COLOUR.sub("", line) for line in lines):
            self._file.write(line + "\n")
            if re.match(r"Step \d+/\d+ : ", line):
                self.step = _shortened(line.replace("Step", "step", 1).replace(" : ", ": ", 1), 100)
                self.last.clear()
                self._heart.say(self.step)
            elif line.strip() and not line.startswith((" ---> ", "Removing intermediate container ")):
                self.last.append(line.rstrip())
                self._heart.hear(line)
        self._file.flush()


class Heart:
    """Says what a long work is at, and after `HEARTBEAT` seconds of silence that it still lives."""

    def __init__(self, what: str, emit: Emit | None, interval: float = HEARTBEAT) -> None:
        self._what = what
        self._emit = emit
        self._interval = interval
        self._began = time.monotonic()
        self._last_line = ""
        self._said = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._beat, name=f"heart of {what}", daemon=True)

    def __enter__(self) -> Heart:
        if self._emit is not None:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stopped = True
        self._said.set()
        if self._thread.is_alive():
            self._thread.join()

    def say(self, text: str) -> None:
        self._last_line = ""
        _say(self._emit, f"{self._what}: {text}")
        self._said.set()

    def hear(self, line: str) -> None:
        """The last line of the work, which the next heartbeat shows."""
        self._last_line = line

    def _beat(self) -> None:
        while not self._stopped:
            if self._said.wait(self._interval):
                self._said.clear()
            else:
                last = f", at: {_shortened(self._last_line.strip(), 80)}" if self._last_line else ""
                _say(self._emit, f"{self._what}: {time.monotonic() - self._began:.0f} s{last}")


# --- the base -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A line of apt's sources: one package archive, one suite."""

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str = ""


@dataclass(frozen=True)
class Mirrors:
    """Where Debian comes from. `None`: not known, and mmdebstrap's own default is taken."""

    main: Source | None = None
    security: Source | None = None


@dataclass(frozen=True)
class BaseDefinition:
    """What `base.toml` says: a Debian suite, or a built-in guest, or another recipe's image."""

    suite: str = ""
    variant: str = ""
    registry: str = ""
    guest: str = ""
    image: str = ""

    def __str__(self) -> str:
        if self.guest:
            return f"guest {guests.alpine_name(GUEST_ARCH)}"
        return f"image {self.image}" if self.image else f"Debian {self.suite}, {self.variant}"


GUEST_ARCH = Arch.X86_64  # of a guest that is a base: its programs run in the container


def base_definition(folder: Path | None = None) -> BaseDefinition:
    """What the base of a recipe is: what its own `base.toml` says, else the one that all share."""
    import tomli

    path = recipes_dir() / "base.toml"
    if folder is not None and (folder / "base.toml").is_file():
        path = folder / "base.toml"
    try:
        table = tomli.loads(path.read_text())["base"]
        if guest := table.get("guest", ""):
            if guest != guests.ALPINE:
                raise KeyError(f"no built-in guest {guest!r}")
            return BaseDefinition(guest=guest)
        if "image" in table:
            return BaseDefinition(image=table["image"])
        return BaseDefinition(table["suite"], table["variant"], table.get("registry", ""))
    except (tomli.TOMLDecodeError, KeyError, TypeError) as error:
        raise InfraError(f"not understood: {error}", where=str(path)) from None


def _base_of(folder: Path, engine: Engine, cache: Path, emit: Emit | None, recipes: Path | None, *, fresh: bool) -> str:
    """What a recipe's `ARG BASE` is: the name or the id of the image that it starts from."""
    definition = base_definition(folder)
    if definition.guest:
        return guest_base(engine, cache, emit, definition)
    if definition.image:
        own = recipes if recipes is not None and (recipes / definition.image).is_dir() else None
        return ensure(definition.image, engine, cache, emit, own).id
    return base(engine, cache, emit, fresh=fresh)


def guest_base(engine: Engine, cache: Path, emit: Emit | None, definition: BaseDefinition) -> str:
    """The root filesystem of a built-in guest as an image, without what only its kernel needs. Imported if it is not there."""
    name = f"qcase/base:{guests.alpine_name(GUEST_ARCH)}-{_base_digest(definition)[:12]}"
    if engine.image_exists(name):
        return name
    with _alone(cache, "base", emit):
        if engine.image_exists(name):
            return name
        with Store(cache, writes=Policy(False, False)).guests_in_use(), _scratch(cache) as scratch:
            guest = guests.alpine(GUEST_ARCH, cache, emit=emit or (lambda _: None))
            _say(emit, f"importing the guest {guest.name} as a base image (once)")
            archive = scratch / "base.tar"
            _archive(guest.rootfs, archive)
            repository, _, tag = name.partition(":")
            _import(engine, archive, repository, tag, ["LABEL qcase=1", 'CMD ["/bin/sh"]'])
    return name


_KERNEL_ONLY = ("/boot/", "/lib/modules/", "/lost+found/")


def _archive(rootfs: Path, archive: Path) -> None:
    """A root filesystem as a tar file: folders, files and links, the same bytes each time."""
    import io
    import tarfile

    with Ext4Image.open(rootfs) as image, tarfile.open(archive, "w") as tar:
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


def _import(engine: Engine, archive: Path, repository: str, tag: str, changes: Sequence[str]) -> None:
    with engine.faults("importing the base image"):
        answer = engine.api.import_image_from_file(str(archive), repository=repository, tag=tag, changes=list(changes))
    errors = [line["error"] for line in map(json.loads, str(answer).splitlines()) if "error" in line]
    if errors:
        raise InfraError(str(errors[0]), where="importing the base image", hint=hint_for(str(errors[0])))


def base(engine: Engine, cache: Path, emit: Emit | None = None, *, fresh: bool = False) -> str:
    """The name of the base image, which is fetched or made if the engine has none of this definition."""
    if not fresh and (name := _newest_base(engine)):
        return name
    with _alone(cache, "base", emit):
        if not fresh and (name := _newest_base(engine)):
            return name
        definition = base_definition()
        if definition.registry:
            try:
                foreign(definition.registry, engine, emit)
                return definition.registry
            except InfraError as error:
                _say(emit, f"no base from a registry ({error.what.splitlines()[0]}); making it")
        return make_base(engine, cache, emit, definition)


def _newest_base(engine: Engine) -> str:
    with engine.faults("looking for the base image"):
        images = engine.api.images(filters={"label": f"qcase.base={_base_digest(base_definition())[:12]}"})
    for image in sorted(images, key=lambda image: int(image["Created"]), reverse=True):
        for tag in image["RepoTags"] or ():
            if str(tag).startswith("qcase/base:"):
                return str(tag)
    return ""


def make_base(engine: Engine, cache: Path, emit: Emit | None, definition: BaseDefinition) -> str:
    """Make a base with mmdebstrap and import it. Returns its name, `qcase/base:<suite>-<digest of its packages>`."""
    mirrors = host_mirrors(Path("/etc/apt"), os.environ)
    origin = mirrors.main.uri if mirrors.main else "mmdebstrap's own mirror"
    _say(emit, f"making the base image, Debian {definition.suite}, from {origin} (once)")
    with _scratch(cache) as scratch, Heart("base image", emit):
        archive = scratch / "base.tar"
        # A host that is no Debian may have Debian's keys elsewhere.
        argv = mmdebstrap_arguments(definition, mirrors, archive, os.environ.get("QCASE_DEBIAN_KEYRING", ""))
        # As root, its working folder is ours, and goes with it. An ordinary user's is entered by other, mapped users, to whom
        # a cache folder below a closed home would be shut.
        folder = {"TMPDIR": str(scratch)} if os.geteuid() == 0 else {}
        install = "install it (`apt-get install mmdebstrap`)"
        done = process.run(argv, env=folder, allow=("*_proxy", "*_PROXY"), timeout=BASE_TIMEOUT, check=False, hint=install)
        if done.returncode != 0:
            tail = "\n".join(done.output.splitlines()[-SAID:])
            hint = build_hint(done.output) or ("is the package debian-archive-keyring new enough?" if "NO_PUBKEY" in tail else "")
            raise InfraError(
                f"the base image could not be made (status {done.returncode})\n{tail}", where=shlex.join(argv), hint=hint
            )
        digest = packages_digest(packages_of_archive(archive))
        tag = f"{definition.suite}-{digest[:12]}"
        # A new base of the same packages takes the name over; the old image stays for those who still run in it.
        label = f"LABEL qcase=1 qcase.base={_base_digest(definition)[:12]} qcase.packages={digest}"
        _import(engine, archive, "qcase/base", tag, [label, 'CMD ["/bin/bash"]'])
    return f"qcase/base:{tag}"


def mmdebstrap_arguments(definition: BaseDefinition, mirrors: Mirrors, archive: Path, keyring: str = "") -> list[str]:
    """mmdebstrap's command line. A keyring of the host that Debian does not bring itself goes into the base too."""
    argv = ["mmdebstrap", f"--variant={definition.variant}", "--format=tar", *([f"--keyring={keyring}"] if keyring else [])]
    lines = []
    suites = [(mirrors.main, definition.suite), (mirrors.main, f"{definition.suite}-updates")]
    for source, suite in [*suites, (mirrors.security, f"{definition.suite}-security")]:
        if source is None:
            continue
        own_keyring = source.signed_by and "debian-archive" not in source.signed_by
        lines.append(f"deb {f'[signed-by={source.signed_by}] ' if own_keyring else ''}{source.uri} {suite} main")
        if own_keyring:
            folder = str(Path(source.signed_by).parent)
            hooks = [
                f'--setup-hook=mkdir -p "$1"{shlex.quote(folder)}',
                f"--setup-hook=copy-in {shlex.quote(source.signed_by)} {shlex.quote(folder)}",
            ]
            argv += [hook for hook in hooks if hook not in argv]
    # Without a main mirror mmdebstrap takes its own, with updates and security.
    return [*argv, definition.suite, str(archive), *(lines if mirrors.main else [])]


def packages_of_archive(archive: Path) -> list[str]:
    """The packages of a root file system in a tar file, as `name architecture version`."""
    import tarfile

    with tarfile.open(archive, "r|") as tar:
        for member in tar:
            if member.name.removeprefix("./") == "var/lib/dpkg/status":
                status = tar.extractfile(member)
                assert status is not None
                return sorted(
                    f"{stanza['package']} {stanza['architecture']} {stanza['version']}"
                    for stanza in _stanzas(status.read().decode())
                    if stanza.get("status", "").endswith(" installed")
                )
    raise InfraError("no list of packages in it", where=str(archive))


# Suites of Debian's own archive. Other archives use them too, which is why the address has to speak for itself as well.
_DEBIAN_SUITES = re.compile(
    r"(buster|bullseye|bookworm|trixie|forky|duke|sid|oldoldstable|oldstable|stable|testing|unstable)(?P<part>-updates|-security|/updates)?"
)


def host_mirrors(apt: Path, environ: Mapping[str, str]) -> Mirrors:
    """The Debian mirrors that the host's apt uses. `QCASE_DEBIAN_MIRROR` (main, blank, security, if known) goes first."""
    if override := environ.get("QCASE_DEBIAN_MIRROR", "").split():
        main, *rest = (Source(uri.rstrip("/"), "", ("main",)) for uri in override)
        return Mirrors(main, rest[0] if rest else None)
    main_sources, security = [], []
    updates = set()
    for source in _sources(apt):
        match = _DEBIAN_SUITES.fullmatch(source.suite)
        if match is None or "main" not in source.components or urllib.parse.urlsplit(source.uri).scheme not in ("http", "https"):
            continue
        if match["part"] in ("-security", "/updates"):
            security.append(source)
        elif match["part"] == "-updates":
            updates.add(source.uri)
        else:
            main_sources.append(source)

    def is_debian(source: Source) -> bool:
        last = urllib.parse.urlsplit(source.uri).path.rstrip("/").rpartition("/")[2]
        return "debian" in last or "debian-archive" in source.signed_by or source.uri in updates

    return Mirrors(next(filter(is_debian, main_sources), None), next(iter(security), None))


def _sources(apt: Path) -> Iterator[Source]:
    """All package archives that apt has in its configuration, in its order. A file that cannot be read says nothing."""
    for path in (apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))):
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        if path.suffix == ".sources":
            yield from parse_deb822(text)
        elif path.suffix == ".list":
            yield from parse_one_line(text)


def parse_one_line(text: str) -> Iterator[Source]:
    """apt's one-line style: `deb [option=value …] uri suite component…`."""
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[(?P<options>[^\]]*)\]\s*)?(?P<uri>\S+)\s+(?P<suite>\S+)(?P<rest>[^#]*)", line)
        if match is None:
            continue
        options = dict(option.split("=", 1) for option in (match["options"] or "").split() if "=" in option)
        keyring = options.get("signed-by", "")
        yield Source(match["uri"].rstrip("/"), match["suite"], tuple(match["rest"].split()), keyring)


def parse_deb822(text: str) -> Iterator[Source]:
    """apt's stanza style: `Types`, `URIs`, `Suites`, `Components`, `Signed-By`; a key that stands inside is passed over."""
    for stanza in _stanzas(text):
        if "deb" not in stanza.get("types", "").split() or stanza.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        signed_by = stanza.get("signed-by", "")
        keyring = signed_by if signed_by.startswith("/") and len(signed_by.split()) == 1 else ""
        for uri in stanza.get("uris", "").split():
            for suite in stanza.get("suites", "").split():
                yield Source(uri.rstrip("/"), suite, tuple(stanza.get("components", "").split()), keyring)


def _stanzas(text: str) -> Iterator[dict[str, str]]:
    """Debian's control format: fields, names in lower case, a line that begins with a blank continues the one above."""
    for block in re.split(r"\n[ \t]*\n", text):
        stanza: dict[str, str] = {}
        key = ""
        for line in block.splitlines():
            if line.startswith("#") or not line.strip():
                continue
            if line[0] in " \t":
                if key:
                    stanza[key] = f"{stanza[key]}\n{line.strip()}".strip()
            elif ":" in line:
                key, _, value = line.partition(":")
                key = key.strip().lower()
                stanza[key] = value.strip()
        if stanza:
            yield stanza


# --- records, locks, scratch --------------------------------------------------------------------------------------------


def _read_record(cache: Path, name: str) -> dict[str, str] | None:
    """A record; None where there is none, or one that another version of qcase wrote, or half of one."""
    try:
        record = json.loads((cache / "images" / f"{name}.json").read_bytes())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("format") == FORMAT and "identity" in record else None


def _write_record(cache: Path, name: str, record: Mapping[str, object]) -> None:
    folder = cache / "images"
    folder.mkdir(parents=True, exist_ok=True)
    staged = folder / f".{name}.{os.getpid()}.{uuid.uuid4().hex}"
    try:
        with staged.open("x") as file:
            json.dump(record, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        staged.rename(folder / f"{name}.json")
    except OSError as error:
        staged.unlink(missing_ok=True)
        raise InfraError(f"cannot be written: {error.strerror}", where=str(folder / f"{name}.json")) from None


@contextmanager
def _alone(cache: Path, what: str, emit: Emit | None) -> Iterator[None]:
    """Hold the lock on an image. Who has to wait says for whom."""
    from filelock import FileLock, Timeout

    folder = cache / "images"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{what}.lock")
        owner = folder / f"{what}.owner"
        try:
            lock.acquire(timeout=0)
        except Timeout:
            pid = owner.read_text().strip() if owner.exists() else ""
            _say(emit, f"waiting for {f'pid {pid}' if pid else 'another qcase'}, which builds the image {what}")
            locks.wait(lock)
        owner.write_text(f"{os.getpid()}\n")
    except OSError as error:
        raise InfraError(f"cannot be locked: {error.strerror}", where=str(folder / f"{what}.lock")) from None
    try:
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


@contextmanager
def _scratch(cache: Path) -> Iterator[Path]:
    """A folder of our own in the cache, on a disk and not in memory; the guardian removes it should we be killed."""
    parent = cache / "images"
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".scratch-", dir=parent))
    process.tell_guardian(f"dir {folder}")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        process.tell_guardian(f"drop {folder}")


def _base_digest(definition: BaseDefinition) -> str:
    """The digest of what the base is. Where it comes from is no part of that: its package list says what came."""
    if definition.guest:
        return _sha256({"guest": guests.alpine_name(GUEST_ARCH), "sha256": guests.alpine_sha256(GUEST_ARCH)})
    if definition.image:
        return _sha256({"image": definition.image, "recipe": recipe_digest(definition.image)})
    return _sha256({"suite": definition.suite, "variant": definition.variant})


def _sha256(parts: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _short(image_id: str) -> str:
    return image_id.removeprefix("sha256:")


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _say(emit: Emit | None, message: str) -> None:
    if emit is not None:
        event: Event = Progress(message)
        emit(event)
