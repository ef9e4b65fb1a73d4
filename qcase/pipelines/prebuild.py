"""What comes before a build: the staging root that it looks into, and the case's `prebuild.sh`.

A case without packages and without a script gets the store's staging root, read-only. Any other gets a copy of its own, into
which its `[qcase] packages` are installed, and on which the script works:

    qcase                                    container of the script, without network
    ─────                                    ────────────────────────────────────────
    runs the step                        ►   sh -eu prebuild.sh
                                               apk add zlib-dev              /qcase/apk/bin/apk is on the PATH
    reads the request                    ◄       requests/<n>.ask            the words, one a line
    fetch step, where something is
      missing: a container of its own,
      with network
    packages into `fetched`, read-only   ►
    requests/<n>.answer                  ►       the real apk: --root /qcase/staging, those packages, no network, no scripts

So a script may do what scripts do, decide by what it finds and ask several times, and yet nothing that runs it ever has a
network. The real apk is the guest's own, with its loader and its libraries in `/qcase/apk`; it runs in whatever image the
script runs in.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from qcase import containers, packages
from qcase.config import ScriptEnv
from qcase.containers import Mount, Step
from qcase.content import copy_tree, write_aside
from qcase.errors import BuildError, QcaseError
from qcase.ext4 import Ext4Image
from qcase.pipelines import BUILD, OVERLAY, SRC, STAGING, STEP_MEMORY, STEP_PIDS, STEP_TIMEOUT, Workshop

RECIPE = 1
SCRIPT = "prebuild.sh"

_TOOL = "/qcase/apk"
_REQUESTS = "/qcase/packages/requests"
_POLL = 0.03  # seconds

_LOADER = "ld-musl-x86_64.so.1"
_LIBRARIES = ("lib", "usr/lib")

_SHIM = f"""\
#!/bin/sh
# apk for scripts of a case. It acts on the staging root; what it needs from a repository is fetched outside, on request.
set -eu
real() {{ {_TOOL}/lib/{_LOADER} --library-path {_TOOL}/lib {_TOOL}/libexec/apk "$@"; }}
request={_REQUESTS}/$$
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
{packages.install_program("real")}"""

_PROGRAM = f"""\
exec 2>&1
umask 022
PATH={_TOOL}/bin:$PATH
cd "$1"
exec sh -eu {SCRIPT}
"""


def recipe() -> str:
    """The text of all that is run: an edit of it moves the keys of cases with packages."""
    return f"{RECIPE}\0{_SHIM}\0{_PROGRAM}"


def script_variables(names: ScriptEnv, folder: str) -> dict[str, str]:
    """The variables that a case's scripts find; paths in the container. `folder`: the one with the sources, e.g. `c`."""
    return {
        names.staging_root: STAGING,
        names.case_dir: SRC,
        names.case_c_dir: f"{SRC}/{folder}",
        names.case_work_dir: BUILD,
        names.case_build_dir: f"{BUILD}/cmake",
        names.case_overlay_dir: OVERLAY,
    }


def staging_root(workshop: Workshop, folder: Path) -> Path:
    """The staging root of a case whose sources are in `folder`: with its packages, and its own if a script works on it."""
    shared = workshop.staging()
    if not workshop.packages and not (folder / SCRIPT).is_file():
        return shared
    own = workshop.scratch / "staging"
    workshop.say("copying the staging root")
    copy(shared, own)
    if workshop.packages:
        workshop.say("installing packages")
        packages.install(workshop.supply(), workshop.case, workshop.packages, own, workshop.scratch / "packages", workshop.log)
    return own


def run(source: Path, name: str, image: str, staging: Path, build: Path, overlay: Path, workshop: Workshop) -> None:
    """Run `source/name/prebuild.sh`, if there is one, in a toolchain image. Raises `BuildError` if it fails.

    `staging` as `staging_root` gave it. The script may write to it, to the sources, to `build` and to the overlay. Raises
    `RecordedError` at its end where a run is about packages alone.
    """
    scripted = (source / name / SCRIPT).is_file()
    if scripted:
        _run(source, name, image, staging, build, overlay, workshop)
    if (scripted or workshop.packages) and workshop.supply().recorded is not None:
        raise RecordedError


class RecordedError(Exception):
    """All that a case asks for is known, and nothing else of it is wanted."""


