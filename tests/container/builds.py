"""Builds of single cases by their pipelines, without a workspace and without a guest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from qcase.arch import Arch
from qcase.config.fields import Cargo
from qcase.config.workspace_file import WorkspaceConfig
from qcase.containers.engine import Engine
from qcase.crates.pool import Pool
from qcase.guests.packages.downloads import Downloads
from qcase.guests.packages.repositories import Sources
from qcase.guests.packages.supply import PackageSupplier
from qcase.host import process
from qcase.host.trees import Tree
from qcase.pipelines import rust, sources
from qcase.pipelines.pipeline import BuildContext
from qcase.store import keys
from qcase.store.content import Kind
from qcase.store.store import Store
from tests.services import Services


def write(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


class Case:
    """One folder of sources, and builds of it. What was fetched is in a store; each build has a copy of the sources."""

    def __init__(self, root: Path, engine: Engine, images: Mapping[str, str], environ: Mapping[str, str]) -> None:
        self.root = root
        self.store = Store(root / "store")
        self.warnings: list[str] = []
        self.offline = False
        self.cargo: Cargo = "build"
        self.options: Mapping[str, tuple[str, ...]] = {}
        self.checks: Tree | None = None
        self.config = WorkspaceConfig()
        self.environ = environ
        self.engine = engine
        self._images = images
        self._number = 0
        (root / "staging").mkdir(parents=True)
        (root / "apk").mkdir()
        process.run(["mke2fs", "-q", "-t", "ext4", str(root / "base.img"), "4M"], timeout=60)

    def build(
        self,
        files: Mapping[str, str],
        arch: Arch = Arch.X86_64,
        made: Callable[[Tree, Tree, BuildContext], None] = rust.build,
        origin: str = ".",
    ) -> Path:
        """Build a case of these files; returns the overlay. `origin`: its folder in the workspace."""
        self._number += 1
        place = self.root / str(self._number)
        overlay, scratch = place / "overlay", place / "scratch"
        overlay.mkdir(parents=True)
        scratch.mkdir()
        made(
            Tree(write(place / "source", files), what="the copy of the sources"),
            Tree(overlay, what="the overlay"),
            replace(self._context(arch, scratch), origin=origin),
        )
        return overlay

    def build_within(self, files: Mapping[str, str], case: str, arch: Arch = Arch.X86_64) -> Path:
        """Build the Rust case in the folder `case` of a workspace of these files; returns the overlay."""
        self._number += 1
        place = self.root / str(self._number)
        overlay, scratch = place / "overlay", place / "scratch"
        overlay.mkdir(parents=True)
        scratch.mkdir()
        workspace = write(place / "workspace", files)
        sources.copy(sources.find(workspace / case, "rust", workspace), place / "source")
        inner = sources.place(workspace / case, "rust", workspace)
        context = replace(self._context(arch, scratch), place=inner, origin=case)
        rust.build(Tree(place / "source"), Tree(overlay, what="the overlay"), context)
        return overlay

    def _supply(self, arch: Arch) -> PackageSupplier:
        config = WorkspaceConfig()
        return PackageSupplier(
            arch=arch,
            config=config,
            sources=Sources.of(config, self.root, self.environ),
            downloads=Downloads(self.root / "downloads"),
            lock=None,
            engine=lambda: self.engine,
            image=self._images.__getitem__,
            emit=lambda _: None,
            environ=self.environ,
        )

    def _context(self, arch: Arch, scratch: Path) -> BuildContext:
        def download(key: keys.Key, name: str, fetch: Callable[[Tree], None]) -> Tree:
            with self.store.get_or_build(Kind.DOWNLOAD, key, fetch, scratch=scratch, made_for=name) as entry:
                return entry.content

        return BuildContext(
            case="normal/x",
            arch=arch,
            scratch=scratch,
            log=scratch / "log",
            config=self.config,
            base=self.root / "base.img",
            environment={},
            environ=self.environ,
            offline=self.offline,
            cargo=self.cargo,
            services=Services(
                warn=self.warnings.append,
                engine=lambda: self.engine,
                run=lambda step: self.engine.run(step),
                image=self._images.__getitem__,
                staging=lambda: Tree(self.root / "staging"),
                supply=lambda: self._supply(arch),
                apk=lambda: Tree(self.root / "apk"),
                checks=lambda: self.checks,
                download=download,
            ),
            pool=Pool(self.root / "downloads"),
            options=self.options,
        )
