"""The container engine: run one step in one image.

A step is a command, an image and some mounts; what it may do is fixed here, once, for every step of every pipeline:

    user            the caller's uid and gid, which need not be known to the image
    network         none, unless it is a fetch step
    privileges      no capabilities, no new privileges, the engine's default seccomp profile
    file system     read-only root, the step's mounts, a tmpfs on /tmp (1777, may execute, half of the memory limit)
    limits          memory (and no swap beyond it), processes, open files, no core files, time
    environment     the image's own, FIXED_ENVIRONMENT, what the step names; nothing of the host's, proxies included
    host name       "qcase", so that no build can tell one run from the next
    process 1       the engine's init, which reaps orphans and hands signals on

Its life, and who ends it:

    create (named) ─ attach ─ start ─ read the stream to its end ─ wait ─ inspect ─ remove
                                       └ deadline passed: close the stream, kill

The name is ours, so that a container can be removed whose creation was interrupted before the engine had answered. `remove` is
in a `finally`; for a qcase that was killed with KILL, the guardian removes what carries the label `qcase.run=<run id>`.
The output travels over the attached stream alone: the engine stores none (log driver `none`), and attaching before the start
loses nothing. A step that writes faster than we read is held up by the engine.

Where qcase runs in a container itself and the engine sits outside of it, mounts are translated (see `qcase.outside`).

Engines other than a rootful Docker are provided for by what `info` says, but were not at hand to be tried: a rootless one (where
uid 0 of the container is the caller), one with user namespaces (which are switched off for our containers), one with SELinux.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from qcase import outside, process
from qcase.errors import BuildError, InfraError, UsageError
from qcase.events import Emit, Warned
from qcase.process import Deadline

if TYPE_CHECKING:  # the docker package takes 100 ms to import, and a warm run needs no engine
    import docker

T = TypeVar("T")

RUN_LABEL = "qcase.run"
# What a step with network, and the engine's builder, may know of the host's. The builder keeps them out of images and of its
# own cache's keys.
PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy")
LABELS = {"qcase": "1"}

# After the earliest date that a zip archive can hold, in every time zone: 1980-01-02.
SOURCE_DATE_EPOCH = 315_619_200
FIXED_ENVIRONMENT = {
    "HOME": "/tmp",  # noqa: S108 - in the container, and its own
    "LC_ALL": "C.UTF-8",
    "SOURCE_DATE_EPOCH": str(SOURCE_DATE_EPOCH),
    "TZ": "UTC",
}

GIB = 1 << 30
DEFAULT_MEMORY = 2 * GIB
DEFAULT_PIDS = 1024
# Soft, hard. The engine's own is often 2**20 and more, and programs that close each possible file crawl. More than 4096, the
# kernel's own hard limit, is what an engine without CAP_SYS_RESOURCE cannot give.
OPEN_FILES = (1024, 4096)
LOG_LIMIT = 16 << 20  # bytes of a step's output that its log file keeps
TAIL_LIMIT = 64 << 10  # bytes of it that a result carries

FREE_FLOOR = 256 << 20  # bytes that a step has to leave free on each disk that it writes to; never more than a twentieth of it
DISK_LOOK = 0.5  # seconds between two looks

CALL_TIMEOUT = 120.0  # seconds for one answer of the engine; creating a container on a busy disk can take long
CROWD_INTERVAL = 2.0  # seconds between two looks at how many processes a step has
CROWD_LOOKS = 3  # looks in a row at which it has nearly all that it may have: no build lives like that, a fork bomb does
CROWD_SHARE = 0.9
STILL_LOOKS = (
    10  # looks in a row at which it has as many as before, and STILL_SHARE of what it may have: something else is used up
)
STILL_SHARE = 0.25
KILLED = 128 + 9
DYING = 30.0  # seconds from a kill to the end; the kernel has memory to free, and the engine layers to unmount


@dataclass(frozen=True)
class Mount:
    """A folder or file of the host at a fixed place of the container. The source has to be there beforehand."""

    source: Path
    target: str
    read_only: bool = True


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command in one image. `image` is an image id; `timeout` in seconds, `memory` in bytes.

    `name` is for messages, e.g. "configure". Everything that it prints goes to the file `log`, its middle cut out beyond
    `LOG_LIMIT`. Standard output and standard error travel apart, so a line of one can overtake a line of the other: a shell
    program whose log should keep the order says `exec 2>&1` first.
    """

    image: str
    argv: tuple[str, ...]
    mounts: tuple[Mount, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = "/"
    network: bool = False
    timeout: float
    memory: int = DEFAULT_MEMORY
    pids: int = DEFAULT_PIDS
    name: str
    log: Path | None = None


@dataclass(frozen=True)
class StepResult:
    """How a step ended. `exit_status` is 128 + n after signal n; `output` is the last `TAIL_LIMIT` bytes of what it printed.

    `oom` says that the kernel killed some process of it for memory, which the step may have survived with status 0. Status 137
    without a time-out counts as that too: where the whole step dies of it at once, the engine often misses the kernel's word,
    and nobody else sends KILL. `crowded`: it stood at a limit of processes for a while, as a fork bomb does, and was stopped.
    """

    exit_status: int
    output: str
    log: Path | None
    timed_out: bool
    oom: bool
    seconds: float
    crowded: bool = False
    filled: Path | None = None  # on whose disk it left too little: it was stopped, or failed of it

    @property
    def out_of_processes(self) -> bool:
        """Whether it failed and complained that it could not fork. The engine has no flag for that limit."""
        return self.crowded or (self.exit_status != 0 and _FORK_FAILED.search(self.output) is not None)


_FORK_FAILED = re.compile(r"(?i)(can't|cannot|unable to) fork|fork: retry|fork failed|vfork: |pthread_create failed")


class Engine:
    """A connection to the container engine. `run` may be called by several threads at once."""

    def __init__(self, api: docker.APIClient, path: str, workspace: Path | None = None) -> None:
        self.api = api
        self.socket = path
        self._workspace = workspace
        self._facts: Facts | None = None
        self._places: outside.Places | None = None
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._cancelled = False
        self._warned: set[str] = set()

    @classmethod
    def connect(cls, workspace: Path | None = None) -> Engine:
        """Connect to the engine that `DOCKER_HOST` names, else to the machine's own. `InfraError` where none answers.

        `workspace`: the folder that `QCASE_HOST_WORKSPACE` speaks of.
        """
        path = socket_path(os.environ)
        _knock(path)
        import docker

        try:
            api = docker.APIClient(base_url=f"unix://{path}", version="auto", timeout=int(CALL_TIMEOUT))
        except docker.errors.DockerException as error:
            raise InfraError(f"what answers here is no container engine: {error}", where=path, hint=_START_HINT) from None
        return cls(api, path, workspace)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.api.close()

    @property
    def version(self) -> str:
        return self.facts.version

    @property
    def facts(self) -> Facts:
        """What the engine says of itself; asked once."""
        with self._lock:
            if self._facts is None:
                with self.faults("asking the engine what it can do"):
                    self._facts = Facts.of(_persistently(self.api.info))
            return self._facts

    @property
    def places(self) -> outside.Places:
        """Where the engine sees our folders; found out once."""
        import docker

        def inspect(container: str) -> Mapping[str, Any] | None:
            try:
                found: Mapping[str, Any] = _persistently(lambda: self.api.inspect_container(container))
            except docker.errors.NotFound:
                return None
            return found

        with self._lock:
            if self._places is None:
                with self.faults("asking the engine for the mounts of this container"):
                    self._places = outside.places(inspect, os.environ, workspace=self._workspace, socket_path=self.socket)
            return self._places

    def image_id(self, reference: str) -> str | None:
        """The id (`sha256:…`) of an image by its name or id; None where the engine does not have it."""
        import docker

        with self.faults(f"looking for the image {reference}"):
            try:
                return str(_persistently(lambda: self.api.inspect_image(reference))["Id"])  # type: ignore[no-untyped-call]
            except docker.errors.NotFound:
                return None

    def labelled_image(self, reference: str, label: str, value: str) -> str | None:
        """The id of an image by its name, if it carries a label of this value."""
        import docker

        with self.faults(f"looking for the image {reference}"):
            try:
                found = _persistently(lambda: self.api.inspect_image(reference))  # type: ignore[no-untyped-call]
            except docker.errors.NotFound:
                return None
        labels = (found.get("Config") or {}).get("Labels") or {}
        return str(found["Id"]) if labels.get(label) == value else None

    def image_exists(self, reference: str) -> bool:
        return self.image_id(reference) is not None

    def run(self, step: Step, emit: Emit | None = None, case: str = "") -> StepResult:
        """Run a step to its end, whatever that is; the caller decides what a failure means.

        `InfraError` where the step could not be run: a mount that is not there, an engine that refuses or dies, a full disk.
        When this returns or raises, the container is gone.
        """
        check_mounts(step)
        self._look_outside(step)
        facts = self.facts

        def warn(message: str) -> None:
            if emit is not None:
                emit(Warned(message, case))

        for warning in facts.missing_limits():
            if warning not in self._warned:
                self._warned.add(warning)
                warn(warning)
        process.tell_guardian(f"engine {self.socket}")
        began = time.monotonic()
        deadline = Deadline.after(step.timeout)
        life = _Life(warn)
        with ExitStack() as stack:
            output = stack.enter_context(CappedLog(step.log))
            stack.callback(self._end, life)
            self._begin(life, step, facts)
            crowd = stack.enter_context(self._crowd(life.name, step, facts))
            disks = stack.enter_context(DiskWatch(step.mounts, lambda: self._kill(life.name)))
            timed_out = not (_follow(life.stream, output, deadline) and self._ended(life.name, deadline))
            if timed_out:
                # Closed first: the engine answers a kill when the container has ended, which a step that still has something to
                # say does not while nobody reads it. What it had said in time has been read.
                life.close_stream()
                self._kill(life.name)
                self._ended(life.name, Deadline.after(DYING))
            if self._cancelled:
                raise InfraError(_CANCELLED, where=step.name)
            with self.faults(f"asking how the step {step.name} ended"):
                state = _persistently(lambda: self.api.inspect_container(life.name))["State"]
        status = int(state["ExitCode"])
        crowded = crowd.is_set() and status == KILLED
        filled = disks.look() if status != 0 else None  # it may have found the disk full before we did
        return StepResult(
            exit_status=status,
            output=output.tail(),
            log=step.log,
            timed_out=timed_out,
            oom=bool(state.get("OOMKilled")) or (status == KILLED and not timed_out and not crowded and filled is None),
            filled=filled,
            seconds=time.monotonic() - began,
            crowded=crowded,
        )

    def check(self, step: Step, emit: Emit | None = None, case: str = "") -> StepResult:
        """Run a step that has to succeed, else `BuildError` with the end of what it said, and the limit that it hit."""
        result = self.run(step, emit, case)
        if result.exit_status == 0 and not result.timed_out:
            return result
        what, hint = verdict_of(step, result)
        raise BuildError(what, where=case, hint=hint, log=result.output)

    def cancel(self) -> None:
        """Stop every step of this run, and begin no new one: `run` in other threads raises. For Ctrl-C in the main thread."""
        self._cancelled = True
        self.remove_run(process.run_id())

    def remove_run(self, run_id: str) -> int:
        """Remove the containers of a run, running or not. Returns how many there were."""
        with self.faults("removing a run's containers"):
            found = self.api.containers(all=True, quiet=True, filters={"label": f"{RUN_LABEL}={run_id}"})
        for container in found:
            self._remove(container["Id"])
        return len(found)

    @contextmanager
    def faults(self, doing: str) -> Iterator[None]:
        """Say what the engine refuses as an `InfraError`. `NotFound` inside it is for the caller to catch first."""
        import docker
        import requests
        import urllib3

        try:
            yield
        except docker.errors.APIError as error:
            text = str(error.explanation or error)
            raise InfraError(text.strip(), where=doing, hint=hint_for(text, self._facts)) from None
        except _gone_errors(docker, requests, urllib3) as error:
            raise InfraError(
                f"the engine went away or did not answer: {_innermost(error)}",
                where=doing,
                hint=f"look whether it still runs behind {self.socket}, and start it again",
            ) from None

    def _look_outside(self, step: Step) -> None:
        """Where it is not known whether the engine sees our folders, look, in a container: the same device, the same inode."""
        places = self.places
        mounts = [mount for mount in step.mounts if places.doubted(mount.source)]
        if not mounts or step.name == _LOOK:
            return
        argv = ("stat", "-L", "-c", "%d:%i", "--", *(mount.target for mount in mounts))
        looked = self.run(Step(image=step.image, argv=argv, mounts=step.mounts, timeout=60, name=_LOOK))
        seen = looked.output.split()
        for mount, theirs in zip(mounts, seen if len(seen) == len(mounts) else [""] * len(mounts), strict=True):
            ours = mount.source.stat()
            if theirs != f"{ours.st_dev}:{ours.st_ino}":
                raise InfraError(
                    "the container engine has another folder there than qcase: it sits outside of this container",
                    where=str(mount.source),
                    hint=outside.HINT,
                )
            places.believe(mount.source)

    @contextmanager
    def _crowd(self, name: str, step: Step, facts: Facts) -> Iterator[threading.Event]:
        """Stop a step whose processes are a `Crowd`. Set: that was done."""
        stopped, done = threading.Event(), threading.Event()

        def watch() -> None:
            crowd = Crowd(step.pids)
            while not done.wait(CROWD_INTERVAL):
                try:
                    seen = self.api.stats(name, stream=False, **_ONE_SHOT)
                    current = int((seen.get("pids_stats") or {}).get("current") or 0)
                    if crowd.look(current) and not done.is_set():
                        stopped.set()
                        self._kill(name)
                        return
                except Exception:  # noqa: S112 - it only looks; who follows the step hears of what is wrong
                    continue

        if not facts.pids_limit:
            yield stopped
            return
        thread = threading.Thread(target=watch, name=f"{name}: processes", daemon=True)
        thread.start()
        try:
            yield stopped
        finally:
            done.set()
            thread.join(CALL_TIMEOUT)

    # --- the life of one container --------------------------------------------------------------------------------------

    def _begin(self, life: _Life, step: Step, facts: Facts) -> None:
        """Create, attach, start.

        Tried again as a whole: a container whose start failed has lost its stream. One that did start is never started twice.
        """
        import docker

        def attempt() -> None:
            if self._cancelled:
                raise InfraError(_CANCELLED, where=step.name)
            life.name = f"qcase-{process.run_id()}-{next(self._numbers)}"
            life.answered = False
            try:
                try:
                    self.api.create_container_from_config(self._config(step, facts), name=life.name)  # type: ignore[no-untyped-call]
                except docker.errors.APIError:
                    life.answered = True
                    raise
                life.answered = True
                life.stream = self.api.attach_socket(life.name, {"stdout": 1, "stderr": 1, "stream": 1})
                self._start(life.name)
                if self._cancelled:  # after `cancel` had looked for what there is
                    raise InfraError(_CANCELLED, where=step.name)
            except Exception:
                self._abandon(life)
                raise

        with self.faults(f"starting the step {step.name}"):
            _persistently(attempt)

    def _abandon(self, life: _Life) -> None:
        """Clear away after an attempt that failed. What the engine did not answer it may still do: look again at the end."""
        life.close_stream()
        if life.answered:
            self._remove(life.name, life.warn)
        else:
            life.doubtful.append(life.name)
        life.name = ""

    def _end(self, life: _Life) -> None:
        """Close and remove what there is of it, at any point of its life."""
        life.close_stream()
        for name in life.doubtful:
            self._remove(name, life.warn)
        if life.name:
            self._remove(life.name, life.warn, late=not life.answered)

    def _config(self, step: Step, facts: Facts) -> dict[str, Any]:
        """The body of the request that creates a step's container."""
        from docker.types import Healthcheck, LogConfig, Ulimit
        from docker.types import Mount as Bind

        host = self.api.create_host_config(
            network_mode="bridge" if step.network else "none",
            cap_drop=["ALL"],
            security_opt=["no-new-privileges", *(["label=disable"] if facts.selinux else [])],
            read_only=True,
            tmpfs={"/tmp": f"rw,exec,nosuid,nodev,mode=1777,size={step.memory // 2}"},  # noqa: S108 - the container's
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
            # The list of mounts, not "source:target" strings: these would be split at colons, and missing sources created.
            mounts=[Bind(m.target, self.places.seen(m.source), type="bind", read_only=m.read_only) for m in step.mounts],
        )
        environment = {**FIXED_ENVIRONMENT, **step.env}
        config: dict[str, Any] = self.api.create_container_config(
            image=step.image,
            entrypoint=list(step.argv[:1]),  # an image's own entry point must not take the step's command as arguments
            command=list(step.argv[1:]),
            environment=[f"{key}={value}" for key, value in sorted(environment.items())],
            hostname="qcase",
            user="0:0" if facts.rootless else f"{os.getuid()}:{os.getgid()}",
            working_dir=step.workdir,
            labels={**LABELS, RUN_LABEL: process.run_id(), "qcase.step": step.name},
            healthcheck=Healthcheck(test=["NONE"]),
            host_config=host,
        )
        return config

    def _start(self, name: str) -> None:
        try:
            self.api.start(name)
        except Exception:
            # The answer may have been lost on its way, and what it says have been done.
            if self._has_started(name):
                return
            raise

    def _has_started(self, name: str) -> bool:
        try:
            return not str(self.api.inspect_container(name)["State"]["StartedAt"]).startswith("0001-")
        except Exception:
            return False  # then the first error is the one to tell

    def _ended(self, name: str, deadline: Deadline) -> bool:
        """Wait for a container whose stream has ended: a process may close its output and go on. False at the deadline."""
        import docker
        import requests
        import urllib3

        with self.faults("waiting for the end of a step"):
            try:
                # The answer comes when the container has ended; the timeout is in whole seconds.
                self.api.wait(name, timeout=max(1, math.ceil(deadline.remaining() or 0)))
            except docker.errors.NotFound:
                if self._cancelled:
                    return True
                raise
            except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError):
                if deadline.passed:
                    return False
                raise
        return True

    def _kill(self, name: str) -> None:
        import docker

        with self.faults("stopping a step that takes too long"):
            try:
                _persistently(lambda: self.api.kill(name))
            except docker.errors.APIError as error:
                if error.status_code not in (404, 409):  # gone, or ended a moment ago
                    raise

    def _remove(self, name: str, warn: Callable[[str], None] | None = None, late: bool = False) -> None:
        """Remove a container, running or not. `late`: the engine may still be creating it, so look again for a while."""
        import docker

        patience = Deadline.after(3.0 if late else 0.0)
        while True:
            try:
                with self.faults(f"removing the container {name}"):
                    try:
                        _persistently(lambda: self.api.remove_container(name, v=True, force=True))
                        return
                    except docker.errors.APIError as error:
                        if error.status_code == 409:  # somebody else removes it: `cancel`, or the guardian
                            return
                        if error.status_code != 404:
                            raise
            except InfraError as error:
                # It must not hide what the step said. The guardian, or the next clean-up, finds it by its label.
                if warn is not None:
                    warn(f"a container may be left: {error}")
                return
            if patience.passed:
                return
            time.sleep(0.05)


