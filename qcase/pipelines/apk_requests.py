"""Requests of a prebuild script for packages, and the answers."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from qcase.disk.ext4 import Ext4Image
from qcase.errors import BuildError, InfraError, QcaseError
from qcase.guests.packages import install_step
from qcase.host.trees import PlantedError, Tree
from qcase.pipelines.pipeline import SCRIPT, STAGING, BuildContext
from qcase.toolchains.recipes import GUEST_ARCH

TOOL = "/qcase/apk"
REQUESTS = "/qcase/packages/requests"
_POLL = 0.03  # seconds
_REQUEST = 64 << 10  # bytes of a request
_REQUESTS_AT_ONCE = 1000

_LOADER = GUEST_ARCH.musl_loader
_LIBRARIES = ("lib", "usr/lib")

SHIM = f"""\
#!/bin/sh
# apk for scripts of a case. It acts on the staging root; what it needs from a repository is fetched outside, on request.
set -eu
real() {{ {TOOL}/lib/{_LOADER} --library-path {TOOL}/lib {TOOL}/libexec/apk "$@"; }}
request={REQUESTS}/$$
for word; do printf '%s\\n' "$word"; done >"$request.new"
mv "$request.new" "$request.ask"
while [ ! -f "$request.answer" ]; do sleep 0.05; done
set --
while IFS= read -r word; do set -- "$@" "$word"; done <"$request.answer"
rm -f "$request.answer"
verb=$1
shift
case $verb in
nothing) exit 0 ;;
refused) printf 'apk: %s\\n' "$@" >&2; exit 1 ;;
run) real --root {STAGING} --arch "$QCASE_APK_ARCH" --repositories-file /dev/null --no-network "$@"; exit ;;
esac
{install_step.install_program("real")}"""


class ApkRequestServer:
    """Server for the package requests of one script, while its step runs. `fault`: the error to report, not the script's own.

    The script can write anything into the folder of requests. An invalid request is a fault of the case. After a fault of the
    case all requests are refused, so that the script ends.
    """

    def __init__(self, context: BuildContext, staging: Tree, requests: Tree, fetched: Path) -> None:
        self.fault: Exception | None = None
        self._context = context
        self._staging = staging
        self._sources = self._named_in_root()
        self._requests = requests
        self._fetched = fetched
        self._served = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, name=f"packages of {context.case}", daemon=True)

    def __enter__(self) -> ApkRequestServer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        if kind is not None and not issubclass(kind, Exception):
            self._context.services.engine().cancel()  # an interrupt must not wait for a download
        self._thread.join()

    def _serve(self) -> None:
        while not self._over.wait(_POLL):
            try:
                names = self._requests.names(_REQUESTS_AT_ONCE)
            except (OSError, PlantedError) as error:
                self._blame(error)
                return
            for name in names:
                if name.endswith(".ask") and not self._over.is_set():
                    self._take(self._requests / name, self._requests / f"{name.removesuffix('.ask')}.answer")

    def _take(self, ask: Tree, reply: Tree) -> None:
        """Serve one request."""
        answer = None
        try:
            words = ask.read_text(_REQUEST).splitlines()
            ask.remove()
            answer = self._answer(words)
        except FileNotFoundError:
            return  # taken back
        except BuildError as error:
            if isinstance(error, PlantedError):
                self._blame(error)
            answer = Answer("refused", (error.what, *error.log.splitlines()[-12:]))
        except Exception as error:
            self._blame(error)
            what = error.what if isinstance(error, QcaseError) else repr(error)
            answer = Answer("refused", tuple(what.splitlines()))
        try:
            ask.remove()  # never read it again, whatever it was
            text = "".join(f"{line}\n" for line in (answer.verb, *answer.words))
            reply.replace_bytes(text.encode("utf-8", "surrogateescape"))
        except (OSError, PlantedError) as error:
            self._blame(error)

    def _named_in_root(self) -> object:
        """Return the package sources that the staging root names; None if they cannot be read."""
        from qcase.guests.packages import supply

        try:
            return supply.sources_in(self._staging)
        except (OSError, PlantedError):
            return None

    def _blame(self, error: Exception) -> None:
        """Keep the first fault; later ones may follow from it."""
        self.fault = self.fault or error

    def _answer(self, words: list[str]) -> Answer:
        from qcase.guests.packages import fetch_step

        context = self._context
        if isinstance(self.fault, BuildError):
            return Answer("refused", (self.fault.what,))
        answer = answer_to(words)
        if answer.verb != "add":
            return answer
        self._served += 1
        scratch = context.scratch / f"fetch-{self._served}"
        log = scratch.with_suffix(".log")
        try:
            context.services.supply().provide(context.case, answer.asked, self._staging, scratch, log, self._fetched)
        except InfraError as error:
            if isinstance(error, fetch_step.DatabaseError) or self._named_in_root() != self._sources:
                hint = f"{SCRIPT} has changed lib/apk/db or etc/apk of the staging root"
                raise BuildError(error.what, where=context.case, hint=hint) from None
            raise
        return answer


@dataclass(frozen=True)
class Answer:
    """Reply to the shim: `nothing`, `refused` (with lines to print), `run` or `add` (with apk's words).

    `asked`: the packages among those words.
    """

    verb: str
    words: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()


_QUERIES = ("info", "list", "query", "search", "policy", "version", "dot", "stats", "audit", "manifest", "verify", "del")
# Options of `add`: those that mean nothing here, those that are handed on, and those that have a value.
_IDLE = {
    *("-q", "--quiet", "-v", "--verbose", "-U", "--update-cache", "--no-cache", "--no-progress", "--no-interactive", "-f"),
    *("--no-scripts", "--initdb", "--no-chown", "--usermode", "--force", "--force-overwrite", "--no-logfile", "-i"),
}
_HANDED_ON = {"-u", "--upgrade", "-l", "--latest", "-s", "--simulate"}


def answer_to(words: list[str]) -> Answer:
    """Decide the reply to the words that a script gave apk. Raises nothing: an impossible request is refused with the reason."""
    from qcase.guests.packages import lock

    rest = list(words)
    options: list[str] = []
    names: list[str] = []
    verb = ""
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            if verb:
                names.append(word)
            else:
                verb = word
                if verb in _QUERIES:
                    return Answer("run", (verb, *(["--no-scripts"] if verb == "del" else []), *names, *rest))
            continue
        name, equals, value = word.partition("=")
        if name in ("-t", "--virtual", "-p", "--root", "--arch"):
            if not equals:
                if not rest:
                    return Answer("refused", (f"{word} needs a value",))
                value = rest.pop(0)
            if name in ("-t", "--virtual"):
                options += ["--virtual", value]
            elif name in ("-p", "--root") and value.rstrip("/") != STAGING:
                return Answer("refused", (f"{word}: packages go into the staging root, {STAGING}",))
        elif word in _HANDED_ON:
            options.append(word)
        elif word not in _IDLE:
            return Answer(
                "refused",
                (f"the option {word} cannot be used here; repositories and keys are set in qcase.toml, [packages]",),
            )
    if verb == "update":
        return Answer("nothing")
    if verb != "add":
        known = ", ".join(("add", "update", *_QUERIES))
        return Answer("refused", (f"{verb or 'nothing'}: not in a prebuild script; there are {known}",))
    for one in names:
        try:
            lock.check_specification(one)
        except ValueError as error:
            return Answer("refused", (str(error),))
    if not names:
        return Answer("nothing")
    return Answer("add", (*options, *names), tuple(names))


def unpack_apk(rootfs: Path, folder: Tree) -> None:
    """Fill an empty folder with apk from an x86_64 Alpine image: the program, its loader and libraries, and the shim.

    bin/apk              the shim
    libexec/apk          the program
    lib/                 ld-musl-x86_64.so.1 and the libraries
    """
    for name in ("bin", "lib", "libexec"):
        (folder / name).mkdir()
    with Ext4Image.open(rootfs) as image:

        def take(path: str, target: Tree) -> None:
            node = image.lookup(path)
            assert node is not None, path
            with target.created(0o755) as fd, os.fdopen(fd, "wb", closefd=False) as file:
                image.copy_out(node, file)

        take("/sbin/apk", folder / "libexec/apk")
        take(f"/lib/{_LOADER}", folder / "lib" / _LOADER)
        pending = [folder / "libexec/apk"]
        while pending:
            for library in _needed(pending.pop()):
                if library.startswith("libc.musl-") or (folder / "lib" / library).exists():
                    continue
                place = next(f"/{where}/{library}" for where in _LIBRARIES if image.lookup(f"/{where}/{library}") is not None)
                take(place, folder / "lib" / library)
                pending.append(folder / "lib" / library)
    (folder / "bin/apk").write_text(SHIM, 0o755)


def _needed(program: Tree) -> list[str]:
    from elftools.elf.dynamic import DynamicSection
    from elftools.elf.elffile import ELFFile

    with program.opened() as fd, os.fdopen(fd, "rb", closefd=False) as file:
        sections = [section for section in ELFFile(file).iter_sections() if isinstance(section, DynamicSection)]
        tags: list[Any] = [tag for section in sections for tag in section.iter_tags()]
        return [tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"]
