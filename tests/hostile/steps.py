"""What qcase does on the host in each folder that a step can write to, after that step; on trees that a `Planter` made.

Each function gets a place of its own, makes the folder as qcase does, lets it be filled, and goes on as qcase does. It returns
what it read, or raises what qcase raises.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from qcase.arch import Arch
from qcase.config.workspace_file import Hooks, KernelBuild, SuiteConfig, WorkspaceConfig
from qcase.containers.engine import Engine
from qcase.containers.step import Mount, Step, StepResult, check_mounts
from qcase.containers.watch import CappedLog
from qcase.disk import inject, inject_plan
from qcase.disk.ext4 import Ext4Image
from qcase.errors import BuildError, ConfigError, InfraError, UsageError
from qcase.guests import kernel_build, kernel_copies, kernel_files
from qcase.guests.packages import apk, lock, supply
from qcase.guests.packages.downloads import Downloads
from qcase.guests.packages.repositories import Sources
from qcase.guests.packages.supply import PackageSupplier
from qcase.host import crash_cleanup
from qcase.host.trees import Tree
from qcase.host.workspace_folders import target_of
from qcase.pipelines import apk_requests, cargo_tree, elf_libraries, package_overlay, prebuild, sh
from qcase.pipelines.pipeline import SCRIPT, BuildContext, make_folders, read_plain
from qcase.prepare import run_folders
from qcase.prepare.prepare_case import _programs
from qcase.run.boot_plan import Logs
from qcase.store import collect, content, keys, listings
from qcase.store.content import Kind
from qcase.store.policy import Policy
from qcase.store.store import Store
from qcase.suite import discover, history
from qcase.suite.cases import Workspace
from qcase.suite.ignored import Ignored
from tests.hostile import Swapper
from tests.services import Services

Fill = Callable[[Path, Sequence[str]], None]
Race = Callable[[Path, str], Swapper]

OVERLAY = ("usr/bin/prog", "lib/ld-musl-x86_64.so.1", "etc/ld-musl-x86_64.path", "usr/lib/liba.so", "usr/bin", "etc", "lib")
STAGING = (
    "lib/apk/db/installed",
    "etc/apk/world",
    "etc/apk/repositories",
    "etc/apk/keys/key.rsa.pub",
    "usr/lib/new.so",
    "lib/apk",
)
DATABASE = "P:musl\nV:1-r0\nA:x86_64\nC:Q1AAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\n"


@dataclass(frozen=True)
class World:
    """Where one tree is tried. `place` is empty; `base` an ext4 image."""

    place: Path
    base: Path
    fill: Fill
    race: Race

    def folder(self, name: str, files: Mapping[str, str] | None = None) -> Path:
        root = self.place / name
        root.mkdir(parents=True)
        for path, text in (files or {}).items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        return root


class StandIn:
    """An engine whose step is the planter."""

    def __init__(self, act: Callable[[Step], None], status: int = 0) -> None:
        self._act = act
        self._status = status

    def run(self, step: Step, *_: object) -> StepResult:
        check_mounts(step)
        with CappedLog(step.log) as log:
            self._act(step)
            log.write(b"said\n")
        return StepResult(self._status, "said", step.log, False, False, 0.0)

    check = run

    def cancel(self) -> None: ...


def _at(step: Step, target: str) -> Path:
    return next(mount.place for mount in step.mounts if mount.target == target)


def _store(world: World) -> Store:
    return Store(world.place / "store")


def overlay_in_store(world: World) -> object:
    """A C case's overlay: completed, stored, verified, planned into an image."""
    store = _store(world)
    key = keys.key({"hostile": str(world.place)})

    def build(overlay: Tree) -> None:
        world.fill(overlay.host, OVERLAY)
        elf_libraries.complete(overlay, world.base, Arch.X86_64, "normal/x")
        make_folders(overlay, "usr/bin")

    with store.get_or_build(Kind.OVERLAY, key, build, scratch=world.place / "run", made_for="normal/x") as entry:
        for path in (store.root / "v2").rglob("*"):
            assert path.is_symlink() or not path.lstat().st_mode & 0o6000, path
        found = _programs(entry.content)
        merged = Tree(world.folder("merged"))
        entry.content.copy_to(merged)
        with Ext4Image.open(world.base) as base:
            modes = {row[0]: int(row[2], 8) for row in entry.manifest.listing if row[2]}
            plan = inject_plan.plan(base, merged, modes)
        problem = store.verify(Kind.OVERLAY, key.digest)
        assert problem == "", problem
        return found, inject.script(plan), entry.manifest.listing


def overlay_of_one_run(world: World) -> object:
    """An overlay that is not stored."""
    store = Store(world.place / "store", writes=Policy(False, False))

    def build(overlay: Tree) -> None:
        world.fill(overlay.host, OVERLAY)

    with store.get_or_build(Kind.OVERLAY, keys.key({"x": 1}), build, scratch=world.place / "run") as entry:
        return entry.manifest.listing