@dataclass
class _Life:
    """A container from before its creation to its removal. `answered` once the engine has said whether it is created."""

    warn: Callable[[str], None]
    name: str = ""
    answered: bool = False
    stream: Any = None
    doubtful: list[str] = field(default_factory=list)  # earlier attempts that the engine did not answer

    def close_stream(self) -> None:
        """Close the HTTP response that the stream was, then the stream; left to the garbage collector, that warns."""
        stream, self.stream = self.stream, None
        if stream is None:
            return
        response = getattr(stream, "_response", None)
        if response is not None:
            response.close()
        stream.close()


# One look instead of two a second apart; from API 1.41 on, which is Docker 20.10's.
_ONE_SHOT = {"one_shot": True}
_CANCELLED = "stopped, because the run ends"
_LOOK = "look whether the engine sees our folders"


@dataclass(frozen=True)
class Facts:
    """What an engine can do, from its `info`."""

    version: str
    root: str
    rootless: bool
    user_namespaces: bool
    selinux: bool
    memory_limit: bool
    swap_limit: bool
    pids_limit: bool

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> Facts:
        options = {part for option in info.get("SecurityOptions") or () for part in str(option).split(",")}
        return cls(
            version=str(info.get("ServerVersion", "")),
            root=str(info.get("DockerRootDir", "")),
            rootless="name=rootless" in options,
            user_namespaces="name=userns" in options,
            selinux="name=selinux" in options,
            memory_limit=bool(info.get("MemoryLimit")),
            swap_limit=bool(info.get("SwapLimit")),
            pids_limit=bool(info.get("PidsLimit")),
        )

    def missing_limits(self) -> list[str]:
        """Warnings: the limits of the contract that this engine cannot set."""
        missing = [what for what, there in (("memory", self.memory_limit), ("processes", self.pids_limit)) if not there]
        return (
            [f"the container engine cannot limit {' or '.join(missing)}: a step is held by its time limit alone"]
            if missing
            else []
        )


