"""Staging roots: the unpacked base image that builds read, after the workspace's hook script ran on it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qcase import canonical
from qcase.errors import UsageError
from qcase.host import beneath
from qcase.host.trees import Tree
from qcase.inputs import ingredients
from qcase.pipelines.pipeline import BUILD, STAGING
from qcase.prepare.base_guest import BaseGuest, InputsMovedError
from qcase.prepare.case_work import CaseWork
from qcase.prepare.toolchain_choice import ToolchainChoice
from qcase.store import keys
from qcase.suite.cases import Workspace

if TYPE_CHECKING:
    from qcase.containers.engine import Engine


def hook_script(workspace: Workspace) -> Path:
    """Return the script that prepares the staging root. Raises `UsageError` if the file is missing."""
    path = ingredients.hook(workspace)
    assert path is not None
    if not path.is_file():
        raise UsageError("there is no such script", where=f"[hooks] prepare_staging_root: {workspace.relative(path)}")
    return path


@dataclass(frozen=True)
class StagingInputs:
    """The key parts of a staging root: the digest of the base image, and the hook script with what it works with.

    They enter the key of each overlay that reads the root.
    """

    base: str
    part: dict[str, canonical.JSON]

    @classmethod
    def of(cls, workspace: Workspace, guest: BaseGuest, toolchains: ToolchainChoice) -> StagingInputs:
        """Read the inputs as they are now: a user may edit the hook script during a run."""
        from qcase.pipelines import staging_root

        digest = guest.digest
        hooks = workspace.config.hooks
        if hooks.prepare_staging_root is None:
            return cls(digest, {"recipe": staging_root.STAGING_RECIPE})
        from qcase.guests.packages import fetch_step
        from qcase.pipelines import prebuild

        part: dict[str, canonical.JSON] = {
            "recipe": staging_root.STAGING_RECIPE,
            "hook": hashlib.sha256(beneath.read(hook_script(workspace))).hexdigest(),
            "runs": hashlib.sha256(prebuild.run_script().encode()).hexdigest(),
            "variable": workspace.config.script_env.staging_root,
            "environment": dict(hooks.guest_package_env),
            "image": toolchains.identity(fetch_step.IMAGE),
        }
        return cls(digest, part)


@dataclass(frozen=True)
class StagingRoots:
    """Finds staging roots in the store, or makes them. `image` returns the id of a toolchain image."""

    work: CaseWork
    workspace: Workspace
    guest: BaseGuest
    engine: Callable[[], Engine]
    image: Callable[[str], str]

    def root(self, inputs: StagingInputs) -> Tree:
        """Return the staging root: the unpacked base image, with the packages and headers that a build may read.

        The store keeps one per base image. The root is built from the inputs in a key, not from the current files: a user may
        edit those, and revert the edit before the build ends.
        """
        from qcase.pipelines import staging_root

        rootfs = self.guest.current.rootfs
        key = keys.key({"kind": "staging", "recipe": staging_root.STAGING_RECIPE, "base": inputs.base})

        def build(path: Tree) -> None:
            self.work.say("unpacking the base image")
            staging_root.unpack(rootfs, path)
            self.guest.check_digest(inputs.base)

        unpacked = self.work.read_by_all(key, build, "the staging root").called("the staging root")
        return unpacked if self.workspace.config.hooks.prepare_staging_root is None else self._hooked(unpacked, inputs)

    def _hooked(self, unpacked: Tree, inputs: StagingInputs) -> Tree:
        """Return the staging root after the workspace's hook script ran on it."""
        from qcase.containers.step import Mount, Step
        from qcase.guests.packages import fetch_step
        from qcase.pipelines import prebuild

        config = self.workspace.config
        key = keys.key({"kind": "staging", "base": inputs.base, **inputs.part})

        def build(path: Tree) -> None:
            self.work.say("preparing the staging root")
            scratch = Tree(self.work.emptied(f"hook-{key.short}"))
            text = beneath.read(hook_script(self.workspace))
            if hashlib.sha256(text).hexdigest() != inputs.part["hook"]:
                raise InputsMovedError("the script of [hooks] prepare_staging_root")
            (scratch / "hook.sh").write_bytes(text)
            prebuild.copy(unpacked, path)
            step = Step(
                image=self.image(fetch_step.IMAGE),
                argv=("sh", "-euc", prebuild.run_script(), "hook", f"{BUILD}/hook.sh"),
                mounts=(Mount(scratch, BUILD, False), Mount(path, STAGING, False)),
                env={**config.hooks.guest_package_env, config.script_env.staging_root: STAGING},
                workdir=STAGING,
                timeout=600.0,
                name="prepare_staging_root",
                log=self.work.log,
            )
            self.engine().check(step, self.work.emit, self.work.case.display_name)

        return self.work.read_by_all(key, build, "the prepared staging root").called("the staging root")
