"""What is made of /proc, of the engine's word and of the caller's: where the engine sees our folders."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from qcase.containers import host_paths
from qcase.errors import InfraError, UsageError

ID = "cf87e3fe57439ce8721301de7c90a3d75c9efb38d29ecc57f4f2c6f4045267f2"
OTHER = "0" * 64

MOUNTINFO = f"""\
85 48 0:40 / / rw,nodev,noatime master:4 - overlay overlay rw
86 85 0:42 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
102 85 254:0 /home/me/my\\040suite /w rw,relatime - ext4 /dev/vda rw
103 102 0:55 / /w/scratch rw - tmpfs tmpfs rw
104 85 254:0 /var/lib/docker/volumes/qcase/_data /cache rw,relatime - ext4 /dev/vda rw
125 85 254:0 /var/lib/docker/containers/{ID}/hostname /etc/hostname rw,relatime - ext4 /dev/vda rw
126 85 254:0 /var/lib/docker/containers/{ID}/hosts /etc/hosts rw,relatime - ext4 /dev/vda rw
"""
INSPECTED = {
    "Mounts": [
        {"Type": "bind", "Source": "/home/me/my suite", "Destination": "/w", "RW": True},
        {"Type": "volume", "Name": "qcase", "Source": "/var/lib/docker/volumes/qcase/_data", "Destination": "/cache"},
        {"Type": "tmpfs", "Source": "", "Destination": "/w/scratch"},
    ]
}


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """/proc/self as it is in a container, with control groups of either version."""
    folder = tmp_path / "proc"
    folder.mkdir()
    (folder / "mountinfo").write_text(MOUNTINFO)
    (folder / "cgroup").write_text("0::/\n")
    return folder


@pytest.fixture
def near(tmp_path: Path) -> Iterator[str]:
    """A socket behind which there is a process that we see: this one."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(path)
        listening.listen()
        yield path


def knows(container: str) -> Mapping[str, Any] | None:
    return INSPECTED if container == ID else None


def nobody(_container: str) -> None:
    return None


def test_paths_are_those_of_the_mounts(proc: Path) -> None:
    found = host_paths.find(knows, {}, workspace=Path("/w"), socket_path="/nowhere", proc=proc)
    assert found.seen(Path("/w")) == "/home/me/my suite"
    assert found.seen(Path("/w/target/a b")) == "/home/me/my suite/target/a b"
    assert found.seen(Path("/cache/v2/x")) == "/var/lib/docker/volumes/qcase/_data/v2/x"
    assert not found.doubted(Path("/w"))


@pytest.mark.parametrize("path", ["/root/.cache/qcase", "/w/scratch/x", "/workspace"])
def test_a_folder_of_this_container_alone_is_one_clear_error(proc: Path, path: str) -> None:
    """Also one on a tmpfs inside of a mount, and one that has a mount's name as its beginning."""
    found = host_paths.find(knows, {}, workspace=Path("/w"), socket_path="/nowhere", proc=proc)
    with pytest.raises(InfraError, match="sits outside of this container, does not see it") as caught:
        found.seen(Path(path))
    assert caught.value.where == path
    assert "-v" in caught.value.hint
    assert "QCASE_CACHE_DIR" in caught.value.hint


def test_the_container_is_found_by_its_control_group_too(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text("102 85 254:0 /home/me /w rw - ext4 /dev/vda rw\n")
    (tmp_path / "cgroup").write_text(f"9:name=systemd:/docker/{ID}\n8:pids:/docker/{ID}\n0::/system.slice/docker-{OTHER}.scope\n")
    assert host_paths.container_ids(tmp_path) == [ID, OTHER]


def test_a_machine_full_of_containers_is_none(tmp_path: Path) -> None:
    """The host sees mounts of its containers, and of their layers."""
    (tmp_path / "mountinfo").write_text(
        f"50 27 0:50 / /var/lib/docker/containers/{ID}/mounts/shm rw - tmpfs shm rw\n"
        f"51 27 0:51 / /var/lib/docker/overlay2/{OTHER}/merged rw - overlay overlay rw\n"
    )
    (tmp_path / "cgroup").write_text("0::/user.slice/user-1000.slice/session-2.scope\n")
    assert host_paths.container_ids(tmp_path) == []


def test_on_the_engines_own_machine_paths_are_the_same(tmp_path: Path, near: str) -> None:
    found = host_paths.find(nobody, {}, workspace=tmp_path, socket_path=near, proc=tmp_path)
    assert found.seen(tmp_path / "x") == str(tmp_path / "x")
    assert not found.doubted(tmp_path)


def test_an_engine_that_does_not_know_our_container_is_doubted(proc: Path, tmp_path: Path, near: str) -> None:
    found = host_paths.find(nobody, {}, workspace=tmp_path, socket_path=near, proc=proc)
    assert found.seen(tmp_path / "x") == str(tmp_path / "x")
    assert found.doubted(tmp_path)
    found.believe(tmp_path / "x")
    assert not found.doubted(tmp_path / "y")
    assert found.doubted(Path("/cache"))  # another mount


def test_an_engine_whose_process_we_do_not_see_is_doubted(tmp_path: Path) -> None:
    found = host_paths.find(nobody, {}, workspace=tmp_path, socket_path="/nowhere", proc=tmp_path)
    assert found.doubted(tmp_path)


def test_what_the_caller_says_of_the_workspace_goes_first(proc: Path) -> None:
    environ = {host_paths.WORKSPACE_VARIABLE: "/srv/suite/"}
    found = host_paths.find(knows, environ, workspace=Path("/w"), socket_path="/nowhere", proc=proc)
    assert found.seen(Path("/w")) == "/srv/suite"
    assert found.seen(Path("/w/target")) == "/srv/suite/target"
    assert found.seen(Path("/cache")) == "/var/lib/docker/volumes/qcase/_data"
    assert found.doubted(Path("/w"))  # it may be wrong: looked at once


def test_where_only_the_workspace_is_known_the_store_has_to_be_in_it(tmp_path: Path) -> None:
    environ = {host_paths.WORKSPACE_VARIABLE: "/srv/suite"}
    found = host_paths.find(nobody, environ, workspace=Path("/w"), socket_path="/nowhere", proc=tmp_path)
    assert found.seen(Path("/w/.qcase")) == "/srv/suite/.qcase"
    with pytest.raises(InfraError, match="only what is below the workspace") as caught:
        found.seen(Path("/cache"))
    assert "QCASE_CACHE_DIR=/w/.qcase" in caught.value.hint


def test_a_relative_path_of_the_workspace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="absolute"):
        host_paths.find(nobody, {host_paths.WORKSPACE_VARIABLE: "suite"}, workspace=tmp_path, socket_path="/x", proc=tmp_path)


def test_the_root_of_the_engine_as_workspace(tmp_path: Path) -> None:
    found = host_paths.find(
        nobody, {host_paths.WORKSPACE_VARIABLE: "/"}, workspace=Path("/w"), socket_path="/nowhere", proc=tmp_path
    )
    assert found.seen(Path("/w/x")) == "/x"
