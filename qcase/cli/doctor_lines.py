"""Lines of `qcase doctor`, and the machine and workspace that it examines."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from qcase.arch import Arch
from qcase.config import image_lock
from qcase.config.workspace_file import GuestConfig, KernelBuild, WorkspaceConfig
from qcase.errors import QcaseError
from qcase.guests.guest import needs_engine
from qcase.guests.packages import fetch_step
from qcase.model import Pipeline
from qcase.pipelines.registry import PIPELINES
from qcase.prepare.case_kernel import INJECTOR
from qcase.suite.cases import Case, Workspace
from qcase.toolchains import records

if TYPE_CHECKING:
    pass


ABSENT = "is not whole in the store yet"


UNBUILT = "is not built yet"


PATIENCE = 20.0  # seconds for an index or a mirror


class State(StrEnum):
    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True)
class Line:
    """One finding: the thing that was checked, its state, and a hint for the user."""

    what: str
    state: State
    says: str
    hint: str = ""


@dataclass(frozen=True)
class Subject:
    """The machine and workspace to examine. `arch`: the architecture of the run. `workspace` is None if there is none."""

    workspace: Workspace | None
    arch: Arch
    store: Path
    cases: tuple[Case, ...] = ()
    others: tuple[Arch, ...] = ()

    @property
    def config(self) -> WorkspaceConfig:
        return self.workspace.config if self.workspace else WorkspaceConfig()

    @property
    def kinds(self) -> set[Pipeline]:
        """Pipelines of the cases, including subcases; all pipelines without a workspace."""
        if self.workspace is None:
            return {Pipeline.PLAIN, *PIPELINES}
        return {case.pipeline for case in self.cases} | {sub.kind for case in self.cases for sub in case.subcases}

    @property
    def needs_engine(self) -> bool:
        kernel = self.guest.kernel
        in_container = isinstance(kernel, KernelBuild) and kernel.where != "host"
        made = any(case.config.to_bin or case.config.packages for case in self.cases)
        return (
            bool(self.kinds - {Pipeline.PLAIN, Pipeline.KTEST}) or needs_engine(self.guest.rootfs, kernel) or in_container or made
        )

    @property
    def images(self) -> list[str]:
        """Toolchain images that a run would use."""
        specs = [PIPELINES[kind] for kind in PIPELINES if kind in self.kinds]
        wanted = {spec.image for spec in specs if spec.image} | {INJECTOR}
        if any(spec.packages for spec in specs) or any(case.config.packages for case in self.cases):
            wanted.add(fetch_step.IMAGE)
        return sorted(wanted)

    @property
    def guest(self) -> GuestConfig:
        return self.config.guest[self.arch]

    @property
    def lock(self) -> image_lock.Lock:
        root = self.workspace.root if self.workspace else None
        return records.lock_of(root, trusted=self.config.run.trust != "sandboxed")


def guarded(what: str, check: Callable[[Subject], Iterator[Line]], subject: Subject) -> Iterator[Line]:
    """Run a check. A check that fails itself yields a bad line and does not end the others."""
    try:
        yield from check(subject)
    except QcaseError as error:
        yield bad_line(what, error)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        yield Line(what, State.BAD, f"{place}{error.strerror or error}")


def bad_line(what: str, error: QcaseError) -> Line:
    return Line(what, State.BAD, str(error), error.hint)


def version_of(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])