def socket_path(environ: Mapping[str, str]) -> str:
    """The path of the engine's socket: `DOCKER_HOST`, else the machine's, else the user's own (a rootless engine)."""
    host = environ.get("DOCKER_HOST", "").strip()
    if host.startswith("unix://"):
        return "/" + host.removeprefix("unix://").lstrip("/")
    if host:
        raise UsageError(
            "qcase needs an engine on this machine: a step sees the host's folders, and a remote engine has others",
            where=f"DOCKER_HOST={host}",
            hint="unset DOCKER_HOST, or set it to unix:///path/of/the/socket",
        )
    machine = "/var/run/docker.sock"
    own = f"{environ.get('XDG_RUNTIME_DIR', '')}/docker.sock"
    return own if not Path(machine).exists() and environ.get("XDG_RUNTIME_DIR") and Path(own).exists() else machine


_START_HINT = "start it (`make setup` in a checkout of qcase, or `systemctl start docker`), or set DOCKER_HOST to its socket"


def _knock(path: str) -> None:
    """See that somebody listens, for a message that says what is wrong. The docker package wraps each fault five times."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
            knock.settimeout(10)
            knock.connect(path)
    except PermissionError:
        raise InfraError(
            "you may not talk to the container engine",
            where=path,
            hint="add yourself to the group docker (`sudo usermod -aG docker $USER`) and log in again",
        ) from None
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise InfraError(f"no container engine answers: {reason}", where=path, hint=_START_HINT) from None


def check_mounts(step: Step) -> None:
    """`InfraError` unless each mount's source is there, and each place below a mount that the engine would create, as root."""
    assert step.argv
    for mount in step.mounts:
        if not mount.source.exists():
            raise InfraError("to be mounted, and not there", where=str(mount.source), hint=f"the step {step.name} needs it")
        try:
            str(mount.source).encode()
        except UnicodeEncodeError:
            raise InfraError("a container engine takes paths in UTF-8 only", where=repr(str(mount.source))) from None
    for place in (*(mount.target for mount in step.mounts), step.workdir):
        on_host = _on_host(place, step.mounts)
        if on_host is not None and not on_host.exists():
            raise InfraError(
                f"the step {step.name} needs {place}, and not there, the engine would create it as root", where=str(on_host)
            )


