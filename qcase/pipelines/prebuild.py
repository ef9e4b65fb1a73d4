"""Steps before a build: the staging root of the case, and its `prebuild.sh`.

A case without packages and without a script gets the store's staging root, read-only. Any other gets a copy of its own, into
which its `[qcase] packages` are installed, and on which the script works:

    qcase                                    container of the script, without network
    ─────                                    ────────────────────────────────────────
    runs the step                        ►   prebuild.sh, by its first line
                                               apk add zlib-dev              /qcase/apk/bin/apk is on the PATH
    reads the request                    ◄       requests/<n>.ask            the words, one a line
    fetch step, where something is
      missing: a container of its own,
      with network
    packages into `fetched`, read-only   ►
    requests/<n>.answer                  ►       the real apk: --root /qcase/staging, those packages, no network, no scripts

A script may decide by the state that it finds, and request packages several times, but it never has a network. The real apk is
the guest's own, with its loader and its libraries in `/qcase/apk`; it runs in the image of the script, whichever that is.
"""

from __future__ import annotations

from qcase.config.workspace_file import ScriptEnv
from qcase.errors import BuildError
from qcase.host.trees import Tree
from qcase.pipelines.apk_requests import TOOL
from qcase.pipelines.pipeline import BUILD, OVERLAY, SCRIPT, SRC, STAGING, STEP_MEMORY, STEP_PIDS, STEP_TIMEOUT, BuildContext

PREBUILD_RECIPE = 1
# Run by `sh -eu` with a script's path in $1. Its first line says what runs it, without one it is `sh`. A shell gets `-eu`, as a
# script without a first line has it; what `env` is told goes to `env`. Blanks separate words, as in `env -S`.
_RUN_SCRIPT = """\
script=$1
first=
IFS= read -r first <"$script" || :
set -f
case $first in '#!'*) set -- ${first#??} ;; *) set -- sh ;; esac
set +f
runs=${1:-sh}
case ${runs##*/}:${2:-} in
env:-S) [ $# -gt 2 ] && shift 2 && runs=$1 ;;
env:-* | env:*=*) ;;
env:?*) shift && runs=$1 ;;
esac
if ! command -v "$runs" >/dev/null; then
    printf '%s: its first line asks for %s, which this toolchain image does not have\n' "${script##*/}" "$runs"
    exit 127
fi
case ${runs##*/} in sh | ash | dash | bash | ksh | mksh | zsh) set -- "$@" -eu ;; esac
exec "$@" "$script"
"""


def run_script() -> str:
    """Return a program for `sh -euc` that runs the script named by its first argument with the interpreter of its first line."""
    return _RUN_SCRIPT


_PROGRAM = f"""\
exec 2>&1
umask 022
PATH={TOOL}/bin:$PATH
cd "$1"
set -- {SCRIPT}
{_RUN_SCRIPT}"""


def recipe() -> str:
    """Return the text of all programs that are run: an edit of it changes the keys of cases with packages."""
    from qcase.pipelines.apk_requests import SHIM

    return f"{PREBUILD_RECIPE}\0{SHIM}\0{_PROGRAM}"


def script_variables(names: ScriptEnv, folder: str) -> dict[str, str]:
    """Return the environment variables of a case's scripts; paths in the container. `folder`: the folder of sources, e.g. `c`."""
    return {
        names.staging_root: STAGING,
        names.case_dir: SRC,
        names.case_c_dir: f"{SRC}/{folder}" if folder else SRC,
        names.case_work_dir: BUILD,
        names.case_build_dir: f"{BUILD}/cmake",
        names.case_overlay_dir: OVERLAY,
    }


def staging_root(context: BuildContext, folder: Tree) -> Tree:
    """Return the staging root of a case whose sources are in `folder`: a writable copy if the case has packages or a script."""
    from qcase.guests.packages import install_step

    shared = context.services.staging()
    if not context.packages and not (folder / SCRIPT).is_file():
        return shared
    own = context.folder("staging", "the staging root")
    context.services.say("copying the staging root")
    copy(shared, own)
    if context.packages:
        context.services.say("installing packages")
        install_step.install(
            context.services.supply(), context.case, context.packages, own, context.scratch / "packages", context.log
        )
    return own


def run(source: Tree, name: str, image: str, staging: Tree, build: Tree, overlay: Tree, context: BuildContext) -> None:
    """Run `source/name/prebuild.sh`, if there is one, in a toolchain image. Raises `BuildError` if it fails. `name` may be empty.

    `staging` as `staging_root` gave it. The script may write to it, to the sources, to `build` and to the overlay. Raises
    `RecordedError` at its end where a run is about packages alone.
    """
    scripted = (source / (f"{name}/{SCRIPT}" if name else SCRIPT)).is_file()
    if scripted:
        _run(source, name, image, staging, build, overlay, context)
    if (scripted or context.packages) and context.services.supply().record_into is not None:
        raise RecordedError


class RecordedError(Exception):
    """Ends a `qcase lock` build once its package requests are recorded."""


def _run(source: Tree, name: str, image: str, staging: Tree, build: Tree, overlay: Tree, context: BuildContext) -> None:
    from qcase.containers.step import Mount, Step, verdict_of
    from qcase.guests.packages import install_step
    from qcase.pipelines.apk_requests import REQUESTS, ApkRequestServer

    context.services.say(SCRIPT)
    requests = context.folder("requests", "the request folder")
    fetched = context.scratch / "fetched"
    fetched.mkdir()
    place = f"{SRC}/{name}" if name else SRC
    step = Step(
        image=context.services.image(image),
        argv=("sh", "-euc", _PROGRAM, SCRIPT, place),
        mounts=(
            Mount(source, SRC, False),
            Mount(build, BUILD, False),
            Mount(overlay, OVERLAY, False),
            Mount(staging, STAGING, False),
            Mount(context.services.apk(), TOOL, True),
            Mount(requests, REQUESTS, False),
            Mount(fetched, install_step.FETCHED, True),
        ),
        env={
            **context.environment,
            **context.config.hooks.guest_package_env,
            **script_variables(context.config.script_env, name),
            "QCASE_APK_ARCH": context.arch.value,
        },
        workdir=place,
        timeout=STEP_TIMEOUT,
        memory=STEP_MEMORY,
        pids=STEP_PIDS,
        name=SCRIPT,
        log=context.log,
    )
    with ApkRequestServer(context, staging, requests, fetched) as server:
        result = context.services.engine().run(step)
    if isinstance(server.fault, BuildError):
        raise BuildError(server.fault.what, where=context.case, hint=server.fault.hint, log=result.output)
    if server.fault is not None:
        raise server.fault
    if result.exit_status != 0 or result.timed_out:
        what, hint = verdict_of(step, result)
        raise BuildError(what, where=context.case, hint=hint, log=result.output)


# --- folders ------------------------------------------------------------------------------------------------------------


def copy(source: Tree, target: Tree) -> None:
    """Copy a staging root into the empty folder `target`, where qcase may write."""
    source.copy_to(target)
