"""Containers of steps: created, started, watched, ended and removed. Also further commands in a running container."""

from __future__ import annotations

import itertools
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from qcase.containers.connection import CALL_TIMEOUT, Connection, Facts, retry_momentary
from qcase.containers.step import KILLED, Step
from qcase.containers.watch import CROWD_INTERVAL, ForkBombDetector
from qcase.errors import InfraError
from qcase.host import process
from qcase.host.process import Deadline

RUN_LABEL = "qcase.run"
LABELS = {"qcase": "1"}

# After the earliest date that a zip archive can hold, in every time zone: 1980-01-02.
SOURCE_DATE_EPOCH = 315_619_200
FIXED_ENVIRONMENT = {
    "HOME": "/tmp",  # noqa: S108 - the container's own tmpfs
    "LC_ALL": "C.UTF-8",
    "SOURCE_DATE_EPOCH": str(SOURCE_DATE_EPOCH),
    "TZ": "UTC",
}
# Soft and hard limit. The engine's default is often 2**20 or more, which slows down programs that close every possible
# descriptor. An engine without CAP_SYS_RESOURCE cannot set more than 4096, the kernel's default hard limit.
OPEN_FILES = (1024, 4096)
EXECUTION_POLL = 0.01  # seconds between two checks for the end of a command in a running container
# One sample instead of two a second apart; from API 1.41 (Docker 20.10) on.
_ONE_SHOT = {"one_shot": True}
_END_LOOKS = 50  # at `EXECUTION_POLL`
CANCELLED = "stopped, because the run ends"
_REMOVED = "somebody else removed the step's container while it ran"
_MEDDLED = "run the case again; see what else stops containers on this machine, such as a clean-up or a restart of the engine"