def _on_host(place: str, mounts: tuple[Mount, ...]) -> Path | None:
    """Where a path of the container is on the host, by the innermost mount strictly above it; None outside all mounts."""
    path = PurePosixPath(place)
    above = [m for m in mounts if PurePosixPath(m.target) in path.parents]
    if not above:
        return None
    innermost = max(above, key=lambda m: len(PurePosixPath(m.target).parts))
    return innermost.source / path.relative_to(innermost.target)


class Crowd:
    """Tells from looks at how many processes a step has whether it is a fork bomb.

    That never ends by itself: it would keep the machine busy until the step's time is up, half an hour for a build. It stays
    at the limit of processes, or below it where another limit comes first: with fuse-overlayfs each process takes a dozen of
    the driver's open files, and the bomb goes on with processes that cannot open what they need.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._full = 0
        self._still = 0
        self._before = 0

    def look(self, count: int) -> bool:
        """The next look. True: it is one."""
        same = abs(count - self._before) <= self._limit / 100
        self._full = self._full + 1 if count >= self._limit * CROWD_SHARE else 0
        self._still = self._still + 1 if count >= self._limit * STILL_SHARE and same else 0
        self._before = count
        return self._full >= CROWD_LOOKS or self._still >= STILL_LOOKS


def verdict_of(step: Step, result: StepResult) -> tuple[str, str]:
    """What to say of a step that failed, and the hint."""
    if result.timed_out:
        return f"{step.name} took longer than {step.timeout:g} s and was stopped", ""
    if result.crowded:
        return (
            f"{step.name} stayed at too many of the {step.pids} processes that it may have, as a fork bomb does; it was stopped",
            "",
        )
    if result.filled is not None:
        return (
            f"{step.name} filled the disk (status {result.exit_status})",
            f"the disk is that of {result.filled}; a step is stopped when less than {_size(FREE_FLOOR)}, or a twentieth, is left",
        )
    if result.oom and result.exit_status == KILLED:
        return (
            f"{step.name} was killed, most likely because it needs more than the {_size(step.memory)} of memory that it may use",
            "",
        )
    if result.oom:
        return (
            f"{step.name} needed more than the {_size(step.memory)} of memory that it may use (status {result.exit_status})",
            "",
        )
    if result.out_of_processes:
        return f"{step.name} needed more than the {step.pids} processes that it may have (status {result.exit_status})", ""
    if result.exit_status == 127:
        return f"{step.name} ended with status 127", "a command was not found in the image"
    return f"{step.name} ended with status {result.exit_status}", ""


def _size(count: int) -> str:
    for unit, name in ((GIB, "GiB"), (1 << 20, "MiB")):
        if count >= unit:
            return f"{count / unit:g} {name}"
    return f"{count} bytes"


def hint_for(text: str, facts: Facts | None = None) -> str:
    """What to do about a message of the engine."""
    if "no space left on device" in text.lower():
        where = f" ({facts.root})" if facts is not None and facts.root else ""
        return f"the engine's disk{where} is full: `docker system df` says by what"
    if "bind source path does not exist" in text:
        return f"the engine sees other folders than qcase does: {outside.HINT}"
    if "no such image" in text.lower():
        return "the image was removed meanwhile: run the command again"
    if "docker-init" in text:
        return "the engine's init is missing: install docker-init (on Debian: tini)"
    return ""


# --- the disk -----------------------------------------------------------------------------------------------------------


class DiskWatch:
    """Stops a step that fills a disk: there is no limit on what it writes into its mounts but the disk itself.

    In a thread of its own, so that a step which closed its output is watched too. On a disk that was nearly full before, a step
    may use half of what was free.
    """

    def __init__(self, mounts: tuple[Mount, ...], stop: Callable[[], None]) -> None:
        self.full: Path | None = None
        self._stop = stop
        self._over = threading.Event()
        self._floors: dict[int, tuple[Path, int]] = {}
        for mount in mounts:
            if not mount.read_only and (free := self._free(mount.source)) is not None:
                self._floors[mount.source.stat().st_dev] = (mount.source, min(FREE_FLOOR, free[1] // 20, free[0] // 2))
        self._thread = threading.Thread(target=self._watch, name="disks", daemon=True)

    def __enter__(self) -> DiskWatch:
        if self._floors:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> Path | None:
        """On whose disk too little is left, if on any."""
        for path, floor in self._floors.values():
            free = self._free(path)
            if free is not None and free[0] < floor:
                self.full = path
        return self.full

    def _watch(self) -> None:
        while not self._over.wait(DISK_LOOK):
            if self.look() is not None:
                with contextlib.suppress(InfraError):  # the engine went away: the step's own thread says so
                    self._stop()
                return

    @staticmethod
    def _free(path: Path) -> tuple[int, int] | None:
        """Bytes that are free for us on the disk of a folder, and its size."""
        try:
            disk = os.statvfs(path)
        except OSError:
            return None
        return disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize


# --- the stream ---------------------------------------------------------------------------------------------------------


class CappedLog:
    """What a step printed: a file of at most `limit` bytes with head and tail, and the last `TAIL_LIMIT` bytes in memory.

    The head goes to the file at once, so that one can watch it; the tail is kept in memory and written at the end.
    """

    def __init__(self, path: Path | None, limit: int = LOG_LIMIT) -> None:
        self.path = path
        self.total = 0
        self._head = limit * 3 // 4
        self._keep = limit - self._head
        self._late = bytearray()
        self._cut = 0
        self._recent = bytearray()
        self._file = None
        if path is not None:
            with self._writing():
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = path.open("ab", buffering=0)  # a build may take several steps

    def __enter__(self) -> CappedLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def write(self, data: bytes) -> None:
        self.total += len(data)
        self._recent += data
        if len(self._recent) > 2 * TAIL_LIMIT:
            del self._recent[:-TAIL_LIMIT]
        if self._file is None:
            return
        if self._head > 0:
            head, data = data[: self._head], data[self._head :]
            self._head -= len(head)
            self._put(head)
        self._late += data
        if len(self._late) > 2 * self._keep:
            self._trim()

    def tail(self) -> str:
        """The end of it as text, cut at a line where it was cut."""
        recent = bytes(self._recent[-TAIL_LIMIT:])
        if self.total > len(recent):
            recent = recent[recent.find(b"\n") + 1 :]
        return recent.decode(errors="replace")

    def close(self) -> None:
        if self._file is None:
            return
        try:
            if len(self._late) > self._keep:
                self._trim()
            if self._cut:
                self._put(f"\n[qcase: {self._cut} bytes of output were cut out here]\n".encode())
            self._put(self._late)
        finally:
            self._file.close()
            self._file = None

    def _trim(self) -> None:
        surplus = len(self._late) - self._keep
        self._cut += surplus
        del self._late[:surplus]

    def _put(self, data: bytes | bytearray) -> None:
        assert self._file is not None
        view = memoryview(bytes(data))
        with self._writing():
            while view:
                view = view[self._file.write(view) :]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InfraError(f"cannot write the log: {error.strerror}", where=str(self.path)) from None


class Frames:
    """Takes the engine's multiplexed stream apart: 8 bytes of head (stream, three zeros, length), then that many bytes."""

    def __init__(self) -> None:
        self._head = b""
        self._left = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The output in `data`; a frame may come in pieces."""
        while data:
            if self._left == 0:
                missing = 8 - len(self._head)
                self._head, data = self._head + data[:missing], data[missing:]
                if len(self._head) == 8:
                    self._left = struct.unpack(">4xL", self._head)[0]
                    self._head = b""
            else:
                piece, data = data[: self._left], data[self._left :]
                self._left -= len(piece)
                yield piece


def _follow(stream: Any, output: CappedLog, deadline: Deadline) -> bool:
    """Read a step's output to its end. False when the deadline comes first, however much is still being said."""
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
            data = b""  # the engine died; the question how the step ended will say so
        if not data:
            return True
        for piece in frames.feed(data):
            output.write(piece)
    return False


