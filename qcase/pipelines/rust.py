"""The pipeline `rust`: `rust/Cargo.toml`, built for musl on the guest's architecture in the toolchain image `rust`.

    prebuild.sh (if there)  ►  crates (see `qcase.pipelines.crates`)  ►  cargo build  ►  every program to /usr/bin

All programs of a package or of a workspace are built, in release mode, and linked statically.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from qcase import containers
from qcase.config import WorkspaceConfig
from qcase.containers import Mount, Step
from qcase.errors import BuildError
from qcase.keys import JSON
from qcase.model import Arch
from qcase.pipelines import (
    BUILD,
    OVERLAY,
    SRC,
    STAGING,
    STEP_MEMORY,
    STEP_PIDS,
    STEP_TIMEOUT,
    Craft,
    Workshop,
    crates,
    libraries,
    prebuild,
    read_plain,
    require_folder,
)

IMAGE = "rust"
_STAGE = "stage"  # the file in which the step says how far it is

# The image's C compiler links, where there is one; an image of others, made from rustup's toolchains, links by itself.
_PROGRAM = f"""\
exec 2>&1
umask 022
stage() {{ printf '%s' "$1" >{BUILD}/{_STAGE}; printf -- '-- %s\\n' "$1"; }}
cd {SRC}/rust
if command -v "$LINKER" >/dev/null; then
    cat {BUILD}/own.toml >>{BUILD}/cargo/config.toml
else
    cat {BUILD}/others.toml >>{BUILD}/cargo/config.toml
fi
stage 'cargo build'
[ -e Cargo.lock ] || [ ! -e {crates.CRATES}/Cargo.lock ] || cp {crates.CRATES}/Cargo.lock .
cargo build --release --offline $LOCKED --workspace --bins --target "$TARGET" --target-dir {BUILD}/target \
    --message-format json-render-diagnostics >{BUILD}/messages
stage install
sed -n 's/.*"executable":"\\([^"]*\\)".*/\\1/p' {BUILD}/messages | sort -u >{BUILD}/programs
mkdir -p {OVERLAY}/usr/bin
while read -r program; do
    install -m 755 "$program" {OVERLAY}/usr/bin/
done <{BUILD}/programs
"""


def target(arch: Arch) -> str:
    """Rust's name of what programs are built for."""
    return f"{'riscv64gc' if arch is Arch.RISCV64 else arch.value}-unknown-linux-musl"


def cargo_config(arch: Arch, *, own: bool) -> str:
    """Cargo's configuration for the target: how to link. `own`: in qcase's image, with its C compiler and its musl.

    loongarch64 goes without its vector unit: a kernel has to switch that on for its programs, and QEMU before 8.1 has none.
    """
    flags = ["-Ctarget-feature=+crt-static"]
    if arch is Arch.LOONGARCH64:
        flags.append("-Ctarget-feature=-lsx")
    flags += [f"-Clink-self-contained={'no' if own else 'yes'}"]
    flags += [f"--remap-path-prefix={crates.CRATES}/vendor=crates", f"--remap-path-prefix={BUILD}=build"]
    linker = f"{arch}-linux-musl-gcc" if own else "rust-lld"
    quoted = ", ".join(f'"{flag}"' for flag in flags)
    return f'[target.{target(arch)}]\nlinker = "{linker}"\nrustflags = [{quoted}]\n'


def environment(arch: Arch) -> dict[str, str]:
    """What build scripts of crates find: the C compiler for the target, and packages of the staging root alone."""
    name = target(arch).replace("-", "_")
    prefix = f"{arch}-linux-musl"
    return {
        f"CC_{name}": f"{prefix}-gcc",
        f"AR_{name}": f"{prefix}-ar",
        f"RANLIB_{name}": f"{prefix}-ranlib",
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
    """The digest of what is run: an edit of this module's texts moves every key, without anybody having to count up."""
    texts = [_PROGRAM, cargo_config(arch, own=True), cargo_config(arch, own=False), str(environment(arch))]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def build(source: Path, overlay: Path, workshop: Workshop) -> None:
    """Build `source/rust`, a copy that is ours to write in, into `overlay`. Raises `BuildError` with what cargo said."""
    require_folder(source / "rust", workshop.case)
    if not (source / "rust" / "Cargo.toml").is_file():
        raise BuildError("there is no rust/Cargo.toml", where=workshop.case)
    arch = workshop.arch
    fetched = crates.fetch(source, workshop)
    replaced = (fetched.folder / "config.toml").read_text(encoding="utf-8") if fetched.folder else ""
    # All of this before the first step: what a case's own programs may write to is not written to any more.
    out = workshop.scratch / "build"
    (out / "cargo").mkdir(parents=True)
    (out / "cargo" / "config.toml").write_text(f"{crates.registries(workshop.environ)}{replaced}\n", encoding="utf-8")
    (out / "own.toml").write_text(cargo_config(arch, own=True), encoding="ascii")
    (out / "others.toml").write_text(cargo_config(arch, own=False), encoding="ascii")
    root = prebuild.staging_root(workshop, source / "rust")
    prebuild.run(source, "rust", IMAGE, root, out, overlay, workshop)
    workshop.say("compiling")
    mounts = [Mount(source, SRC, False), Mount(out, BUILD, False), Mount(overlay, OVERLAY, False), Mount(root, STAGING, True)]
    if fetched.folder is not None:
        mounts.append(Mount(fetched.folder, crates.CRATES, True))
    step = Step(
        image=workshop.image(IMAGE),
        argv=("sh", "-euc", _PROGRAM),
        mounts=tuple(mounts),
        env={
            **workshop.environment,
            **prebuild.script_variables(workshop.config.script_env, "rust"),
            **environment(arch),
            "LOCKED": "--locked" if fetched.locked else "",
        },
        workdir=f"{SRC}/rust",
        timeout=STEP_TIMEOUT,
        memory=STEP_MEMORY,
        pids=STEP_PIDS,
        name="rust",
        log=workshop.log,
    )
    result = workshop.engine().run(step)
    if result.exit_status != 0 or result.timed_out:
        what, hint = containers.verdict_of(replace(step, name=read_plain(out / _STAGE) or "the container"), result)
        raise BuildError(what, where=workshop.case, hint=hint, log=result.output)
    if not read_plain(out / "programs"):
        raise BuildError(
            "no program was built", where=workshop.case, hint="a crate needs src/main.rs, src/bin/*.rs or a [[bin]] to be run"
        )
    libraries.complete(overlay, workshop.base, arch, workshop.case, staging=root)


def _settings(arch: Arch, config: WorkspaceConfig) -> Mapping[str, JSON]:
    """How cargo is called, and the names of the variables that scripts read."""
    return {"recipe": recipe(arch), "script_env": config.script_env.model_dump(mode="json")}


CRAFT = Craft(recipe=1, image=IMAGE, reads_staging=True, prebuild="rust", settings=_settings, build=build)