class Containers:
    """The containers of this run. `cancelled`: no new one is started, and whoever follows one raises."""

    def __init__(self, connection: Connection) -> None:
        self.cancelled = False
        self._connection = connection
        self._api = connection.api
        self._numbers = itertools.count(1)
        self._killed: set[str] = set()  # names of containers killed by qcase

    def start(self, life: Life, step: Step, user: int | None = None) -> None:
        """Create, attach and start a step's container. `user`: uid and gid of the step and of its /tmp, if not the caller's.

        A retry repeats all three: after a failed start the container's stream is lost. A started container is never started
        twice.
        """
        import docker

        facts = self._connection.facts

        def attempt() -> None:
            if self.cancelled:
                raise InfraError(CANCELLED, where=step.name)
            life.name = f"qcase-{process.run_id()}-{next(self._numbers)}"
            life.answered = False
            try:
                try:
                    self._api.create_container_from_config(self._config(step, facts, user), name=life.name)  # type: ignore[no-untyped-call]
                except docker.errors.APIError:
                    life.answered = True
                    raise
                life.answered = True
                life.stream = self._api.attach_socket(life.name, {"stdout": 1, "stderr": 1, "stream": 1})
                self._begin(life.name)
                if self.cancelled:  # `cancel` may have listed the containers before this one existed
                    raise InfraError(CANCELLED, where=step.name)
            except Exception:
                self._abandon(life)
                raise

        with self._connection.faults(f"starting the step {step.name}"):
            retry_momentary(attempt)

    def _abandon(self, life: Life) -> None:
        """Remove the container of a failed attempt. If the engine did not answer, it may still create it: `end` tries again."""
        life.close_stream()
        if life.answered:
            self._remove(life.name, life.warn)
        else:
            life.doubtful.append(life.name)
        life.name = ""

    def end(self, life: Life) -> None:
        """Close the stream and remove the containers of `life`, at any point of its life."""
        life.close_stream()
        for name in life.doubtful:
            self._remove(name, life.warn)
        if life.name:
            self._remove(life.name, life.warn, late=not life.answered)

    def _begin(self, name: str) -> None:
        try:
            self._api.start(name)
        except Exception:
            # The engine may have started the container although its answer was lost.
            if self._has_started(name):
                return
            raise

    def _has_started(self, name: str) -> bool:
        try:
            return not str(self._api.inspect_container(name)["State"]["StartedAt"]).startswith("0001-")
        except Exception:
            return False  # the caller raises the first error

    def ended(self, name: str, deadline: Deadline) -> bool:
        """Wait for the end of a container after the end of its stream: a process may close its output and go on.

        Return False at the deadline. Raises `InfraError` if another process removed the container.
        """
        import docker
        import requests
        import urllib3

        with self._connection.faults("waiting for the end of a step"):
            try:
                # The answer comes when the container has ended; the timeout is in whole seconds.
                self._api.wait(name, timeout=max(1, math.ceil(deadline.remaining() or 0)))
            except docker.errors.NotFound:
                if self.cancelled:
                    return True
                raise InfraError(_REMOVED, where=name, hint=_MEDDLED) from None
            except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError):
                if deadline.passed:
                    return False
                raise
        return True

    def kill(self, name: str) -> None:
        import docker

        self._killed.add(name)
        with self._connection.faults("stopping a step that takes too long"):
            try:
                retry_momentary(lambda: self._api.kill(name))
            except docker.errors.APIError as error:
                if error.status_code not in (404, 409):  # the container is removed, or has just ended
                    raise

    def state(self, name: str, step: Step) -> Mapping[str, Any]:
        """Return the engine's `State` of a container. Raises `InfraError` if another process removed the container."""
        import docker

        with self._connection.faults(f"asking how the step {step.name} ended"):
            try:
                state: Mapping[str, Any] = retry_momentary(lambda: self._api.inspect_container(name))["State"]
            except docker.errors.NotFound:
                if self.cancelled:
                    raise InfraError(CANCELLED, where=step.name) from None
                raise InfraError(_REMOVED, where=step.name, hint=_MEDDLED) from None
        return state

    def explain_end(self, name: str, state: Mapping[str, Any], step: Step) -> frozenset[str]:
        """Return the engine's event names for a container that a signal ended; empty if qcase killed it or `State` says OOM.

        Raises `InfraError` if another process killed the container, or if a restart of the engine ended it.
        """
        if self.cancelled:
            raise InfraError(CANCELLED, where=step.name)
        if state.get("OOMKilled") or name in self._killed:
            return frozenset()
        began, ended = (_moment(str(state.get(key, ""))) for key in ("StartedAt", "FinishedAt"))
        if ended is None:
            raise InfraError("the engine does not know how the step's container ended", where=step.name, hint=_MEDDLED)
        # The `kill` event may follow the `die` event. The times are of the engine's clock.
        since, until = math.floor(began or ended) - 1, math.ceil(ended) + 1
        with self._connection.faults(f"asking how the step {step.name} was killed"):
            found = list(self._api.events(since=since, until=until, filters={"container": name}, decode=True))
        actions = frozenset(str(event.get("Action", "")) for event in found)
        if "oom" not in actions:
            if "kill" in actions:
                raise InfraError("somebody else killed the step's container", where=step.name, hint=_MEDDLED)
            if "die" not in actions:
                raise InfraError("the engine was started anew, and ended the step's container", where=step.name, hint=_MEDDLED)
        return actions

    def remove_run(self, run_id: str) -> int:
        """Remove the containers of a run, running or not. Return their number."""
        with self._connection.faults("removing a run's containers"):
            found = self._api.containers(all=True, quiet=True, filters={"label": f"{RUN_LABEL}={run_id}"})
        for container in found:
            self._remove(container["Id"])
        return len(found)

    def _remove(self, name: str, warn: Callable[[str], None] | None = None, late: bool = False) -> None:
        """Remove a container, running or not. A failure is a warning. `late`: the engine may still be creating the container,
        so retry for 3 seconds.
        """
        import docker

        patience = Deadline.after(3.0 if late else 0.0)
        while True:
            try:
                with self._connection.faults(f"removing the container {name}"):
                    try:
                        retry_momentary(lambda: self._api.remove_container(name, v=True, force=True))
                        return
                    except docker.errors.APIError as error:
                        if error.status_code == 409:  # removal by `cancel` or the guardian is in progress
                            return
                        if error.status_code != 404:
                            raise
            except InfraError as error:
                # A failed removal must not hide the step's result. The guardian or the next clean-up finds the label.
                if warn is not None:
                    warn(f"a container may be left: {error}")
                return
            if patience.passed:
                return
            time.sleep(0.05)

    def _config(self, step: Step, facts: Facts, user: int | None = None) -> dict[str, Any]:
        """Return the body of the request that creates a step's container. `user`: see `begin`."""
        from docker.types import Healthcheck, LogConfig, Ulimit
        from docker.types import Mount as Bind

        tmpfs = ["rw", "exec", "nosuid", "nodev", "mode=1777", f"size={step.memory // 2}"]
        if user is not None:
            tmpfs += [f"uid={user}", f"gid={user}"]
        host = self._api.create_host_config(
            network_mode="bridge" if step.network else "none",
            cap_drop=["ALL"],
            security_opt=["no-new-privileges", *(["label=disable"] if facts.selinux else [])],
            read_only=True,
            tmpfs={"/tmp": ",".join(tmpfs)},  # noqa: S108 - the container's
            ulimits=[
                Ulimit(name="core", soft=0, hard=0),
                Ulimit(name="nofile", soft=OPEN_FILES[0], hard=OPEN_FILES[1]),
            ],
            pids_limit=step.pids if facts.pids_limit else None,
            mem_limit=step.memory if facts.memory_limit else None,
            memswap_limit=step.memory if facts.memory_limit and facts.swap_limit else None,
            init=True,
            log_config=LogConfig(type="none"),
            userns_mode="host" if facts.user_namespaces else None,
            # Mount objects, not "source:target" strings: the engine splits those at colons and creates missing sources.
            mounts=[
                Bind(m.target, self._connection.host_paths.seen(m.place), type="bind", read_only=m.read_only) for m in step.mounts
            ],
        )
        environment = {**FIXED_ENVIRONMENT, **step.env}
        config: dict[str, Any] = self._api.create_container_config(
            image=step.image,
            entrypoint=list(step.argv[:1]),  # an image's own entry point must not take the step's command as arguments
            command=list(step.argv[1:]),
            environment=[f"{key}={value}" for key, value in sorted(environment.items())],
            hostname="qcase",
            user=_caller(facts) if user is None else f"{user}:{user}",
            working_dir=step.workdir,
            labels={**LABELS, RUN_LABEL: process.run_id(), "qcase.step": step.name},
            healthcheck=Healthcheck(test=["NONE"]),
            host_config=host,
        )
        return config

    # --- watching ---------------------------------------------------------------------------------------------------------

    @contextmanager
    def stopping_fork_bombs(self, name: str, step: Step) -> Iterator[threading.Event]:
        """Watch a step's process count in a thread and stop a fork bomb. The event is set after the stop."""
        stopped, done = threading.Event(), threading.Event()

        def watch() -> None:
            detector = ForkBombDetector(step.pids)
            while not done.wait(CROWD_INTERVAL):
                try:
                    seen = self._api.stats(name, stream=False, **_ONE_SHOT)
                    current = int((seen.get("pids_stats") or {}).get("current") or 0)
                    if detector.look(current) and not done.is_set():
                        stopped.set()
                        self.kill(name)
                        return
                except Exception:  # noqa: S112 - best effort; the thread that follows the step reports engine faults
                    continue

        if not self._connection.facts.pids_limit:
            yield stopped
            return
        thread = threading.Thread(target=watch, name=f"{name}: processes", daemon=True)
        thread.start()
        try:
            yield stopped
        finally:
            done.set()
            thread.join(CALL_TIMEOUT)

    def processes(self, name: str) -> int | None:
        """Return the number of processes of a container, None if the engine does not report it."""
        try:
            return len(self._api.top(name)["Processes"])
        except Exception:  # it has no `ps`, or the container is gone
            return None

    def ran_out_of_memory(self, name: str, since: int, patience: float) -> bool:
        """Tell whether the kernel killed a process of a container for lack of memory since `since`, in nanoseconds since 1970.

        The engine's event may come late: the call waits `patience` seconds for it.
        """
        until = time.time_ns() + int(patience * 1e9)
        moments: dict[str, Any] = {"since": _nanoseconds(since), "until": _nanoseconds(until)}
        with self._connection.faults("asking whether a step had enough memory"):
            found = list(self._api.events(**moments, filters={"container": name, "event": "oom"}, decode=True))
        return any(int(event.get("timeNano", 0)) >= since for event in found)

    def execute(self, name: str, argv: list[str], step: Step) -> Execution | None:
        """Run a command in a running container, as the user of steps. Return None if the container no longer runs."""
        import docker

        with self._connection.faults(f"starting the step {step.name}"):
            try:
                made = self._api.exec_create(name, argv, user=_caller(self._connection.facts), workdir=step.workdir)
                return Execution(self, self._connection, name, step, made["Id"], self._api.exec_start(made["Id"], socket=True))
            except docker.errors.APIError as error:
                if self.cancelled:
                    raise InfraError(CANCELLED, where=step.name) from None
                if error.status_code in (404, 409):
                    return None
                raise


