"""Run folders, and removal of leftovers of runs that were killed together with their guardian.

    <workspace>/target/<target>/qemu-cases/<display name>/runs/<pid>-<n>/       temporary files of one run of a case
    <workspace>/target/<target>/qemu-cases/<display name>/runs/<pid>-<n>.lock   lock, held as long as the run lives

A run claims its folder by the lock: two containers that share a workspace may have the same process id, and the second one takes
another number. A folder is a leftover if its lock exists and is free. Process ids and age have no influence. A folder without a
lock is not ours, and stays.

The guardian removes containers and processes (see `qcase.host.process`). If the guardian was killed too, or the machine went
down, the next run finds the dead run's lock in the store (`Store.dead_runs`) and removes all containers and processes with its
name. The random part of a run's name is never used again.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qcase.errors import InfraError
from qcase.host import crash_cleanup, locks, process
from qcase.host.crash_cleanup import remove_tree
from qcase.host.trees import Tree
from qcase.store.store import Store

_RUN = r"[0-9]+-[0-9]+"

Say = Callable[[str], None]


@contextmanager
def claimed(run_dir: Path, next_id: Callable[[], str], warn: Say, target: Tree | None = None) -> Iterator[Path]:
    """Make a run folder: `run_dir`, or one beside it if that name is taken. The end of the `with` removes it.

    `target`: the folder that must contain it, without a link in the path. Raises `InfraError` if the folder cannot be made. A
    failed removal is a warning, so that it never hides a test's result.
    """
    fd = None
    try:
        while True:
            if target is not None:
                (target / str(run_dir.parent.relative_to(target.host))).mkdir(parents=True, exist_ok=True)
            run_dir.parent.mkdir(parents=True, exist_ok=True)
            try:
                fd = locks.claim(_lock(run_dir))
            except FileNotFoundError:
                continue  # another run of this case ended, and removed the parent folder
            except InfraError:
                break  # the file system has no locks: without a lock no run treats the folder as a leftover
            if fd is not None:
                break
            run_dir = run_dir.with_name(next_id())
        process.guard_folder(run_dir)
    except OSError as error:
        _end(run_dir, fd, warn)
        raise InfraError(f"cannot make the run folder: {error.strerror}", where=str(run_dir)) from error
    except BaseException:
        _end(run_dir, fd, warn)
        raise
    try:
        yield run_dir
    finally:
        _end(run_dir, fd, warn)


def remove(run_dir: Path, warn: Say) -> None:
    """Remove a run folder and its lock, and the two parent folders if they are empty. A failure is a warning."""
    try:
        remove_tree(run_dir)
        _lock(run_dir).unlink(missing_ok=True)
        process.release_folder(run_dir)
    except OSError as error:
        warn(f"the run folder {run_dir} could not be removed: {error.strerror}")
    for folder in (run_dir.parent, run_dir.parent.parent):
        try:
            folder.rmdir()
        except OSError:
            break


def sweep_folders(workspace: Path) -> int:
    """Remove the run folders of dead runs in a workspace. Return their number."""
    swept = 0
    for lock in _locks(workspace / "target"):
        with contextlib.suppress(OSError, InfraError):
            fd = locks.sole(lock)
            if fd is None:
                continue
            try:
                remove(lock.with_suffix(""), _ignore)
                swept += 1
            finally:
                os.close(fd)
    return swept


def sweep_runs(store: Store) -> int:
    """Kill the processes and remove the containers of dead runs. Return the number of these runs.

    Raises `InfraError` if the engine does not answer. The next sweep tries again.
    """
    with store.leases.dead_runs() as dead:
        for run in dead:
            crash_cleanup.kill_processes(run)
        if any(dead.values()):
            from qcase.containers.engine import Engine

            with Engine.connect() as engine:
                for run in dead:
                    engine.remove_run(run)
        return len(dead)


def _end(run_dir: Path, fd: int | None, warn: Say) -> None:
    remove(run_dir, warn)
    locks.close(fd)


def _lock(run_dir: Path) -> Path:
    return run_dir.with_name(f"{run_dir.name}.lock")


def _locks(target: Path) -> Iterator[Path]:
    """Yield the locks of all run folders. Does not scan the run folders themselves, which may contain whole trees."""
    pending = [cases for folder in _folders(target) for cases in _folders(folder) if cases.name == "qemu-cases"]
    while pending:
        here = pending.pop()
        if here.name == "runs":
            yield from (here / name for name in _names(here) if re.fullmatch(rf"{_RUN}\.lock", name))
        pending += [folder for folder in _folders(here) if not (here.name == "runs" and re.fullmatch(_RUN, folder.name))]


def _folders(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError), os.scandir(folder) as found:
        return [folder / item.name for item in found if item.is_dir(follow_symlinks=False)]
    return []


def _names(folder: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return os.listdir(folder)  # noqa: PTH208
    return []


def _ignore(_message: str) -> None:
    """Drop a warning. A sweep is silent about a folder that it cannot remove, because that folder belongs to another run."""


_run_numbers = itertools.count()


def resolve_target_dir(workspace: Path, target: str) -> Path:
    """Return the folder of a workspace for build and run files of a target: `<workspace>/target/<target>`."""
    return workspace / "target" / target


def next_case_run_id() -> str:
    """Return a new run id, `<pid>-<n>`. Each call gives another one."""
    return f"{os.getpid()}-{next(_run_numbers)}"


@dataclass(frozen=True)
class CaseLayout:
    """The folders of one run of one case."""

    work_dir: Path
    run_dir: Path

    @property
    def runs_dir(self) -> Path:
        return self.run_dir.parent


def folder_of(display_name: str) -> str:
    """Return the path below which the files of a case lie: its display name, with a harmless word in place of a test inside."""
    case, sign, test = display_name.partition("::")
    if not sign:
        return case
    word = re.sub("[^A-Za-z0-9_-]+", "_", test)[:60]
    return f"{case}::{word}-{hashlib.blake2b(test.encode(errors='surrogateescape'), digest_size=4).hexdigest()}"


def case_asset_layout(workspace: Path, target: str, display_name: str) -> CaseLayout:
    """Return the layout of a new run, with a run folder of its own. Creates no folders."""
    work_dir = resolve_target_dir(workspace, target) / "qemu-cases" / folder_of(display_name)
    return CaseLayout(work_dir, work_dir / "runs" / next_case_run_id())
