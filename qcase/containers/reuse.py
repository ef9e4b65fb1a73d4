"""Reuse of containers: one container runs the steps of several subcases, one after the other.

Starting a container takes half a second and reads the programs of its image anew; a step in a running container takes a tenth of
that. A step has the same limits as in a container of its own (`qcase.containers`). No step sees leftovers of an earlier one:

    process 1 and its child program run as another user than steps do, so that no step can change or end them
    the folders that a step writes to are moved into the container's one folder before the step, and out of it afterwards:

        <folder>/src, build, overlay    a container sees <folder> as /qcase, whose own list of names it may not change
        <folder>/staging, checks        mount points of the read-only mounts, the same for all steps

    take ─ folders in ─ step ─ no process left? ─ folders out ─ give back
             │            └ kills its remaining processes when its program has ended
             └ empties /tmp, /dev/shm and /dev/mqueue; no other change there, in /dev, or in System V's shared memory?

The list of processes comes from the engine. A program of the image, which is read-only, answers the second question while no
process of a step runs; its answer must be the same as at the container's first step. A failed check and a failed step both end
the container: the next step gets a new one.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from types import TracebackType

from qcase.containers.container import OPEN_FILES, Life
from qcase.containers.engine import Engine
from qcase.containers.run_step import follow
from qcase.containers.step import DYING, KILLED, Mount, Step, StepResult, check_mounts
from qcase.containers.watch import CappedLog, DiskWatch
from qcase.events import Emit, Warned
from qcase.host import process
from qcase.host.process import Deadline
from qcase.host.trees import PlantedError, Tree

HOME = "/qcase"
NOBODY = 65532  # uid of process 1: neither root nor a user of the host
_IDLE = 2  # processes of a container in which no step runs: the engine's init, and its child program
_LOOKS = 20  # checks of the process list, until killed processes have disappeared
_POLL = 0.01
_FULL = 0o555  # the mode of <folder> while a step runs

# Program of `sh -c`. Arguments: a word, the expected state of the container (empty: any), and `env`'s arguments. It prints the
# word and the state, and runs the step if the state is as expected. It does not get the step's environment. Terminals are left
# out of the state, because their use creates and removes them. What cannot be read makes a state that no other one equals. It
# prints nothing about a step that a signal ended.
# It sets the limits itself: runc sometimes sets a wrong soft limit for a program that is started in a running container.
_PROGRAM = r"""
word=$1 expected=$2
shift 2
unknown() { cat /proc/sys/kernel/random/uuid; }
find /tmp /dev/shm /dev/mqueue -mindepth 1 -delete >/dev/null 2>&1
{
    shared=
    for list in msg sem shm; do
        while read -r line; do shared="$shared $line"; done </proc/sysvipc/$list || shared="$shared $(unknown)"
    done
    state=$({
        find /tmp /dev -path '/dev/pts/[0-9]*' -prune -o -printf '%p %y %m %U %G %l\n' &&
        ls -dln --time-style=+ /tmp /dev/shm /dev/mqueue &&
        printf '%s\n' "$shared" || unknown
    } | sha256sum) || state=
} 2>/dev/null
printf '%s %s\n' "$word" "$state"
case $expected in '' | "$state") ;; *) exit 0 ;; esac
ulimit -c 0
ulimit -Hn HARD
ulimit -Sn SOFT
exec 3>&2 2>/dev/null
(exec env "$@" 2>&3 3>&-)
status=$?
kill -9 -1
exit $status
""".replace("SOFT", str(OPEN_FILES[0])).replace("HARD", str(OPEN_FILES[1]))


@dataclass
class _Container:
    """One container, from its creation to its removal. `state`: the hash of its state at its first step."""

    engine: Engine
    life: Life
    folder: Path
    state: str = ""


@dataclass(frozen=True)
class _Key:
    """Properties that a container and a step must share for the step to run in it."""

    image: str
    memory: int
    pids: int
    fixed: tuple[tuple[str, str], ...]  # sources and targets of the read-only mounts


class _NotCleanError(Exception):
    """Raised when a container's state differs from that at its first step. The step was not started."""


