"""The connection to the container engine: its socket, its capabilities, and its faults."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from qcase.containers import host_paths
from qcase.containers.host_paths import HostPaths
from qcase.errors import InfraError, UsageError
from qcase.host.retry import retry_after_momentary

if TYPE_CHECKING:
    import docker


T = TypeVar("T")

CALL_TIMEOUT = 120.0  # timeout in seconds for one answer of the engine; creating a container on a busy disk can take long


class Connection:
    """A connection to an engine, which knows its capabilities and our paths as the engine sees them. Safe for several threads.

    `workspace`: the folder whose path for the engine is `QCASE_HOST_WORKSPACE`.
    """

    def __init__(self, api: docker.APIClient, path: str, workspace: Path | None = None) -> None:
        self.api = api
        self.socket = path
        self._workspace = workspace
        self._facts: Facts | None = None
        self._host_paths: HostPaths | None = None
        self._lock = threading.Lock()

    @classmethod
    def open(cls, workspace: Path | None = None) -> Connection:
        """Connect to the engine of `DOCKER_HOST`, else to the machine's own. Raises `InfraError` if no engine answers."""
        path = socket_path(os.environ)
        knock(path)
        import docker

        try:
            api = docker.APIClient(base_url=f"unix://{path}", version="auto", timeout=int(CALL_TIMEOUT))
        except docker.errors.DockerException as error:
            raise InfraError(f"what answers here is no container engine: {error}", where=path, hint=_START_HINT) from None
        return cls(api, path, workspace)

    @property
    def facts(self) -> Facts:
        """The engine's version and capabilities, requested once."""
        with self._lock:
            if self._facts is None:
                with self.faults("asking the engine what it can do"):
                    self._facts = Facts.of(retry_momentary(self.api.info))
            return self._facts

    @property
    def host_paths(self) -> HostPaths:
        """The translation of our paths to the engine's, determined once."""
        import docker

        def inspect(container: str) -> Mapping[str, Any] | None:
            try:
                found: Mapping[str, Any] = retry_momentary(lambda: self.api.inspect_container(container))
            except docker.errors.NotFound:
                return None
            return found

        with self._lock:
            if self._host_paths is None:
                with self.faults("asking the engine for the mounts of this container"):
                    self._host_paths = host_paths.find(inspect, os.environ, workspace=self._workspace, socket_path=self.socket)
            return self._host_paths

    @contextmanager
    def faults(self, doing: str) -> Iterator[None]:
        """Turn errors of the engine into `InfraError`. A caller that handles `NotFound` catches it inside the `with`."""
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


@dataclass(frozen=True)
class Facts:
    """Capabilities of an engine, from its `info`."""

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
        """Return warnings about the limits that this engine cannot set."""
        missing = [what for what, there in (("memory", self.memory_limit), ("processes", self.pids_limit)) if not there]
        return (
            [f"the container engine cannot limit {' or '.join(missing)}: a step is held by its time limit alone"]
            if missing
            else []
        )


def socket_path(environ: Mapping[str, str]) -> str:
    """Return the path of the engine's socket: `DOCKER_HOST`, else the machine's, else the user's own (a rootless engine).

    Raises `UsageError` for a remote `DOCKER_HOST`.
    """
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


def knock(path: str) -> None:
    """Check that an engine listens on the socket, for a clear error: the docker package wraps each fault five times.

    Raises `InfraError`.
    """
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


def hint_for(text: str, facts: Facts | None = None) -> str:
    """Return the hint for an error message of the engine, empty for an unknown one."""
    if "no space left on device" in text.lower():
        where = f" ({facts.root})" if facts is not None and facts.root else ""
        return f"the engine's disk{where} is full: `docker system df` says by what"
    if "bind source path does not exist" in text:
        return f"the engine sees other folders than qcase does: {host_paths.HINT}"
    if "no such image" in text.lower():
        return "the image was removed meanwhile: run the command again"
    if "docker-init" in text:
        return "the engine's init is missing: install docker-init (on Debian: tini)"
    return ""


# --- faults -------------------------------------------------------------------------------------------------------------


def _gone_errors(docker: Any, requests: Any, urllib3: Any) -> tuple[type[Exception], ...]:
    """Return the exceptions that the docker package raises when the engine goes away, with unwrapped errors of its libraries."""
    return (
        docker.errors.DockerException,
        requests.exceptions.RequestException,
        urllib3.exceptions.HTTPError,
        ConnectionError,
        TimeoutError,
    )


def _momentary(error: BaseException) -> bool:
    """Tell whether a retry may help: the connection was lost, or the engine reported a server error (status 500 and above).

    The engine also reports 500 for a container that it cannot create and for a full disk. Those are not retried.
    """
    import docker
    import requests

    if isinstance(error, docker.errors.APIError):
        lasting = re.search(r"OCI runtime create failed|no space left", str(error)) is not None
        return error.status_code is not None and error.status_code >= 500 and not lasting
    return isinstance(error, requests.exceptions.ConnectionError | ConnectionError)


def retry_momentary(call: Callable[[], T]) -> T:
    """Call the engine, with up to three retries after momentary faults. The call must be safe to repeat."""
    # Not `process.pause`: a run that ends still removes its containers.
    return retry_after_momentary(call, _momentary, attempts=4, first=0.2, longest=2, spread=True, pause=time.sleep)


def _innermost(error: BaseException) -> str:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return str(error) or type(error).__name__
