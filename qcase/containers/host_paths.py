"""Translation of our paths to the engine's, if qcase runs in a container and the engine outside of it.

The engine resolves a mount's source in its own file system. If the engine's socket is mounted into qcase's container, qcase has
to translate paths back:

    docker run -v /home/me/suite:/w …      /w/target/x  ─►  /home/me/suite/target/x
    docker run -v qcase:/cache …           /cache/v1    ─►  /var/lib/docker/volumes/qcase/_data/v1

`QCASE_HOST_WORKSPACE` is the engine's path of the workspace, and takes precedence. Otherwise qcase asks the engine for the mounts
of our container, whose id is in /proc. qcase refuses a folder outside of these mounts with one error, before any build: at that
path the engine would find another folder or none.

If neither source gives an answer and the engine may still be elsewhere, qcase passes paths on unchanged. A first step checks that
the engine sees the same folders there, by device and inode.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qcase.errors import InfraError, UsageError

WORKSPACE_VARIABLE = "QCASE_HOST_WORKSPACE"

HINT = (
    "mount the folder into this container (-v), and have the store on a mount too (QCASE_CACHE_DIR); "
    f"where the engine does not know this container, {WORKSPACE_VARIABLE} says where the workspace is outside"
)

_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class HostPaths:
    """Mapping from our paths to the engine's.

    `mounts`: the mounts of our container, our path to the engine's; None if the engine knows no container of ours. `points`: all
    mount points of our mount namespace. `workspace`: our path and the engine's, from `QCASE_HOST_WORKSPACE`. `sure`: the engine
    sees our file system, or has reported its mounts.
    """

    mounts: Mapping[str, str] | None = None
    points: tuple[str, ...] = ()
    workspace: tuple[Path, str] | None = None
    sure: bool = True
    _checked: set[str | None] = field(default_factory=set)

    def seen(self, path: Path) -> str:
        """Return the engine's path for our path. Raises `InfraError` for a folder that the engine does not see."""
        path = path.resolve()
        if self.workspace is not None and path.is_relative_to(self.workspace[0]):
            return _joined(self.workspace[1], path.relative_to(self.workspace[0]))
        if self.mounts is None:
            if self.workspace is None:
                return str(path)
            raise InfraError(
                f"only what is below the workspace is known to the engine by {WORKSPACE_VARIABLE}",
                where=str(path),
                hint=f"have the store in the workspace: QCASE_CACHE_DIR={self.workspace[0]}/.qcase",
            )
        point = self._mount_point(path)
        if point is None or point not in self.mounts:
            raise InfraError(
                "the container engine, which sits outside of this container, does not see it", where=str(path), hint=HINT
            )
        return _joined(self.mounts[point], path.relative_to(point))

    def doubted(self, path: Path) -> bool:
        """Tell whether the visibility of `path` to the engine still has to be checked."""
        return not self.sure and self._mount_point(path.resolve()) not in self._checked

    def believe(self, path: Path) -> None:
        """Mark the mount of `path` as visible to the engine. Safe for the whole mount: this run created the probed folders."""
        self._checked.add(self._mount_point(path.resolve()))

    def _mount_point(self, path: Path) -> str | None:
        """Return the innermost mount point at or above a path."""
        return next((str(place) for place in (path, *path.parents) if str(place) in self.points), None)


def find(
    inspect: Callable[[str], Mapping[str, Any] | None],
    environ: Mapping[str, str],
    *,
    workspace: Path | None,
    socket_path: str,
    proc: Path = Path("/proc/self"),
) -> HostPaths:
    """Find the mapping of our paths to the engine's. `inspect` returns the engine's data of a container, None if it has none."""
    said = _said_workspace(environ, workspace)
    ids = container_ids(proc)
    points = mount_points(proc)
    for candidate in ids:
        found = inspect(candidate)
        if found is not None:
            mounts = {
                str(Path(mount["Destination"])): str(mount["Source"])
                for mount in found.get("Mounts") or ()
                if mount.get("Type") in ("bind", "volume") and mount.get("Source")
            }
            return HostPaths(mounts, points, said, sure=said is None)
    return HostPaths(None, points, said, sure=said is None and not ids and engine_is_near(socket_path))


def container_ids(proc: Path) -> list[str]:
    """Return candidate ids of our container, from our control group and from the files that an engine mounts per container."""
    found: list[str] = []
    for line in _lines(proc / "cgroup"):
        found += _ID.findall(line.rpartition(":")[2].rpartition("/")[2])
    for root, point in _mounts(proc):
        if point in ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf") and "containers/" in root:
            found += _ID.findall(root)
    return list(dict.fromkeys(found))


def mount_points(proc: Path) -> tuple[str, ...]:
    return tuple(dict.fromkeys(point for _, point in _mounts(proc)))


def engine_is_near(socket_path: str) -> bool:
    """Tell whether the process behind a socket is in our process namespace. For others the kernel reports the process id 0."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(10)
            connection.connect(socket_path)
            said = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    except OSError:
        return False
    return bool(struct.unpack("3i", said)[0] > 0)


def _said_workspace(environ: Mapping[str, str], workspace: Path | None) -> tuple[Path, str] | None:
    said = environ.get(WORKSPACE_VARIABLE, "")
    if not said or workspace is None:
        return None
    if not said.startswith("/"):
        raise UsageError(
            "has to be an absolute path: where the engine, outside of this container, has the folder with qcase.toml",
            where=f"{WORKSPACE_VARIABLE}={said}",
        )
    return workspace.resolve(), said.rstrip("/") or "/"


def _mounts(proc: Path) -> list[tuple[str, str]]:
    """Return each mount's root in its file system and its mount point (proc(5), `mountinfo`: the fourth and fifth field)."""
    rows = [line.split(" ") for line in _lines(proc / "mountinfo")]
    return [(_unescaped(row[3]), _unescaped(row[4])) for row in rows if len(row) > 4]


def _unescaped(text: str) -> str:
    """Decode the octal escapes of `mountinfo`, which stand for blanks, line ends and backslashes."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []


def _joined(outside: str, below: Path) -> str:
    return outside if below == Path() else f"{outside.rstrip('/')}/{below}"