@dataclass
class Containers:
    """The reusable containers of one case. The end of the `with` removes them.

    `scratch`: the run folder, on the same disk as the steps' folders. `run` is thread-safe.
    """

    engine: Callable[[], Engine]
    scratch: Callable[[], Path]
    emit: Emit | None = None
    case: str = ""
    _idle: dict[_Key, list[_Container]] = field(default_factory=dict)
    _count: int = 0
    _of_use: bool = True  # False once containers of this image or this engine turn out not to be reusable
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Containers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            idle, self._idle = self._idle, {}
        for container in (one for several in idle.values() for one in several):
            self._end(container)

    def run(self, step: Step) -> StepResult:
        """Run a step to its end, as `Engine.run` does: in a reused container if possible, else in a container of its own."""
        engine = self.engine()
        key = self._key(step) if self._of_use else None
        while key is not None:
            check_mounts(step)
            container = self._take(key)
            fresh = container is None
            try:
                if container is None:
                    container = self._new(engine, key, step)
                return self._run(engine, container, step, key)
            except _NotCleanError:
                self._end(container)
                if fresh:
                    self._of_use, key = False, None
            except BaseException:
                self._end(container)
                raise
        return engine.run(step, self.emit, self.case)

    # --- containers ---------------------------------------------------------------------------------------------------------

    def _key(self, step: Step) -> _Key | None:
        """Return the key of a reusable container for this step, None if the step needs a container of its own."""
        writable = [mount for mount in step.mounts if not mount.read_only]
        fixed = [mount for mount in step.mounts if mount.read_only]
        device = self.scratch().stat().st_dev
        for mount in writable:
            about = mount.source.facts() if isinstance(mount.source, Tree) and not mount.source.below else None
            if about is None or about.st_dev != device:
                return None
        if step.network or not writable or any(str(PurePosixPath(mount.target).parent) != HOME for mount in step.mounts):
            return None
        mounted = tuple((str(mount.source), mount.target) for mount in fixed)
        return _Key(step.image, step.memory, step.pids, mounted)

    def _take(self, key: _Key) -> _Container | None:
        with self._lock:
            idle = self._idle.get(key)
            return idle.pop() if idle else None

    def _give_back(self, key: _Key, container: _Container) -> None:
        with self._lock:
            self._idle.setdefault(key, []).append(container)

    def _new(self, engine: Engine, key: _Key, step: Step) -> _Container:
        with self._lock:
            self._count += 1
            folder = self.scratch() / f"container-{self._count}"
        folder.mkdir()
        for _, target in key.fixed:
            (folder / PurePosixPath(target).name).mkdir()
        first = replace(
            step,
            argv=("sleep", "infinity"),
            env={},
            mounts=(Mount(Tree(folder), HOME, False), *(mount for mount in step.mounts if mount.read_only)),
            workdir="/",
            pids=step.pids + _IDLE + 1,  # one more process waits for the step
            log=None,
        )
        container = _Container(engine, Life(self._warn), folder)
        try:
            engine.steps.begin(container.life, first, user=NOBODY)
        except BaseException:
            self._end(container)
            raise
        return container

    def _end(self, container: _Container | None) -> None:
        if container is not None:
            container.engine.containers.end(container.life)
            container.life.name = ""

    def _warn(self, message: str) -> None:
        if self.emit is not None:
            self.emit(Warned(message, self.case))

    # --- one step -----------------------------------------------------------------------------------------------------------

    def _run(self, engine: Engine, container: _Container, step: Step, key: _Key) -> StepResult:
        with _moved(container.folder, step):
            try:
                result = self._execute(engine, container, step)
            except BaseException:
                self._end(container)
                raise
            again = result.exit_status == 0 and not result.timed_out and container.state != "" and self._is_idle(container)
            if not again:
                self._end(container)  # before qcase reads the step's results
        names = sorted(PurePosixPath(target).name for _, target in key.fixed)
        if again and Tree(container.folder).names() == names:
            self._give_back(key, container)
        else:
            self._end(container)
        return result

    def _execute(self, engine: Engine, container: _Container, step: Step) -> StepResult:
        name, word = container.life.name, process.run_id()
        environment = [f"{variable}={value}" for variable, value in sorted(step.env.items())]
        argv = ["sh", "-c", _PROGRAM, "sh", word, container.state, *environment, *step.argv]
        began, at = time.monotonic(), time.time_ns()
        deadline = Deadline.after(step.timeout)
        with ExitStack() as stack:
            output = stack.enter_context(CappedLog(step.log))
            spoken = _AfterFirstLine(output)
            running = engine.containers.execute(name, argv, step)
            if running is None:
                raise _NotCleanError
            stack.callback(running.close)
            bomb_stopped = stack.enter_context(engine.containers.stopping_fork_bombs(name, step))
            disks = stack.enter_context(DiskWatch(step.mounts, lambda: engine.containers.kill(name)))
            timed_out = not (follow(running.stream, spoken.write, deadline) and running.ended(deadline))
            if timed_out:
                running.close()
                engine.containers.kill(name)
                running.ended(Deadline.after(DYING))
            status = running.status()
        said, _, state = spoken.first.decode("utf-8", "replace").partition(" ")
        if not timed_out and (said != word or (container.state and state != container.state)):
            raise _NotCleanError
        container.state = state
        patience = 1.0 if status == KILLED and not timed_out else 0.1
        return StepResult(
            exit_status=status,
            output=output.tail(),
            log=step.log,
            timed_out=timed_out,
            oom=status != 0 and engine.containers.ran_out_of_memory(name, at, patience),
            filled=disks.look() if status != 0 else None,
            seconds=time.monotonic() - began,
            crowded=bomb_stopped.is_set() and status == KILLED,
        )

    def _is_idle(self, container: _Container) -> bool:
        """Tell whether no process of a step is left, by the engine's list. Polls, because killed processes disappear late."""
        for _ in range(_LOOKS):
            count = container.engine.containers.processes(container.life.name)
            if count == _IDLE:
                return True
            self._of_use = self._of_use and count is not None
            time.sleep(_POLL)
        return False


