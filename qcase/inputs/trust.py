"""Trust in a workspace: the permissions of its `qcase.toml` on the host.

By default qcase trusts a workspace like a Makefile of the user. `[run] trust = "sandboxed"` restricts it; so do
`--trust sandboxed` and `QCASE_TRUST=sandboxed`, which the workspace cannot override. A sandboxed workspace (a stranger's) may
name only paths inside itself. Its code runs only in a container or in QEMU's confinement. It gets no variables of the host's
environment.
"""

from __future__ import annotations

from collections.abc import Iterator

from qcase.arch import Arch
from qcase.config.known_file import KNOWN_FILE
from qcase.config.workspace_file import WORKSPACE_FILE, Download, KernelBuild, added_toolchains, is_guest
from qcase.errors import ConfigError, Problem
from qcase.inputs import ingredients
from qcase.suite import root_images
from qcase.suite.cases import Case, Workspace

_WITH_NETWORK = ("rust", "alpine")  # toolchain images that run a step with network; those of plug-ins may


def check(workspace: Workspace) -> None:
    """Raise `ConfigError` with all forbidden settings of a sandboxed workspace. A trusted workspace passes."""
    workspace.check_target()
    if workspace.config.run.trust == "sandboxed" and (problems := [*_problems(workspace)]):
        raise ConfigError(problems)


def check_case(case: Case, workspace: Workspace) -> None:
    """Raise `ConfigError` for a case of a sandboxed workspace that uses a path outside of the workspace."""
    from qcase.vm.sandbox import inside

    if workspace.config.run.trust != "sandboxed":
        return
    file = workspace.relative(case.config_path)
    if case.config.services:
        what = 'services of the host need a QEMU that may start programs: refused under trust = "sandboxed"'
        raise ConfigError([Problem(what, file, hint="leave out host_http_server and [[qcase.services]]")])
    if case.config.own_kernel and case.config.own_kernel[-1] == "host":
        what = 'the build of its kernel would run on the host: refused under trust = "sandboxed"'
        raise ConfigError([Problem(what, file, key="qcase.kernel.where", hint='where = "c" runs it in a container')])
    named = [case.path, case.config_path, *(place.path / place.folder for place in ingredients.source_places(case))]
    for path in (*named, *root_images.files(case, workspace)):
        if not inside(path, workspace.root):
            raise ConfigError([_outside(workspace.relative(path), file, "")])


def _problems(workspace: Workspace) -> Iterator[Problem]:
    from qcase.guests.packages.lock import LOCK_FILE
    from qcase.vm.sandbox import inside

    config = workspace.config
    if config.run.network == "user":
        yield _refused("run.network", '"user" reaches whatever this machine reaches', '"restricted" or "none"')
    if config.cache.env:
        yield _refused("cache.env", "would tell builds of the host's environment", "leave it empty")
    for name in (*_WITH_NETWORK, *added_toolchains()):
        if config.toolchain.image(name) is not None:
            yield _refused(f"toolchain.{name}.image", "would run a foreign image with a network", "leave it out")
    for arch in Arch:
        yield from _guest(workspace, arch)
    named = [("suite.root", config.suite.root), ("hooks.prepare_staging_root", config.hooks.prepare_staging_root)]
    named += [("packages.repositories", value) for value in config.packages.repositories or () if "://" not in value]
    named += [("packages.keys", value) for value in config.packages.keys or ()]
    files = [workspace.root / name for name in (WORKSPACE_FILE, LOCK_FILE, KNOWN_FILE)]
    files += [workspace.suite_root / KNOWN_FILE]
    yield from (_outside(path.name, workspace.relative(path), "") for path in files if not workspace.keeps(path))
    yield from (
        _outside(path, WORKSPACE_FILE, key) for key, path in named if path and not inside(workspace.root / path, workspace.root)
    )
    for value in config.packages.repositories or ():
        if value.startswith("file:"):
            yield _outside(value, WORKSPACE_FILE, "packages.repositories")


def _guest(workspace: Workspace, arch: Arch) -> Iterator[Problem]:
    from qcase.vm.sandbox import inside

    guest = workspace.config.guest[arch]
    above = f"guest.{arch}"
    if isinstance(guest.kernel, KernelBuild):
        if guest.kernel.where == "host":
            yield _refused(f"{above}.kernel", "its build would run on the host", 'where = "c" runs it in a container')
        if any("${env:" in text for text in (guest.kernel.build, guest.kernel.output, *guest.kernel.env.values())):
            yield _refused(f"{above}.kernel", "would tell its build of the host's environment", "leave out ${env:…}")
    sources = [(key, getattr(guest, key)) for key in ("rootfs", "kernel", "initrd", "firmware", "firmware_vars")]
    sources += [(f"disks.{name}", source) for name, source in guest.disks.items()]
    for key, source in sources:
        if isinstance(source, Download) and source.url.startswith("file:"):
            yield _outside(source.url, WORKSPACE_FILE, f"{above}.{key}")
        elif isinstance(source, str) and not is_guest(source) and not inside(workspace.root / source, workspace.root):
            yield _outside(source, WORKSPACE_FILE, f"{above}.{key}")


def _refused(key: str, what: str, hint: str) -> Problem:
    return Problem(f'{what}: refused under trust = "sandboxed"', WORKSPACE_FILE, key=key, hint=hint)


def _outside(path: str, file: str, key: str) -> Problem:
    return Problem(f'{path!r} is outside of the workspace: refused under trust = "sandboxed"', file, key=key)