def stored_and_edited(world: World) -> object:
    """An entry that somebody writes to afterwards: found out, and removed."""
    store = _store(world)
    key = keys.key({"edited": 1})

    def build(overlay: Tree) -> None:
        make_folders(overlay, "usr/bin")
        (overlay / "usr/bin/prog").write_text("x")

    with store.get_or_build(Kind.OVERLAY, key, build, scratch=world.place / "run") as entry:
        inside = entry.content.host
    world.fill(inside, ("usr/bin/prog", "usr/bin"))
    collect.disk_size(store.root)
    with store.reader(Kind.OVERLAY, key.digest, warn=lambda _: None) as found:
        served = found is not None
    why = [broken.why for _, broken in collect.verify(store, {}, repair=True) if broken is not None]
    return served, why


def _supply(world: World, engine: StandIn) -> PackageSupplier:
    config = WorkspaceConfig(hooks=Hooks(guest_package_env={}))
    downloads = Downloads(world.place / "downloads")
    return PackageSupplier(
        Arch.X86_64, config, Sources(), downloads, None, cast(Any, lambda: engine), lambda _: "image", lambda _: None, {}
    )


def _root(world: World) -> Path:
    files = {
        "lib/apk/db/installed": DATABASE,
        "etc/apk/repositories": "https://example.org/main\n",
        "etc/apk/world": "musl\n",
        "etc/apk/keys/key.rsa.pub": "key",
        "usr/lib/old.so": "old",
    }
    return world.folder("staging", files)


def staging_root(world: World) -> object:
    """A staging root after a script: what qcase looks up in it to fetch packages, and what is new in it."""
    root = _root(world)
    shared = Tree(world.folder("shared"))
    own = Tree(root, what="the staging root")
    prebuild.copy(own, shared)
    world.fill(root, STAGING)
    said = _tried(
        lambda: apk.installed(own),
        lambda: apk.unusual(own),
        lambda: apk.state(own),
        lambda: supply.sources_in(own),
        lambda: apk.skeleton(own, _made(world, "skeleton")),
        lambda: prebuild.copy(own, _made(world, "copy")),
        lambda: own.followed("usr/lib/new.so"),
    )
    overlay = _made(world, "overlay")
    taken: dict[tuple[int, int], Tree] = {}
    for path in package_overlay.new_paths(shared, own):
        package_overlay._take(own, overlay, path, taken)
    return said


def _made(world: World, name: str) -> Tree:
    return Tree(world.folder(name), what=f"the {name}")


def fetch_step(world: World) -> object:
    """The fetch step's folder and apk's cache, after apk (or a package's program) has written to them."""

    def act(step: Step) -> None:
        build = _at(step, "/qcase/build")
        (build / "stage").write_text("done\n")
        extra = "P:zlib\nV:1\nA:x86_64\nC:Q1AAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\n"
        (build / "root/lib/apk/db/installed").write_text(DATABASE + extra)
        (_at(step, "/qcase/cache/apk") / "zlib-1.00000000.apk").write_text("package")
        world.fill(build, ("stage", "root/lib/apk/db/installed", "repositories", "root/etc/apk/keys"))
        world.fill(_at(step, "/qcase/cache/apk"), ("zlib-1.00000000.apk",))

    supply = _supply(world, StandIn(act))
    root = Tree(_root(world), what="the staging root")
    log = Tree(world.place, "log/fetch.log")
    return supply._downloaded("normal/x", ["zlib"], root, world.place / "scratch/fetch", log)


def requests_of_a_script(world: World) -> object:
    """The folder in which a script asks for packages, while it runs; a folder of it is swapped all the time."""
    requests = world.folder("requests")
    root = Tree(_root(world), what="the staging root")
    engine = StandIn(lambda _: None)
    services = Services(supply=lambda: _supply(world, engine), engine=lambda: cast(Engine, engine))
    context = cast(BuildContext, SimpleNamespace(case="normal/x", scratch=world.place, services=services))
    (requests / "9.ask").write_text("info\n")
    (requests / "d").mkdir()
    with (
        world.race(requests, "d"),
        apk_requests.ApkRequestServer(
            context, root, Tree(requests, what="the request folder"), world.place / "fetched"
        ) as server,
    ):
        world.fill(requests, ("1.ask", "2.ask", "1.answer", "9.answer"))
        deadline = time.monotonic() + 0.1
        while time.monotonic() < deadline and server.fault is None:
            time.sleep(0.005)
    if server.fault is not None:
        raise server.fault
    return sorted(path.name for path in requests.iterdir())