@dataclass
class Execution:
    """An additional command in a running container (`docker exec`). The caller calls `close` at its end."""

    containers: Containers
    connection: Connection
    container: str
    step: Step
    id: str
    stream: Any

    def close(self) -> None:
        _close_stream(self.stream)
        self.stream = None

    def ended(self, deadline: Deadline) -> bool:
        """Poll for the end of the command: the engine has no call that waits. Return False at the deadline."""
        while (about := self._inspect()) is not None and about["Running"]:
            if deadline.passed:
                return False
            time.sleep(EXECUTION_POLL)
        return True

    def status(self) -> int:
        """Return the exit status, `KILLED` if the command ended with its container. Raises `InfraError` if another process
        stopped the container.
        """
        about = self._inspect()
        if about is not None and about["ExitCode"] == 0:
            return 0
        state = self.containers.state(self.container, self.step)
        # The engine may know that the command was killed before it knows that the whole container was.
        looks = _END_LOOKS if about is not None and about["ExitCode"] == KILLED else 0
        while state.get("Running") and looks:
            looks -= 1
            time.sleep(EXECUTION_POLL)
            state = self.containers.state(self.container, self.step)
        if state.get("Running") and about is not None and about["ExitCode"] is not None:
            return int(about["ExitCode"])
        self.containers.explain_end(self.container, state, self.step)
        return KILLED

    def _inspect(self) -> Mapping[str, Any] | None:
        import docker

        with self.connection.faults(f"asking how the step {self.step.name} ended"):
            try:
                found: Mapping[str, Any] = retry_momentary(lambda: self.connection.api.exec_inspect(self.id))
            except docker.errors.NotFound:
                return None
        return found


@dataclass
class Life:
    """State of a container from before its creation to its removal. `answered`: the engine has answered the creation."""

    warn: Callable[[str], None]
    name: str = ""
    answered: bool = False
    stream: Any = None
    doubtful: list[str] = field(default_factory=list)  # container names of earlier attempts without an answer of the engine

    def close_stream(self) -> None:
        """Close the HTTP response below the stream, then the stream. Python warns if the garbage collector closes them."""
        stream, self.stream = self.stream, None
        _close_stream(stream)


def _close_stream(stream: Any) -> None:
    if stream is None:
        return
    response = getattr(stream, "_response", None)
    if response is not None:
        response.close()
    stream.close()


def _caller(facts: Facts) -> str:
    """Return the user of steps in the engine's format, `uid:gid`."""
    return "0:0" if facts.rootless else f"{os.getuid()}:{os.getgid()}"


def _nanoseconds(moment: int) -> str:
    """Format a time in nanoseconds for the engine's events API."""
    return f"{moment // 10**9}.{moment % 10**9:09}"


def _moment(text: str) -> float | None:
    """Parse a time of the engine into seconds since 1970. The engine writes the year 1 for no time: None."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment.timestamp() if moment.year > 1 else None