# --- faults -------------------------------------------------------------------------------------------------------------


def _gone_errors(docker: Any, requests: Any, urllib3: Any) -> tuple[type[Exception], ...]:
    """What the docker package raises when the engine goes away: its own layers' errors come through unwrapped."""
    return (
        docker.errors.DockerException,
        requests.exceptions.RequestException,
        urllib3.exceptions.HTTPError,
        ConnectionError,
        TimeoutError,
    )


def _momentary(error: BaseException) -> bool:
    """Whether the engine may well do it when asked again: it lost the connection, or says that the fault is its own.

    It says so, too, of a container that it cannot make as asked, and of a full disk.
    """
    import docker
    import requests

    if isinstance(error, docker.errors.APIError):
        lasting = re.search(r"OCI runtime create failed|no space left", str(error)) is not None
        return error.status_code is not None and error.status_code >= 500 and not lasting
    return isinstance(error, requests.exceptions.ConnectionError | ConnectionError)


def _persistently(call: Callable[[], T]) -> T:
    """Ask the engine something that may be asked twice, and ask again after a hiccup."""
    import tenacity

    return tenacity.Retrying(
        stop=tenacity.stop_after_attempt(4),
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=2),
        retry=tenacity.retry_if_exception(_momentary),
        reraise=True,
    )(call)


def _innermost(error: BaseException) -> str:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return str(error) or type(error).__name__
