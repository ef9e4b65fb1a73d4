"""The pipeline `sh`: every regular file directly in `sh/` goes to `/usr/bin`, 0755.

Nothing is built, so no container is needed.
"""

from __future__ import annotations

from pathlib import Path

from qcase.errors import BuildError
from qcase.host.trees import Tree
from qcase.model import Pipeline
from qcase.pipelines.pipeline import BuildContext, PipelineSpec, make_folders, require_folder
from qcase.suite import templates


def build(source: Tree, overlay: Tree, context: BuildContext) -> None:
    """Fill `overlay` from `source/sh`."""
    install(source / "sh", overlay, context)


def install(folder: Tree, overlay: Tree, context: BuildContext) -> None:
    """Install every regular file directly in `folder` into `/usr/bin`, also through a link. Folders are skipped."""
    require_folder(folder, context.case)
    bin_dir = make_folders(overlay, "usr/bin")
    whole = folder.parent
    assert whole is not None
    for place in folder.iterdir():
        found: Tree | None = place
        if place.is_symlink():
            found = whole.followed(f"{folder.name}/{place.name}", outside=True)
            if found is None:
                raise BuildError(
                    f"{folder.name}/{place.name} is a symbolic link to nothing in the workspace",
                    where=context.case,
                    hint="only what is in there is part of a case's sources",
                )
        if found is not None and found.is_file():
            with found.opened() as file:
                (bin_dir / place.name).copy_in(file, 0o755)


def programs(folder: Path) -> set[str]:
    """Return the names of the files in `folder`, which are the programs."""
    return {path.name for path in folder.iterdir() if path.is_file()}


def installs(folder: Path) -> frozenset[str]:
    """Return the names in `folder`: nothing else is installed."""
    return frozenset(path.name for path in folder.iterdir())


SPEC = PipelineSpec(
    name=Pipeline.SH, recipe=1, copies=True, programs=programs, installs=installs, template=templates.sh, build=build
)
