"""Run one step in one container, from its mounts to its result."""

from __future__ import annotations

import math
import os
import select
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from qcase.containers import host_paths
from qcase.containers.connection import Connection
from qcase.containers.container import CANCELLED, Containers, Life
from qcase.containers.step import DYING, KILLED, SIGNALLED, Step, StepResult, check_mounts
from qcase.containers.watch import CappedLog, DiskWatch, Frames
from qcase.errors import InfraError
from qcase.host import process
from qcase.host.process import Deadline

_LOOK = "look whether the engine sees our folders"


class StepRunner:
    """Runs steps, each in a container of its own. `run` may be called by several threads at once."""

    def __init__(self, connection: Connection, containers: Containers) -> None:
        self._connection = connection
        self._containers = containers
        self._warned: set[str] = set()

    def run(self, step: Step, warn: Callable[[str], None]) -> StepResult:
        """Run a step to its end and return its result. See `Engine.run`."""
        began = time.monotonic()
        deadline = Deadline.after(step.timeout)
        life = Life(warn)
        with ExitStack() as stack:
            output = stack.enter_context(CappedLog(step.log))
            stack.callback(self._containers.end, life)
            self.begin(life, step)
            bomb_stopped = stack.enter_context(self._containers.stopping_fork_bombs(life.name, step))
            disks = stack.enter_context(DiskWatch(step.mounts, lambda: self._containers.kill(life.name)))
            timed_out = not (follow(life.stream, output.write, deadline) and self._containers.ended(life.name, deadline))
            if timed_out:
                # Close the stream before the kill: the engine answers the kill after the container's end, and a step with
                # unread output does not end. The output up to the deadline has been read.
                life.close_stream()
                self._containers.kill(life.name)
                self._containers.ended(life.name, Deadline.after(DYING))
            if self._containers.cancelled:
                raise InfraError(CANCELLED, where=step.name)
            state = self._containers.state(life.name, step)
            status = int(state["ExitCode"])
            told = self._containers.explain_end(life.name, state, step) if status > SIGNALLED else frozenset()
        crowded = bomb_stopped.is_set() and status == KILLED
        filled = disks.look() if status != 0 else None  # the step may have hit the full disk before our check
        return StepResult(
            exit_status=status,
            output=output.tail(),
            log=step.log,
            timed_out=timed_out,
            oom=bool(state.get("OOMKilled")) or "oom" in told,
            filled=filled,
            seconds=time.monotonic() - began,
            crowded=crowded,
        )

    def begin(self, life: Life, step: Step, user: int | None = None) -> None:
        """Check a step's mounts, and start its container: see `Containers.start`."""
        check_mounts(step)
        self._look_outside(step)
        for warning in self._connection.facts.missing_limits():
            if warning not in self._warned:
                self._warned.add(warning)
                life.warn(warning)
        process.tell_guardian("engine", self._connection.socket)

        self._containers.start(life, step, user)

    def _look_outside(self, step: Step) -> None:
        """Check in a container that the engine sees our folders (same device, same inode), for mounts in doubt.

        Raises `InfraError` if the engine has another folder there.
        """
        paths = self._connection.host_paths
        mounts = [mount for mount in step.mounts if paths.doubted(mount.place)]
        if not mounts or step.name == _LOOK:
            return
        argv = ("stat", "-L", "-c", "%d:%i", "--", *(mount.target for mount in mounts))
        looked = self.run(Step(image=step.image, argv=argv, mounts=step.mounts, timeout=60, name=_LOOK), lambda _: None)
        seen = looked.output.split()
        for mount, theirs in zip(mounts, seen if len(seen) == len(mounts) else [""] * len(mounts), strict=True):
            ours = mount.place.stat()
            if theirs != f"{ours.st_dev}:{ours.st_ino}":
                raise InfraError(
                    "the container engine has another folder there than qcase: it sits outside of this container",
                    where=str(mount.source),
                    hint=host_paths.HINT,
                )
            paths.believe(mount.place)


def follow(stream: Any, write: Callable[[bytes], None], deadline: Deadline) -> bool:
    """Read a step's output to its end. Return False at the deadline, even if the step still writes."""
    descriptor = stream.fileno()
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    frames = Frames()
    while not deadline.passed:
        remaining = deadline.remaining()
        if not waiting.poll(None if remaining is None else math.ceil(remaining * 1000)):
            continue
        try:
            data = os.read(descriptor, 1 << 16)
        except ConnectionError:
            data = b""  # the engine died; the request for the step's state reports that
        if not data:
            return True
        for piece in frames.feed(data):
            write(piece)
    return False
