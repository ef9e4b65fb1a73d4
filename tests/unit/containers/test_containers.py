"""What of the container room needs no engine: the log, the stream, the mounts, what is said of a failure."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcase.containers import connection
from qcase.containers.connection import Connection, Facts
from qcase.containers.engine import Engine
from qcase.containers.step import TAIL_LIMIT, Mount, Step, StepResult, check_mounts, verdict_of
from qcase.containers.watch import CROWD_LOOKS, STILL_LOOKS, CappedLog, DiskWatch, ForkBombDetector, Frames
from qcase.errors import InfraError, UsageError


def step(*mounts: Mount, workdir: str = "/") -> Step:
    return Step(
        image="sha256:0", argv=("true",), mounts=mounts, workdir=workdir, timeout=60, memory=3 << 29, pids=64, name="configure"
    )


def result(status: int, output: str = "", *, timed_out: bool = False, oom: bool = False) -> StepResult:
    return StepResult(status, output, None, timed_out, oom, 1.0)


# --- the log ------------------------------------------------------------------------------------------------------------


def test_a_short_output_is_kept_whole(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "step.log"
    with CappedLog(path) as log:
        log.write(b"one\n")
        log.write(b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"
    assert log.tail() == "one\ntwo\n"


def test_the_head_can_be_read_while_the_step_runs(tmp_path: Path) -> None:
    with CappedLog(tmp_path / "log") as log:
        log.write(b"configuring\n")
        assert (tmp_path / "log").read_bytes() == b"configuring\n"


def test_the_middle_is_cut_out_and_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "log"
    written = b"".join(b"%09d\n" % number for number in range(10_000))
    with CappedLog(path, limit=4000) as log:
        for start in range(0, len(written), 333):
            log.write(written[start : start + 333])
    head, _, rest = path.read_bytes().partition(b"\n[qcase: ")
    cut, _, tail = rest.partition(b" bytes of output were cut out here]\n")
    assert head == written[:3000]
    assert tail == written[-1000:]
    assert int(cut) == len(written) - 4000


@given(chunks=st.lists(st.binary(max_size=50), max_size=30), limit=st.integers(4, 400))
def test_head_cut_and_tail_add_up(chunks: list[bytes], limit: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        with CappedLog(path, limit=limit) as log:
            for chunk in chunks:
                log.write(chunk)
        kept = path.read_bytes()
    written = b"".join(chunks)
    if len(written) <= limit:
        assert kept == written
    else:
        notice = f"\n[qcase: {len(written) - limit} bytes of output were cut out here]\n".encode()
        head = limit * 3 // 4
        assert kept == written[:head] + notice + written[len(written) - (limit - head) :]


def test_the_tail_begins_with_a_whole_line_and_takes_any_bytes() -> None:
    with CappedLog(None) as log:
        log.write(b"\xff first\n" * 10_000)
        log.write(b"last")
    lines = log.tail().splitlines()
    assert lines[0] == "\ufffd first"
    assert lines[-1] == "last"
    assert len(log.tail().encode()) <= 2 * TAIL_LIMIT


def test_a_log_that_cannot_be_written_is_our_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InfraError, match="cannot write the log"):
        CappedLog(tmp_path / "file" / "log")


def test_a_full_disk_is_our_fault() -> None:
    with (
        pytest.raises(InfraError, match="/dev/full: cannot write the log: No space left on device"),
        CappedLog(Path("/dev/full")) as log,
    ):
        log.write(b"x")


# --- the stream ---------------------------------------------------------------------------------------------------------


@given(
    payloads=st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=40)), max_size=20),
    cuts=st.lists(st.integers(1, 25), min_size=1, max_size=10),
)
def test_frames_come_in_any_pieces(payloads: list[tuple[int, bytes]], cuts: list[int]) -> None:
    stream = b"".join(struct.pack(">BxxxL", number, len(data)) + data for number, data in payloads)
    frames, got, at, turn = Frames(), b"", 0, 0
    while at < len(stream):
        size = cuts[turn % len(cuts)]
        got += b"".join(frames.feed(stream[at : at + size]))
        at, turn = at + size, turn + 1
    assert got == b"".join(data for _, data in payloads)


# --- the engine's place -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["unix:///run/user/7/docker.sock", "unix://run/user/7/docker.sock"])
def test_docker_host_names_the_socket(host: str) -> None:
    assert connection.socket_path({"DOCKER_HOST": host}) == "/run/user/7/docker.sock"


@pytest.mark.parametrize("host", ["tcp://10.0.0.7:2375", "ssh://user@machine", "10.0.0.7"])
def test_a_remote_engine_is_refused_by_name(host: str) -> None:
    with pytest.raises(UsageError) as caught:
        connection.socket_path({"DOCKER_HOST": host})
    assert f"DOCKER_HOST={host}" in str(caught.value)
    assert "unix://" in caught.value.hint


def test_no_engine_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    with pytest.raises(InfraError) as caught:
        Engine.connect()
    assert str(caught.value) == "/nonexistent/docker.sock: no container engine answers: No such file or directory"
    assert "DOCKER_HOST" in caught.value.hint


def test_a_socket_without_an_engine_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    with pytest.raises(InfraError, match="no container engine answers: Connection refused"):
        Engine.connect()


def test_a_socket_that_is_not_for_us_names_the_group(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    reading, writing = os.pipe()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        path.chmod(0o000)
        child = os.fork()
        if child == 0:  # root may open every socket, so somebody else has to try
            try:
                if os.getuid() == 0:
                    os.setgroups([])
                    os.setuid(65534)
                connection.knock(str(path))
            except InfraError as error:
                os.write(writing, f"{error.what}|{error.hint}".encode())
            finally:
                os._exit(0)
        os.close(writing)
        with open(reading, "rb") as pipe:  # noqa: PTH123 - a descriptor
            said = pipe.read().decode()
        os.waitpid(child, 0)
    what, _, hint = said.partition("|")
    assert what == "you may not talk to the container engine"
    assert "group docker" in hint


def test_facts_from_info() -> None:
    facts = Facts.of(
        {
            "ServerVersion": "20.10.24",
            "SecurityOptions": ["name=seccomp,profile=default", "name=rootless"],
            "MemoryLimit": False,
            "PidsLimit": True,
        }
    )
    assert (facts.version, facts.rootless, facts.user_namespaces) == ("20.10.24", True, False)
    [warning] = facts.missing_limits()
    assert "memory" in warning
    assert "processes" not in warning


# --- mounts -------------------------------------------------------------------------------------------------------------


def test_a_mount_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InfraError) as caught:
        check_mounts(step(Mount(tmp_path / "gone", "/qcase/src")))
    assert str(tmp_path / "gone") in str(caught.value)
    assert "configure" in caught.value.hint


def test_what_the_engine_would_create_in_a_mount_has_to_be_there(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    outer = tmp_path / "outer"
    outer.mkdir()
    mounts = (Mount(outer, "/qcase"), Mount(inner, "/qcase/cache/cargo"))
    with pytest.raises(InfraError, match="outer/cache/cargo"):
        check_mounts(step(*mounts))
    (outer / "cache" / "cargo").mkdir(parents=True)
    check_mounts(step(*mounts))
    check_mounts(step(*mounts, workdir="/qcase/cache"))
    with pytest.raises(InfraError, match="inner/deep"):
        check_mounts(step(*mounts, workdir="/qcase/cache/cargo/deep"))


def test_a_path_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "caf\udce9"
    source.mkdir()
    with pytest.raises(InfraError, match="UTF-8"):
        check_mounts(step(Mount(source, "/qcase/src")))


# --- what is said of a failure ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ended", "says"),
    [
        (result(2), "configure ended with status 2"),
        (result(137, timed_out=True), "configure took longer than 60 s and was stopped"),
        (
            result(137, oom=True),
            "configure was killed, because it needs more than the 1.5 GiB of memory that it may use",
        ),
        (result(2, oom=True), "configure needed more than the 1.5 GiB of memory that it may use (status 2)"),
        (
            result(137),
            "configure was killed by signal 9 from within, or because it needs more than the 1.5 GiB of memory that it may use; "
            "the engine does not say",
        ),
        (result(2, "sh: 3: Cannot fork\n"), "configure needed more than the 64 processes that it may have (status 2)"),
    ],
)
def test_the_limit_that_was_hit_is_named(ended: StepResult, says: str) -> None:
    assert verdict_of(step(), ended)[0] == says


TIMES = {"StartedAt": "2026-11-29T12:00:01.123456789Z", "FinishedAt": "2026-11-29T12:00:02.5Z"}
NEVER = {"StartedAt": "2026-11-29T12:00:01Z", "FinishedAt": "0001-01-01T00:00:00Z"}


class Telling:
    """An engine's client that tells of these events."""

    def __init__(self, *actions: str) -> None:
        self.actions = actions
        self.asked: dict[str, object] = {}

    def events(self, **asked: object) -> list[dict[str, str]]:
        self.asked = asked
        return [{"Action": action} for action in self.actions]