def build_folder(world: World) -> object:
    """What a compile step leaves for qcase: its stage, the list of programs, the C library."""
    out, overlay = _made(world, "build"), _made(world, "overlay")
    world.fill(out.host, ("stage", "programs", "libc.so", "cmake"))
    said = [read_plain(out / "stage"), read_plain(out / "programs")]
    if (out / "libc.so").is_file():
        elf_libraries.add_musl(overlay, out / "libc.so", Arch.X86_64)
    return said


def working_folder(world: World) -> object:
    """The sources, as a script left them, where the next step is to start."""
    source = world.folder("sources", {"c/CMakeLists.txt": "x"})
    world.fill(source, ("c/CMakeLists.txt", "c"))
    mounts = (Mount(Tree(source, what="the copy of the sources"), "/qcase/src", False),)
    check_mounts(Step(image="i", argv=("true",), mounts=mounts, workdir="/qcase/src/c", timeout=1, name="c"))
    return ()


def sources_as_committed(world: World) -> object:
    """A copy of sources that somebody has put links into."""
    source = world.folder(
        "sources", {"sh/one": "#!/bin/sh\n", "rust/Cargo.toml": "[package]\n", "rust/Cargo.lock": "version = 3\n"}
    )
    world.fill(source, ("sh/one", "rust/Cargo.lock", "rust/Cargo.toml", "rust/.cargo/config.toml", ".cargo/config"))
    tree = Tree(source, what="the copy of the sources")
    said = _tried(
        lambda: cargo_tree.case_configuration(tree, "normal/x"),
        lambda: cargo_tree.manifests_of(tree, cast(BuildContext, SimpleNamespace(case="normal/x", place=""))),
        lambda: cargo_tree.read_file(tree, cargo_tree.LOCK, "normal/x"),
        lambda: SCRIPT,
    )
    overlay = _made(world, "overlay")
    sh.install(tree / "sh", overlay, cast(BuildContext, SimpleNamespace(case="normal/x")))
    return said, [(path, (overlay / path).read_bytes()) for path, about in overlay.walk() if (overlay / path).is_file()]


def injected(world: World) -> object:
    """The folder in which an image was written."""
    build, overlay = _made(world, "build"), _made(world, "overlay")
    (overlay / "file").write_text("x")
    with Ext4Image.open(world.base) as base:
        plan = inject_plan.plan(base, overlay)
    job = inject.injection_job(plan)
    inject.stage(job, world.base, build)
    echoed = "".join(f"debugfs: {line}\n" for line in job.script.splitlines())
    for name, text in {"steps.log": "base-check 0\nwrite 0\ncheck 0\n", "write.out": echoed, "write.err": ""}.items():
        (build / name).write_text(text)
    world.fill(build.host, ("steps.log", "write.out", "write.err", inject.IMAGE))
    inject.verify(build, plan, overlay)
    return ()


def resolved_crates(world: World) -> object:
    """What cargo left where a case has no lock file."""
    store = _store(world)
    with store.get_or_build(
        Kind.DOWNLOAD,
        keys.key({"crates": 1}),
        lambda target: world.fill(target.host, ("Cargo.lock",)),
        scratch=world.place / "run",
    ) as entry:
        return read_plain(entry.content / "Cargo.lock", 1 << 20)


def logs_in_target(world: World) -> object:
    """Logs and run folders in a workspace's target/, which a kernel's build or a commit has filled."""
    workspace = world.folder("workspace", {"target/qcase/logs/x86_64/normal/x/build.log": "old"})
    below = "target/qcase/logs/x86_64/normal/x"
    world.fill(workspace, (f"{below}/build.log", f"{below}/console.log", "target/t/qemu-cases/normal/x/runs"))
    target = target_of(workspace)
    logs = Logs(target / "qcase/logs/x86_64/normal/x", below)
    logs.clear()
    logs.folder.mkdir(parents=True, exist_ok=True)
    with CappedLog(logs.build) as log:
        log.write(b"built\n")
    with logs.fresh("console.log") as file:
        file.write(b"booted\n")
    run = target.host / "t/qemu-cases/normal/x/runs/1-0"
    with run_folders.claimed(run, lambda: "1-1", lambda _: None, target) as folder:
        (folder / "overlay").mkdir()
        world.fill(folder / "overlay", OVERLAY)
    assert not run.exists()
    run_folders.sweep_folders(workspace)
    return ()


