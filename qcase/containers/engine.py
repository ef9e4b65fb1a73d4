"""The container engine: run one step in one image.

A step is a command, an image and some mounts. The rules of its container are the same for every step of every pipeline:

    user            the caller's uid and gid, which need not be known to the image
    network         none, unless it is a fetch step
    privileges      no capabilities, no new privileges, the engine's default seccomp profile
    file system     read-only root, the step's mounts, a tmpfs on /tmp (1777, may execute, half of the memory limit)
    limits          memory (and no swap beyond it), processes, open files, no core files, time
    environment     the image's own, FIXED_ENVIRONMENT, the step's `env`; no variables of the host, not even proxies
    host name       "qcase", so that no build can tell one run from the next
    process 1       the engine's init, which reaps orphans and hands signals on

Life cycle of a container:

    create (named) ─ attach ─ start ─ read the stream to its end ─ wait ─ inspect ─ remove
                                       └ deadline passed: close the stream, kill

qcase chooses the name, so it can remove a container even if the engine did not answer the creation. `remove` is in a `finally`.
If KILL ends qcase, the guardian removes the containers with the label `qcase.run=<run id>`.
The output arrives over the attached stream only. The engine stores none (log driver `none`), and attaching before the start
loses nothing. The engine blocks a step that writes faster than qcase reads.

Where qcase runs in a container itself and the engine sits outside of it, mounts are translated (see
`qcase.containers.host_paths`).

Support for other engines than a rootful Docker follows their `info` and is untested: a rootless engine (uid 0 of the container
is the caller), an engine with user namespaces (switched off for our containers), an engine with SELinux.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from qcase.containers.connection import Connection, Facts, retry_momentary
from qcase.containers.container import Containers
from qcase.containers.host_paths import HostPaths
from qcase.containers.run_step import StepRunner
from qcase.containers.step import Step, StepResult, verdict_of
from qcase.errors import BuildError
from qcase.events import Emit, Warned
from qcase.host import process

if TYPE_CHECKING:
    import docker


class Engine:
    """A container engine: its images, and the steps that run in it. `run` may be called by several threads at once.

    `connection` talks to it, `containers` has this run's containers, and `steps` runs steps in them.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.containers = Containers(connection)
        self.steps = StepRunner(connection, self.containers)

    @classmethod
    def connect(cls, workspace: Path | None = None) -> Engine:
        """Connect to the engine of `DOCKER_HOST`, else to the machine's own. Raises `InfraError` if no engine answers.

        `workspace`: the folder whose path for the engine is `QCASE_HOST_WORKSPACE`.
        """
        return cls(Connection.open(workspace))

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
    def api(self) -> docker.APIClient:
        """The client of the engine's API, for whoever handles images."""
        return self.connection.api

    @property
    def socket(self) -> str:
        return self.connection.socket

    @property
    def facts(self) -> Facts:
        """The engine's version and capabilities, requested once."""
        return self.connection.facts

    @property
    def host_paths(self) -> HostPaths:
        """The translation of our paths to the engine's, determined once."""
        return self.connection.host_paths

    def faults(self, doing: str) -> AbstractContextManager[None]:
        """Turn errors of the engine into `InfraError`. A caller that handles `NotFound` catches it inside the `with`."""
        return self.connection.faults(doing)

    def image_id(self, reference: str) -> str | None:
        """Return the id (`sha256:…`) of an image by its name or id; None if the engine does not have it."""
        import docker

        with self.faults(f"looking for the image {reference}"):
            try:
                return str(retry_momentary(lambda: self.api.inspect_image(reference))["Id"])  # type: ignore[no-untyped-call]
            except docker.errors.NotFound:
                return None

    def labelled_image(self, reference: str, label: str, value: str) -> str | None:
        """Return the id of an image by its name; None if the image is missing or its label has another value."""
        import docker

        with self.faults(f"looking for the image {reference}"):
            try:
                found = retry_momentary(lambda: self.api.inspect_image(reference))  # type: ignore[no-untyped-call]
            except docker.errors.NotFound:
                return None
        labels = (found.get("Config") or {}).get("Labels") or {}
        return str(found["Id"]) if labels.get(label) == value else None

    def image_exists(self, reference: str) -> bool:
        return self.image_id(reference) is not None

    def run(self, step: Step, emit: Emit | None = None, case: str = "") -> StepResult:
        """Run a step to its end and return its result. A failed step is no error here: the caller decides.

        Raises `InfraError` if the step cannot run: a missing mount, an engine that refuses or dies, a full disk of the engine.
        The container is removed when this returns or raises.
        """

        def warn(message: str) -> None:
            if emit is not None:
                emit(Warned(message, case))

        return self.steps.run(step, warn)

    def check(self, step: Step, emit: Emit | None = None, case: str = "") -> StepResult:
        """Run a step that must succeed. Raises `BuildError` with the end of its output and the limit that it hit."""
        result = self.run(step, emit, case)
        if result.exit_status == 0 and not result.timed_out:
            return result
        what, hint = verdict_of(step, result)
        raise BuildError(what, where=case, hint=hint, log=result.output)

    def cancel(self) -> None:
        """Stop all steps of this run and start no new one. `run` in other threads raises. For Ctrl-C in the main thread."""
        self.containers.cancelled = True
        self.containers.remove_run(process.run_id())

    def remove_run(self, run_id: str) -> int:
        """Remove the containers of a run, running or not. Return their number."""
        return self.containers.remove_run(run_id)