def _run(source: Path, name: str, image: str, staging: Path, build: Path, overlay: Path, workshop: Workshop) -> None:
    workshop.say(SCRIPT)
    requests, fetched = workshop.scratch / "requests", workshop.scratch / "fetched"
    requests.mkdir()
    fetched.mkdir()
    step = Step(
        image=workshop.image(image),
        argv=("sh", "-euc", _PROGRAM, SCRIPT, f"{SRC}/{name}"),
        mounts=(
            Mount(source, SRC, False),
            Mount(build, BUILD, False),
            Mount(overlay, OVERLAY, False),
            Mount(staging, STAGING, False),
            Mount(workshop.apk(), _TOOL, True),
            Mount(requests, _REQUESTS, False),
            Mount(fetched, packages.FETCHED, True),
        ),
        env={
            **workshop.environment,
            **workshop.config.hooks.guest_package_env,
            **script_variables(workshop.config.script_env, name),
            "QCASE_APK_ARCH": workshop.arch.value,
        },
        workdir=f"{SRC}/{name}",
        timeout=STEP_TIMEOUT,
        memory=STEP_MEMORY,
        pids=STEP_PIDS,
        name=SCRIPT,
        log=workshop.log,
    )
    with Desk(workshop, staging, requests, fetched) as desk:
        result = workshop.engine().run(step)
    if desk.fault is not None:
        raise desk.fault
    if result.exit_status != 0 or result.timed_out:
        what, hint = containers.verdict_of(step, result)
        raise BuildError(what, where=workshop.case, hint=hint, log=result.output)


class Desk:
    """Where the requests of one script are served, while its step runs. `fault`: what has to be said instead of its failure."""

    def __init__(self, workshop: Workshop, staging: Path, requests: Path, fetched: Path) -> None:
        self.fault: Exception | None = None
        self._workshop = workshop
        self._staging = staging
        self._requests = requests
        self._fetched = fetched
        self._served = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, name=f"packages of {workshop.case}", daemon=True)

    def __enter__(self) -> Desk:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        if kind is not None and not issubclass(kind, Exception):
            self._workshop.engine().cancel()  # an interrupt must not wait for a download
        self._thread.join()

    def _serve(self) -> None:
        while not self._over.wait(_POLL):
            for ask in sorted(self._requests.glob("*.ask")):
                try:
                    words = ask.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
                    ask.unlink()
                    answer = self._answer(words)
                except BuildError as error:
                    answer = Answer("refused", (error.what, *error.log.splitlines()[-12:]))
                except Exception as error:
                    self.fault = error
                    what = error.what if isinstance(error, QcaseError) else repr(error)
                    answer = Answer("refused", tuple(what.splitlines()))
                text = "".join(f"{line}\n" for line in (answer.verb, *answer.words))
                write_aside(ask.with_suffix(".answer"), text.encode("utf-8", "surrogateescape"))

    def _answer(self, words: list[str]) -> Answer:
        workshop = self._workshop
        answer = answer_to(words)
        if answer.verb != "add":
            return answer
        self._served += 1
        scratch = workshop.scratch / f"fetch-{self._served}"
        log = scratch.with_suffix(".log")
        workshop.supply().provide(workshop.case, answer.asked, self._staging, scratch, log, self._fetched)
        return answer


@dataclass(frozen=True)
class Answer:
    """What the shim is told: `nothing`, `refused` (with lines to print), `run` or `add` (with apk's words).

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
    """What to do about the words that a script gave apk. Raises nothing: what cannot be done is refused with the reason."""
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
            packages.check_specification(one)
        except ValueError as error:
            return Answer("refused", (str(error),))
    if not names:
        return Answer("nothing")
    return Answer("add", (*options, *names), tuple(names))


# --- folders ------------------------------------------------------------------------------------------------------------


def copy(source: Path, target: Path) -> None:
    """A copy of a staging root that is ours to write in."""
    copy_tree(source, target)
    for folder, folders, _ in os.walk(target):
        for name in folders:
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | 0o700)


def unpack_apk(rootfs: Path, folder: Path) -> None:
    """Fill an empty folder with apk out of an x86_64 Alpine image: the program, its loader and libraries, and the shim.

    bin/apk              the shim
    libexec/apk          the program
    lib/                 ld-musl-x86_64.so.1 and the libraries
    """
    for name in ("bin", "lib", "libexec"):
        (folder / name).mkdir()
        (folder / name).chmod(0o755)
    with Ext4Image.open(rootfs) as image:

        def take(path: str, target: Path) -> None:
            node = image.lookup(path)
            assert node is not None, path
            with target.open("wb") as file:
                image.copy_out(node, file)
            target.chmod(0o755)

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
    (folder / "bin/apk").write_text(_SHIM, encoding="utf-8")
    (folder / "bin/apk").chmod(0o755)


def _needed(path: Path) -> list[str]:
    from elftools.elf.dynamic import DynamicSection
    from elftools.elf.elffile import ELFFile

    with path.open("rb") as file:
        sections = [section for section in ELFFile(file).iter_sections() if isinstance(section, DynamicSection)]
        tags: list[Any] = [tag for section in sections for tag in section.iter_tags()]
        return [tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"]
