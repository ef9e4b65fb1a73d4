"""Run folders, and what runs leave behind that were killed together with their guardian.

    <workspace>/target/<target>/qemu-cases/<display name>/runs/<pid>-<n>/       what one run of a case makes
    <workspace>/target/<target>/qemu-cases/<display name>/runs/<pid>-<n>.lock   held for as long as it lives

A run folder is claimed by its lock: two containers that share a workspace have processes of the same id, and the second one takes
another number. A folder is a leftover when its lock is there and free. Nothing is concluded from a process id, nor from age; a
folder without a lock is not ours, and stays.

Containers and processes are cleared away by the guardian (see `qcase.process`). Where that was killed too, or the machine went
down, the next run finds the dead one's lock in the store (`Store.dead_runs`), and removes what carries its name: the random part
of a run's name is never used again.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qcase import guardian, locks, process
from qcase.content import remove_tree
from qcase.errors import InfraError
from qcase.store import Store

_RUN = r"[0-9]+-[0-9]+"

Say = Callable[[str], None]


@contextmanager
def claimed(run_dir: Path, next_id: Callable[[], str], warn: Say) -> Iterator[Path]:
    """Make a run folder, `run_dir` or, where that name is taken, one beside it; it is gone when the `with` ends.

    Raises `InfraError` if it cannot be made. Not being able to remove it is a warning: it never hides a test's result.
    """
    fd = None
    try:
        while True:
            run_dir.parent.mkdir(parents=True, exist_ok=True)
            try:
                fd = locks.claim(_lock(run_dir))
            except FileNotFoundError:
                continue  # another run of this case ended, and took the folder above away
            except InfraError:
                break  # no locks here: nobody will take it for a leftover, nor for ours
            if fd is not None:
                break
            run_dir = run_dir.with_name(next_id())
        process.tell_guardian(f"dir {run_dir}")
        run_dir.mkdir()
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
    """Remove a run folder, and the folders above it unless others are in there."""
    try:
        remove_tree(run_dir)
        _lock(run_dir).unlink(missing_ok=True)
        process.tell_guardian(f"drop {run_dir}")
    except OSError as error:
        warn(f"the run folder {run_dir} could not be removed: {error.strerror}")
    for folder in (run_dir.parent, run_dir.parent.parent):
        try:
            folder.rmdir()
        except OSError:
            break


def sweep_folders(workspace: Path) -> int:
    """Remove the run folders of a workspace whose runs are gone. Returns how many there were."""
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
    """End the processes and remove the containers of runs that are dead. Returns how many runs there were.

    Raises `InfraError` where the engine does not answer; they are looked at again the next time.
    """
    with store.dead_runs() as dead:
        for run in dead:
            guardian.kill_processes(run)
        if any(dead.values()):
            from qcase.containers import Engine

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
    """The locks of all run folders. It does not look into run folders, which may hold whole trees."""
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
    """A sweep that cannot remove something says nothing: it was not ours to begin with."""