@pytest.mark.parametrize(
    ("state", "actions", "says"),
    [
        (TIMES, ("start", "die"), ""),  # by itself
        (TIMES, ("start", "oom", "die"), ""),
        (TIMES, ("start", "oom", "kill", "die"), ""),  # it was dying of it
        (TIMES, ("start", "kill", "die"), "somebody else killed the step's container"),
        (TIMES, ("start", "die", "kill"), "somebody else killed the step's container"),
        (TIMES, (), "the engine was started anew, and ended the step's container"),
        (NEVER, ("die",), "the engine does not know how the step's container ended"),
        ({}, ("die",), "the engine does not know how the step's container ended"),
    ],
)
def test_who_killed_a_container(state: dict[str, str], actions: tuple[str, ...], says: str) -> None:
    api = Telling(*actions)
    engine = Engine(Connection(api, "/socket"))  # type: ignore[arg-type]
    if says:
        with pytest.raises(InfraError, match=says):
            engine.containers.explain_end("name", state, step())
    else:
        assert ("oom" in engine.containers.explain_end("name", state, step())) == ("oom" in actions)
        assert (api.asked["since"], api.asked["until"]) == (1795953600, 1795953604)


def test_a_step_that_succeeds_may_speak_of_forks() -> None:
    assert not result(0, "checking for cannot fork... no").out_of_processes