class _AfterFirstLine:
    """Writer that keeps the first line of a container's output apart and passes the rest to `output`."""

    def __init__(self, output: CappedLog) -> None:
        self.first = b""
        self._output = output
        self._begun = False

    def write(self, data: bytes) -> None:
        if self._begun:
            self._output.write(data)
            return
        self.first, end, data = (self.first + data).partition(b"\n")
        self._begun = bool(end)
        if data:
            self._output.write(data)


@contextmanager
def _moved(folder: Path, step: Step) -> Iterator[None]:
    """Move a step's folders into the container's folder, and back at the end of the `with`, whatever their modes are.

    Raises `PlantedError` if the step replaced or removed one of them.
    """
    home = Tree(folder)
    there: list[tuple[Tree, Tree, os.stat_result]] = []
    home.chmod(0o755)
    try:
        for mount in step.mounts:
            if isinstance(mount.source, Tree) and not mount.read_only:
                place, about = home / PurePosixPath(mount.target).name, mount.source.facts()
                assert about is not None
                mount.source.rename(place)
                there.append((mount.source, place, about))
        home.chmod(_FULL)
        yield
    finally:
        home.chmod(0o755)
        for source, place, before in there:
            about = place.facts()
            if about is None or not os.path.samestat(about, before):
                raise PlantedError(f"{place.name} is not the folder that the step was given")
            place.chmod(0o700)  # moving a folder needs write permission on it
            place.rename(source)
            source.chmod(stat.S_IMODE(about.st_mode))
