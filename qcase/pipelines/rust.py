"""The pipeline `rust`: `rust/Cargo.toml`, built for musl on the guest's architecture in the toolchain image `rust`.

    prebuild.sh (if there)  ►  crates (see `qcase.pipelines.rust_crates`)  ►  cargo build  ►  every program to /usr/bin

All programs of a package or of a workspace are built, in release mode, and linked statically.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qcase import parsing
from qcase.arch import Arch
from qcase.canonical import JSON
from qcase.config.workspace_file import WorkspaceConfig
from qcase.containers.step import Mount, Step, StepResult, verdict_of
from qcase.crates import manifests
from qcase.errors import BuildError
from qcase.host import beneath
from qcase.host.trees import Tree
from qcase.model import Pipeline
from qcase.pipelines import cargo_tree, elf_libraries, prebuild, rust_crates, rust_flags, rust_hints, rust_neighbours
from qcase.pipelines.pipeline import (
    BUILD,
    OVERLAY,
    SRC,
    STAGING,
    STEP_MEMORY,
    STEP_PIDS,
    STEP_TIMEOUT,
    WHOLE,
    BuildContext,
    PipelineSpec,
    in_own_paths,
    read_plain,
    require_folder,
    stage_of,
)
from qcase.suite import templates

IMAGE = "rust"
SETTINGS = "/qcase/settings"
OPTIONS = "cargo_options"  # the key of `[qcase]` with additions to cargo's command line
_STAGE = "stage"  # the file in which the step says how far it is
_MACROS = "macros"  # the file with the procedural macros whose tests were built: those are programs of the builder
_TWICE = "two programs of one name"
_CHANNEL = "the toolchain file"

# A message of cargo's about a program: its package, kind and name of its target, the target's source, whether it is a test, the
# program. A package's id ends with `#name@version`, or with `/name#version`.
_ARTIFACT = (
    r's/.*"package_id":"\([^"]*\)".*"target":{"kind":\["\([^"]*\)".*"name":"\([^"]*\)","src_path":"\([^"]*\)"'
    r'.*"test":\([a-z]*\)},.*"executable":"\([^"]*\)".*/\2\t\5\t\3\t\1\t\4\t\6/p'
)

# The image's C compiler links, where there is one; an image of others, made from rustup's toolchains, links by itself.
_PROGRAM = f"""\
exec 2>&1
umask 022
stage() {{ printf '%s' "$1" >{BUILD}/{_STAGE}; printf -- '-- %s\\n' "$1"; }}
cd "$BASE"
if [ -n "$CHANNEL" ] && ! command -v rustup >/dev/null; then
    version=$(rustc -V | cut -d ' ' -f 2)
    case $CHANNEL in
    stable | "$version") ;;
    *)
        if [ "${{version#"$CHANNEL".}}" = "$version" ]; then
            stage '{_CHANNEL}'
            printf '%s' "$version" >{BUILD}/version
            exit 1
        fi
        ;;
    esac
fi
{rust_crates.UNPACK}
if [ -e {rust_crates.CRATES}/list ]; then
    unpack_crates
    set -- --config {rust_crates.CRATES}/sources.toml
else
    set --
fi
if command -v "$LINKER" >/dev/null; then
    how=own
else
    how=others
fi
cat {SETTINGS}/$how.toml >>{BUILD}/cargo/config.toml
{rust_flags.ENCODED}=$(cat {SETTINGS}/$how.flags)
export {rust_flags.ENCODED}
[ -e "$ROOT/Cargo.lock" ] || [ ! -e {rust_crates.CRATES}/Cargo.lock ] || cp {rust_crates.CRATES}/Cargo.lock "$ROOT/"
case $VERB in
build) stage 'cargo build'; set -- "$@" build --release $MEMBERS --bins ;;
test)
    stage 'cargo test'
    # Programs with `panic = "abort"` and their tests, which unwind, need two builds of one library; a `cdylib` or `dylib` that is
    # in no registry has one file name for both, without this variable.
    export __CARGO_DEFAULT_LIB_METADATA=qcase
    set -- "$@" test --no-run $MEMBERS
    ;;
esac
eval 'set -- "$@" '"$QCASE_OPTIONS"
cargo "$@" --offline $LOCKED --target "$TARGET" --target-dir {BUILD}/target \\
    --message-format json-render-diagnostics >{BUILD}/messages
