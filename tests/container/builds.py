"""Builds of single cases by their pipelines, without a workspace and without a guest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from qcase import keys, process
from qcase.config import WorkspaceConfig
from qcase.containers import Engine
from qcase.content import Kind
from qcase.model import Arch
from qcase.packages import Downloads, Sources, Supply
from qcase.pipelines import Workshop, rust
from qcase.store import Store


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
        self.environ = environ
        self._engine = engine
        self._images = images
        self._number = 0
        (root / "staging").mkdir(parents=True)
        (root / "apk").mkdir()
        process.run(["mke2fs", "-q", "-t", "ext4", str(root / "base.img"), "4M"], timeout=60)

    def build(
        self, files: Mapping[str, str], arch: Arch = Arch.X86_64, made: Callable[[Path, Path, Workshop], None] = rust.build
    ) -> Path:
        """Build a case of these files; returns the overlay."""
        self._number += 1
        place = self.root / str(self._number)
        overlay, scratch = place / "overlay", place / "scratch"
        overlay.mkdir(parents=True)
        scratch.mkdir()
        made(write(place / "source", files), overlay, self._workshop(arch, scratch))
        return overlay

    def _supply(self, arch: Arch) -> Supply:
        config = WorkspaceConfig()
        return Supply(
            arch=arch,
            config=config,
            sources=Sources.of(config, self.root, self.environ),
            downloads=Downloads(self.root / "downloads"),
            lock=None,
            engine=lambda: self._engine,
            image=self._images.__getitem__,
            emit=lambda _: None,
            environ=self.environ,
        )

    def _workshop(self, arch: Arch, scratch: Path) -> Workshop:
        def download(key: keys.Key, name: str, fetch: Callable[[Path], None]) -> Path:
            with self.store.get_or_build(Kind.DOWNLOAD, key, fetch, scratch=scratch, made_for=name) as entry:
                return entry.path

        return Workshop(
            case="normal/x",
            arch=arch,
            scratch=scratch,
            log=scratch / "log",
            config=WorkspaceConfig(),
            base=self.root / "base.img",
            staging=lambda: self.root / "staging",
            engine=lambda: self._engine,
            image=self._images.__getitem__,
            environment={},
            environ=self.environ,
            offline=self.offline,
            download=download,
            say=lambda _: None,
            warn=self.warnings.append,
            supply=lambda: self._supply(arch),
            apk=lambda: self.root / "apk",
        )