def test_a_full_disk_names_the_folder() -> None:
    facts = Facts.of({"DockerRootDir": "/var/lib/docker"})
    assert "/var/lib/docker" in connection.hint_for("write /x: no space left on device", facts)


def test_a_fork_bomb_stays_at_a_limit_and_a_build_does_not() -> None:
    def stopped_at(counts: Iterable[int]) -> int | None:
        crowd = ForkBombDetector(4096)
        return next((number for number, count in enumerate(counts, 1) if crowd.look(count)), None)

    assert stopped_at([4000, 4096, 4096]) == CROWD_LOOKS
    assert stopped_at([100, 4000, 100, 4000, 4000, 100] * 10) is None
    assert stopped_at([1575 + n % 3 for n in range(100)]) == STILL_LOOKS + 1
    assert stopped_at([1500 if n % 9 else 1000 for n in range(100)]) is None
    assert stopped_at([600] * 1000) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_disk_is_full_where_it_can_have_no_more_files(tmp_path: Path) -> None:
    """However much room there is: a million empty files stop all other work on a disk, too."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,nr_inodes=2000", "qcase-test", str(tmp_path)], check=True)
    try:
        with DiskWatch((Mount(tmp_path, "/x", False),), lambda: None) as watch:
            assert watch.look() is None
            for number in range(1950):
                (tmp_path / str(number)).touch()
            assert watch.look() == tmp_path
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