stage install
tab=$(printf '\\t')
sed -n '{_ARTIFACT}' {BUILD}/messages | while IFS="$tab" read -r kind test name package rest; do
    case $kind-$test in
    bin-false | test-true) ;;
    proc-macro-true) printf '%s ' "$name" >>{BUILD}/{_MACROS}; continue ;;
    bin-true | example-true | bench-true) name=$name-$kind-tests ;;
    *-true) name=$name-lib-tests ;;
    *) continue ;;
    esac
    case $package in
    *'#'*@*) package=${{package##*#}}; package=${{package%%@*}} ;;
    *) package=${{package%%#*}}; package=${{package##*/}} ;;
    esac
    printf '%s\\t%s\\t%s\\t%s\\n' "$name" "$test" "$package" "$rest"
done | sort >{BUILD}/found
cut -f 1 {BUILD}/found | uniq -d >{BUILD}/often
while IFS="$tab" read -r name test package rest; do
    if [ "$test" = true ] && grep -qxF -e "$name" {BUILD}/often; then name=$package-$name; fi
    printf '%s\\t%s\\n' "$name" "$rest"
done <{BUILD}/found | sort >{BUILD}/programs
cut -f 1 {BUILD}/programs | uniq -d | grep . && stage '{_TWICE}' && exit 1
mkdir -p {OVERLAY}/usr/bin
while IFS="$tab" read -r name source program; do
    install -m 755 "$program" "{OVERLAY}/usr/bin/$name"
done <{BUILD}/programs
"""


def target(arch: Arch) -> str:
    """Return Rust's target triple for `arch`."""
    return arch.spec.musl_target


def flags(arch: Arch) -> tuple[str, ...]:
    """Return the rustc flags of every build, before those of the case."""
    # The last one that fits counts.
    names = {BUILD: "build", rust_crates.PLACE: "crates", SRC: "src", WHOLE: "src"}
    remapped = (f"--remap-path-prefix={place}={name}" for place, name in names.items())
    return ("-Ctarget-feature=+crt-static", *arch.spec.rust_flags, *remapped)


def last_flags(*, own: bool) -> tuple[str, ...]:
    """Return the rustc flags after those of the case. The image decides whose musl is linked: a case may ask for Rust's own.

    `own`: in qcase's image, with its C compiler and its musl.
    """
    if not own:
        return ("-Clink-self-contained=yes",)
    return ("-Clink-self-contained=no", "-Clink-arg=-lgcc")  # for C of crates: Rust's own builtins lack __popcountdi2, for one


def cargo_config(arch: Arch, *, own: bool) -> str:
    """Return cargo's configuration of the linker for the target."""
    return f'[target.{target(arch)}]\nlinker = "{f"{arch}-linux-musl-gcc" if own else "rust-lld"}"\n'


def environment(arch: Arch) -> dict[str, str]:
    """Environment variables for build scripts of crates: the target's C compiler, and packages of the staging root alone."""
    name = target(arch).replace("-", "_")
    prefix = f"{arch}-linux-musl"
    return {
        f"CC_{name}": f"{prefix}-gcc",
        f"CXX_{name}": f"{prefix}-g++",
        f"AR_{name}": f"{prefix}-ar",
        f"RANLIB_{name}": f"{prefix}-ranlib",
        f"BINDGEN_EXTRA_CLANG_ARGS_{name}": f"--sysroot=/opt/qcase/musl/{arch} -isystem {STAGING}/usr/include",
        "CARGO_HOME": f"{BUILD}/cargo",
        "CARGO_INCREMENTAL": "0",
        "CARGO_TERM_COLOR": "never",
        "LINKER": f"{prefix}-gcc",
        "PKG_CONFIG_ALLOW_CROSS": "1",
        "PKG_CONFIG_ALL_STATIC": "1",
        "PKG_CONFIG_LIBDIR": ":".join(f"{STAGING}/usr/{folder}/pkgconfig" for folder in ("lib", "share", "local/lib")),
        "PKG_CONFIG_PATH": "",
        "PKG_CONFIG_SYSROOT_DIR": STAGING,
        "TARGET": target(arch),
    }


def recipe(arch: Arch) -> str:
    """Return the digest of the programs that are run, so that an edit of this module's texts changes every key automatically."""
    texts = [_PROGRAM, str(environment(arch))]
    for own in (True, False):
        texts += [cargo_config(arch, own=own), *flags(arch), *last_flags(own=own)]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def build(source: Tree, overlay: Tree, context: BuildContext) -> None:
    """Build the case's `rust/`, in a writable copy, into `overlay`. Raises `BuildError` with cargo's output."""
    try:
        with in_own_paths(context):
            _build(source, overlay, context)
    except BuildError as error:
        error.hint = error.hint or rust_hints.hint(error.log)
        raise


def _build(whole: Tree, overlay: Tree, context: BuildContext) -> None:
    source = whole / context.place if context.place else whole
    require_folder(source / "rust", context.case)
    if not (source / "rust" / "Cargo.toml").is_file():
        raise BuildError("there is no rust/Cargo.toml", where=context.case)
    arch = context.arch
    fetched = rust_crates.fetch(whole, context)
    # All of this comes before the first step: qcase does not write to folders after the case's own programs could write there.
    out = context.folder("build")
    (out / "cargo").mkdir()
    (out / "cargo" / "config.toml").write_text(rust_crates.registries_of(context.environ))
    toolchain = _toolchain(source, context.case)
    root = cargo_tree.root(whole, context)
    staging = prebuild.staging_root(context, source / "rust")
    prebuild.run(source, "rust", IMAGE, staging, out, overlay, context)
    context.services.say("compiling")
    mounts = [Mount(source, SRC, False), Mount(out, BUILD, False), Mount(overlay, OVERLAY, False), Mount(staging, STAGING, True)]
    mounts.append(Mount(_settings_folder(source, context), SETTINGS, True))
    options = context.options.get(OPTIONS, ())
    base = SRC
    if context.place:
        mounts.append(Mount(whole, WHOLE, False))
        base = WHOLE
    if fetched.folder is not None:
        mounts += [Mount(fetched.folder, rust_crates.CRATES, True), *fetched.mounts]
    step = Step(
        image=context.services.image(IMAGE),
        argv=("sh", "-euc", _PROGRAM),
        mounts=tuple(mounts),
        env={
            **context.environment,
            **prebuild.script_variables(context.config.script_env, "rust"),
            **environment(arch),
            "BASE": f"{base}/{cargo_tree.join(context.place, 'rust')}",
            "ROOT": f"{base}/{root}",
            "MEMBERS": "--workspace" if _takes_all(whole, root, context) else "",
            "QCASE_OPTIONS": shlex.join(options),
            "CHANNEL": toolchain.channel,
            "VERB": context.cargo,
            "LOCKED": "--locked" if fetched.locked else "",
        },
        workdir=f"{SRC}/rust",
        timeout=STEP_TIMEOUT,
        memory=STEP_MEMORY,
        pids=STEP_PIDS,
        name="rust",
        log=context.log,
    )
    result = context.services.engine().run(step)
    if result.exit_status != 0 or result.timed_out:
        if fault := rust_crates.unresolved(result.output, context.case):
            raise fault
        raise _failure(replace(step, name=stage_of(out / _STAGE)), result, out, toolchain, context)
    _check_programs(out, context)
    elf_libraries.complete(overlay, context.base, arch, context.case, staging=staging)


def _check_programs(out: Tree, context: BuildContext) -> None:
    """Raise `BuildError` if nothing was built that can be installed. Warns of tests that are left out."""
    if macros := read_plain(out / _MACROS).split():
        context.services.warn(
            f"tests of procedural macros run where the macros do, in the builder, and are not installed: {', '.join(macros)}"
        )
    if not read_plain(out / "programs"):
        raise BuildError(
            "no program was built", where=context.case, hint="a crate needs src/main.rs, src/bin/*.rs or a [[bin]] to be run"
        )


def _takes_all(source: Tree, root: str, context: BuildContext) -> bool:
    """Tell whether all members of the workspace `root` are built: it is the case's own, and nobody chooses among them."""
    own = root == cargo_tree.join(context.place, "rust")
    workspace = manifests.table(cargo_tree.load(source, cargo_tree.join(root, "Cargo.toml")), "workspace")
    return own and "default-members" not in workspace and not _chooses(context.options.get(OPTIONS, ()))


def _chooses(options: Sequence[str]) -> bool:
    """Tell whether cargo options name the packages to build."""
    return any(re.match(r"-p|--package(=|$)", option) for option in options)


def _settings_folder(source: Tree, context: BuildContext) -> Path:
    """Write cargo's settings into a folder that is mounted at `SETTINGS`, and return the folder.

    A script may have written a configuration of the case since the build began, so the flags are read here.
    """
    arch = context.arch
    asked = rust_flags.of_case(cargo_tree.case_configuration(source, context.case), context.environment, target(arch), arch)
    folder = context.scratch / "settings"
    folder.mkdir()
    for name, own in (("own", True), ("others", False)):
        (folder / f"{name}.toml").write_text(cargo_config(arch, own=own), encoding="ascii")
        every = (*flags(arch), *asked, *last_flags(own=own))
        (folder / f"{name}.flags").write_text(rust_flags.SEPARATOR.join(every), encoding="utf-8")
    return folder


@dataclass(frozen=True)
class _Toolchain:
    """Channel that a toolchain file requests, in rustup's syntax, and the place of the request. Empty without such a file."""

    channel: str = ""
    place: str = ""


def _toolchain(source: Tree, case: str) -> _Toolchain:
    """Read the nearest toolchain file of a case. Raises `BuildError` for a request that no image can fulfil."""
    for path in (f"{folder}{name}" for folder in ("rust/", "") for name in rust_neighbours.TOOLCHAIN_FILES):
        data = cargo_tree.read_file(source, path, case)
        if data is None:
            continue
        text = data.decode("utf-8", "replace")
        try:
            asked = manifests.table(manifests.parse(data), "toolchain")
        except ValueError as error:
            if path.endswith(".toml") or "\n" in text.strip():
                raise BuildError(f"{path} cannot be read: {error}", where=case) from None
            asked = {"channel": text.strip()}
        channel = str(asked.get("channel", ""))
        line = next((number for number, row in enumerate(text.splitlines(), 1) if channel and channel in row), 1)
        if "path" in asked or not re.fullmatch(r"[A-Za-z0-9._-]*", channel):
            what = f"{path}:{line} asks for a toolchain of this machine, and a build sees only its image"
            raise BuildError(what, where=case, hint="ask for a channel; [toolchain.rust] image in qcase.toml names another image")
        return _Toolchain(channel.removesuffix("-x86_64-unknown-linux-gnu"), f"{path}:{line}")
    return _Toolchain()


def _failure(step: Step, result: StepResult, out: Tree, toolchain: _Toolchain, context: BuildContext) -> BuildError:
    what, hint = verdict_of(step, result)
    if step.name == _TWICE:
        named: dict[str, list[str]] = {}
        for line in read_plain(out / "programs").splitlines():
            name, _, rest = line.partition("\t")
            named.setdefault(name, []).append(rest.partition("\t")[0].removeprefix(f"{SRC}/"))
        twice = [f"{name} ({' and '.join(paths)})" for name, paths in sorted(named.items()) if len(paths) > 1]
        what = f"two programs would be installed under one name: {', '.join(twice)}"
        hint = (
            "let one of them have another name, by [[bin]] name or [[test]] name in its Cargo.toml, or build one of the packages"
            ' alone, by [qcase] cargo_options = ["--package=…"]'
        )
    elif step.name == _CHANNEL:
        what = f"{toolchain.place} asks for Rust {toolchain.channel}, and the toolchain image has {stage_of(out / 'version')}"
        hint = "[toolchain.rust] image in qcase.toml names an image with rustup and that toolchain; or ask for what is there"
    return BuildError(what, where=context.case, hint=hint, log=result.output)


def _settings(arch: Arch, config: WorkspaceConfig) -> Mapping[str, JSON]:
    """Settings that enter the key: cargo's recipe, and the names of the variables that scripts read."""
    return {"recipe": recipe(arch), "script_env": config.script_env.model_dump(mode="json")}


def programs(folder: Path) -> set[str]:
    """Return the names of packages and binaries in a crate's manifest, and of the files in `src/bin`."""
    text = beneath.read(folder / "Cargo.toml").decode("utf-8", "replace")
    names = set(re.findall(r"(?m)^[ \t]*name[ \t]*=[ \t]*\"([^\"]+)\"", text))
    return names | {path.stem for path in (folder / "src" / "bin").glob("*.rs")}


def installs(folder: Path) -> frozenset[str] | None:
    """Return the names of all binaries of a package: those of cargo's own rules and those named in its manifest.

    None for the manifest of a workspace.
    """
    manifest = parsing.toml(beneath.text(folder / "Cargo.toml"))
    package = manifest["package"]
    bins = manifest.get("bin", [])
    if "workspace" in manifest or not isinstance(package, dict) or not isinstance(bins, list):
        return None
    found = {str(package["name"]), *(str(one["name"]) for one in bins)}
    extra = folder / "src" / "bin"
    if extra.is_dir():
        found |= {path.name.removesuffix(".rs") for path in extra.iterdir()}
    return frozenset(found)


SPEC = PipelineSpec(
    name=Pipeline.RUST,
    recipe=1,
    image=IMAGE,
    reads_staging=True,
    prebuild="rust",
    settings=_settings,
    options=(OPTIONS,),
    project_files=("Cargo.toml",),
    programs=programs,
    installs=installs,
    unread=rust_neighbours.unread,
    template=templates.rust,
    build=build,
)