def workspace_as_committed(world: World) -> object:
    """A workspace that somebody has put links into: its files, what qcase keeps in target/, and a repository of git."""
    case = "suite/normal/x/qemu-x86_64.toml"
    files = {case: 'success_regex = ["^ok$"]\n', "qcase.toml": '[suite]\nroot = "suite"\n', "target/qcase/kernels/abc/k": "x"}
    workspace = world.folder("workspace", {**files, ".git/HEAD": "ref: refs/heads/x\n", ".git/index": ""})
    kept = ("kernels/abc/k", "kernels/lock", "memory/cases.json", "last-run.json", "logs/x86_64/normal/x/build.log")
    places = (case, "qcase.lock", "suite/normal/x/sh/run", ".git/index", ".git/config", ".git/HEAD", ".gitignore")
    world.fill(workspace, (*places, *(f"target/qcase/{name}" for name in kept)))

    def kernels_kept() -> object:
        folder = kernel_files.folder(workspace)
        with contextlib.suppress(InfraError), kernel_build._alone(folder, lambda _: None):  # a folder that is its lock, or closed
            kernel_copies._sweep(folder)
            return sorted(path.name for path in folder.iterdir())
        return ()

    def cases() -> object:
        opened = Workspace(workspace, WorkspaceConfig(suite=SuiteConfig(root="suite")))
        return [getattr(one, "error", one) for one in discover.discover(opened, Arch.X86_64, "t").cases]

    return _tried(
        kernels_kept,
        cases,
        lambda: lock.read_lock(workspace),
        lambda: history.recall(workspace, Arch.X86_64, "t"),
        lambda: sorted(Ignored().within(workspace)),
    )


def guardians_folder(world: World) -> object:
    """A run folder that the guardian removes, while its folders are swapped."""
    folder = world.folder("1-0", {".qcase-run": "1-abc"})
    (folder / "overlay/sub").mkdir(parents=True)
    world.fill(folder / "overlay", ("sub", "usr/bin"))
    with world.race(folder / "overlay", "sub"):
        crash_cleanup.remove_marked(os.fsencode(folder), "1-abc", {})
    return ()


def kernel(world: World) -> object:
    """What a kernel's build in a container leaves in the workspace."""
    workspace = world.folder("workspace", {"suite/x": "x", "target/out/kernel": "old"})

    def act(step: Step) -> None:
        (workspace / "target/out/kernel").write_bytes(b"\x7fELF\2\1\1" + bytes(11) + b"\x3e\0" + bytes(40))
        world.fill(workspace / "target", ("out/kernel",))  # target/ itself is a mount point, see `kernels._shields`

    engine = StandIn(act)
    tools = kernel_build.Tools(workspace, {}, cast(Any, lambda: engine), lambda _: "image")
    recipe = KernelBuild.model_validate({"build": "true", "output": "target/out/kernel", "where": "c"})
    group = kernel_build.Group("normal", None, Arch.X86_64, "t")
    made = kernel_build.run_build(recipe, group, tools, lambda _: None, lambda _: None)
    return made.path.read_bytes()


def raw_kernel(world: World) -> object:
    """What objcopy leaves."""
    source = world.place / "kernel"
    source.write_bytes(b"\x7fELF" + bytes(100))
    made = kernel_files.Kernel(source, kernel_files.digest(source))

    def act(step: Step) -> None:
        folder = _at(step, kernel_files.WORKSPACE)
        (folder / "kernel.bin").write_bytes(b"raw")
        world.fill(folder, ("kernel.bin",))

    target = world.place / "kernels/raw.bin"
    kernel_files.to_raw(made, target, cast(Any, StandIn(act)), "image", "normal/x")
    return target.read_bytes()


def removed_in_a_race(world: World) -> object:
    """A tree that is copied, listed, made harmless and removed while a folder of it is swapped for a link."""
    root = world.folder("tree", {"d/file": "x", "usr/bin/a": "y"})
    world.fill(root, ("d/file", "usr/bin/a"))
    tree = Tree(root, what="the overlay")
    with world.race(root, "d"):
        for _ in range(3):
            _tried(
                lambda: content.disarm(tree),
                lambda: listings.overlay_listing(tree),
                lambda: tree.copy_to(Tree(world.folder(f"copy-{time.monotonic_ns()}"))),
                lambda: (tree / "d/new").write_text("x"),
                lambda: (tree / "d/file").chmod(0o600),
            )
        crash_cleanup.remove_tree(root) if world.place.stat().st_nlink % 2 else _tried(tree.empty)
    return ()


def _tried(*calls: Callable[[], object]) -> list[object]:
    """What each call gives; a refusal of what was planted is an answer, too."""
    said: list[object] = []
    for call in calls:
        try:
            said.append(call())
        except (BuildError, ConfigError, UsageError, FileNotFoundError) as error:
            said.append(str(error))
    return said


STEPS: Sequence[Callable[[World], object]] = (
    overlay_in_store,
    overlay_of_one_run,
    stored_and_edited,
    staging_root,
    fetch_step,
    requests_of_a_script,
    build_folder,
    working_folder,
    sources_as_committed,
    injected,
    resolved_crates,
    logs_in_target,
    workspace_as_committed,
    guardians_folder,
    kernel,
    raw_kernel,
    removed_in_a_race,
)
