"""The container contract of DESIGN, with a real engine and the base image."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qcase.containers import run_step, step
from qcase.containers.engine import Engine
from qcase.containers.step import Mount, Step
from qcase.errors import BuildError, InfraError
from qcase.events import Event, Warned
from qcase.host import process

pytestmark = pytest.mark.container

MIB = 1 << 20
SOON = 30.0  # seconds: for what takes one, on a machine that is busy


@pytest.fixture
def shell(image: str) -> Step:
    """A step that runs nothing yet: `replace(shell, argv=sh("…"))`."""
    return Step(image=image, argv=("true",), timeout=SOON, memory=256 * MIB, name="probe")


def sh(program: str) -> tuple[str, ...]:
    return ("sh", "-euc", program)


def containers_of(engine: Engine, run_id: str) -> list[str]:
    found = engine.api.containers(all=True, filters={"label": f"qcase.run={run_id}"})
    return [container["Id"] for container in found]


@pytest.fixture(autouse=True)
def nothing_is_left(engine: Engine) -> Iterator[None]:
    yield
    assert containers_of(engine, process.run_id()) == []


# --- what a step may do -------------------------------------------------------------------------------------------------


def test_a_step_says_how_it_ended(engine: Engine, shell: Step, tmp_path: Path) -> None:
    result = engine.run(replace(shell, argv=sh("echo out; echo err >&2; exit 3"), log=tmp_path / "log"))
    assert result.exit_status == 3
    assert sorted(result.output.split()) == ["err", "out"]
    assert (tmp_path / "log").read_text() == result.output
    assert not result.timed_out
    assert not result.oom
    assert 0 < result.seconds < SOON


def test_no_network(engine: Engine, shell: Step) -> None:
    assert engine.check(replace(shell, argv=sh("ls /sys/class/net"))).output.split() == ["lo"]


def test_network_for_a_fetch_step(engine: Engine, shell: Step) -> None:
    assert "eth0" in engine.check(replace(shell, argv=sh("ls /sys/class/net"), network=True)).output.split()


def test_no_capabilities_and_no_new_privileges(engine: Engine, shell: Step) -> None:
    status = engine.check(replace(shell, argv=("cat", "/proc/self/status"))).output
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    assert {fields[name].strip() for name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")} == {"0" * 16}
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"


def test_the_root_is_read_only_and_tmp_is_not(engine: Engine, shell: Step) -> None:
    program = """
    for place in / /etc /usr/bin /var /qcase; do
        if touch $place/x 2>/dev/null; then echo "wrote $place"; fi
    done
    stat -c %a /tmp
    cp /bin/true /tmp/program && /tmp/program && echo executed
    df --output=size -k /tmp | tail -n 1 | tr -d ' '
    """
    assert engine.check(replace(shell, argv=sh(program))).output.split() == ["1777", "executed", str(128 << 10)]


def test_it_runs_as_the_caller(engine: Engine, shell: Step, tmp_path: Path) -> None:
    program = "touch /qcase/overlay/file; id -u; id -g; umask"
    result = engine.check(replace(shell, argv=sh(program), mounts=(Mount(tmp_path, "/qcase/overlay", read_only=False),)))
    assert result.output.split() == [str(os.getuid()), str(os.getgid()), "0022"]
    assert (tmp_path / "file").stat().st_uid == os.getuid()


def test_a_user_whom_the_image_does_not_know(
    engine: Engine, shell: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    monkeypatch.setattr(os, "getgid", lambda: 54322)
    tmp_path.chmod(0o777)
    program = 'id -u; id -g; echo "$HOME"; touch "$HOME/file"; touch /qcase/overlay/file'
    result = engine.check(replace(shell, argv=sh(program), mounts=(Mount(tmp_path, "/qcase/overlay", read_only=False),)))
    assert result.output.split() == ["54321", "54322", "/tmp"]
    found = (tmp_path / "file").stat()
    assert (found.st_uid, found.st_gid) == (54321, 54322)


def test_nothing_of_the_hosts_environment(engine: Engine, shell: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proxies = {"proxies": {"default": {"httpProxy": "http://secret.example"}}}
    (tmp_path / "config.json").write_text(json.dumps(proxies))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("http_proxy", "http://secret.example")
    monkeypatch.setenv("QCASE_OF_THE_HOST", "secret")
    with Engine.connect() as fresh:  # the configuration is read when connecting
        output = fresh.check(replace(shell, argv=("env",), env={"QCASE_NAMED": "a b=c\nd", "TZ": "Europe/Vienna"})).output
    assert "secret" not in output
    assert "QCASE_NAMED=a b=c\nd\n" in output
    names = {line.partition("=")[0] for line in output.splitlines() if line != "d"}
    assert names == {"HOME", "HOSTNAME", "LC_ALL", "PATH", "QCASE_NAMED", "SOURCE_DATE_EPOCH", "TZ"}
    assert {"HOME=/tmp", "HOSTNAME=qcase", "LC_ALL=C.UTF-8", "TZ=Europe/Vienna"} <= set(output.splitlines())


def test_no_core_files_and_few_open_files(engine: Engine, shell: Step) -> None:
    output = engine.check(replace(shell, argv=sh("ulimit -c; ulimit -n; ulimit -Hn"))).output
    assert output.split() == ["0", "1024", "4096"]


# --- mounts -------------------------------------------------------------------------------------------------------------


def test_mounts_with_blanks_commas_colons_and_quotes(engine: Engine, shell: Step, tmp_path: Path) -> None:
    source = tmp_path / "a b,c:ro=\"d\" 'é'"
    source.mkdir()
    (source / "file").write_text("content")
    step = replace(shell, argv=sh("cat file; echo new > made"), workdir="/qcase/src")
    step = replace(step, mounts=(Mount(source, "/qcase/src", read_only=False),))
    assert engine.check(step).output == "content"
    assert (source / "made").read_text() == "new\n"


def test_a_read_only_mount(engine: Engine, shell: Step, tmp_path: Path) -> None:
    step = replace(shell, argv=sh("touch /qcase/staging/x"), mounts=(Mount(tmp_path, "/qcase/staging"),))
    with pytest.raises(BuildError) as caught:
        engine.check(step, case="normal/smoke")
    assert str(caught.value) == "normal/smoke: probe ended with status 1"
    assert "Read-only file system" in caught.value.log


def test_a_missing_mount_is_not_created(engine: Engine, shell: Step, tmp_path: Path) -> None:
    with pytest.raises(InfraError, match="not there"):
        engine.run(replace(shell, mounts=(Mount(tmp_path / "gone", "/qcase/src"),)))
    assert list(tmp_path.iterdir()) == []


def test_a_mount_that_vanishes_meanwhile_is_an_infrastructure_fault(
    engine: Engine, shell: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_step, "check_mounts", lambda _: None)
    with pytest.raises(InfraError) as caught:
        engine.run(replace(shell, mounts=(Mount(tmp_path / "gone", "/qcase/src"),)))
    assert "bind source path does not exist" in str(caught.value)
    assert "sees other folders" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


# --- limits -------------------------------------------------------------------------------------------------------------


def test_the_memory_limit(engine: Engine, shell: Step) -> None:
    step = replace(shell, argv=("tail", "/dev/zero"), memory=64 * MIB)
    result = engine.run(step)
    assert result.exit_status == 137
    assert result.oom
    with pytest.raises(BuildError, match="was killed, because it needs more than the 64 MiB of memory"):
        engine.check(step)


def test_the_memory_limit_of_a_part_that_the_step_outlives(engine: Engine, shell: Step) -> None:
    with pytest.raises(BuildError, match=r"needed more than the 64 MiB of memory that it may use \(status 2\)"):
        engine.check(replace(shell, argv=sh("tail /dev/zero || sleep 1; exit 2"), memory=64 * MIB))


@pytest.mark.parametrize("signal_name", ["KILL", "TERM"])
def test_a_step_that_somebody_else_kills_is_no_fault_of_it(engine: Engine, shell: Step, signal_name: str) -> None:
    with pytest.raises(InfraError, match="probe: somebody else killed the step's container") as caught:
        meddled_with(engine, shell, "kill", "--signal", signal_name)
    assert "run the case again" in caught.value.hint


def test_a_step_whose_container_somebody_else_removes(engine: Engine, shell: Step) -> None:
    with pytest.raises(InfraError, match=r"somebody else removed the step's container|somebody else killed the step's container"):
        meddled_with(engine, shell, "rm", "--force")


@pytest.mark.parametrize(("program", "status"), [("kill -9 $$", 137), ("kill -TERM $$", 143), ("exit 137", 137)])
def test_a_step_that_kills_itself_is_the_cases_own_affair(engine: Engine, shell: Step, program: str, status: int) -> None:
    result = engine.run(replace(shell, argv=sh(program)))
    assert (result.exit_status, result.oom) == (status, False)
    with pytest.raises(BuildError, match=r"killed by signal 9 from within|ended with status 143"):
        engine.check(replace(shell, argv=sh(program)))


def meddled_with(engine: Engine, shell: Step, *words: str) -> None:
    """Run a step with whose container `docker WORDS` does something as soon as it runs."""
    running = threading.Event()

    def meddle() -> None:
        for _ in range(int(SOON * 10)):
            found = engine.api.containers(filters={"label": f"qcase.run={process.run_id()}", "status": "running"})
            if found:
                running.set()
                subprocess.run(["docker", *words, found[0]["Id"]], check=True, capture_output=True)
                return
            time.sleep(0.1)

    thread = threading.Thread(target=meddle)
    thread.start()
    try:
        engine.check(replace(shell, argv=sh("echo begun; sleep 60")))
    finally:
        thread.join()
        assert running.is_set()


def test_tmp_counts_as_memory_and_is_bounded(engine: Engine, shell: Step) -> None:
    result = engine.run(replace(shell, argv=sh("head -c 100M /dev/zero > /tmp/big"), memory=64 * MIB))
    assert result.exit_status == 1
    assert "No space left on device" in result.output


def test_the_process_limit(engine: Engine, shell: Step) -> None:
    step = replace(shell, argv=sh("for n in $(seq 100); do sleep 60 & done; wait"), pids=30)
    with pytest.raises(BuildError, match="more than the 30 processes"):
        engine.check(step)


def test_a_fork_bomb_ends_with_its_time(engine: Engine, shell: Step) -> None:
    result = engine.run(replace(shell, argv=("bash", "-c", "b() { b | b & }; b; sleep 60"), pids=60, timeout=2))
    assert result.exit_status != 0
    assert result.seconds < SOON


def test_a_fork_bomb_is_stopped_long_before_its_time(engine: Engine, shell: Step) -> None:
    """Without a word of its own: what tells is that it stays at its limit."""
    with pytest.raises(BuildError, match="probe stayed at too many of the 60 processes that it may have, as a fork bomb does"):
        engine.check(replace(shell, argv=("bash", "-c", "b() { b | b & }; b 2>&-; sleep 600"), pids=60, timeout=600))


@pytest.mark.parametrize(
    "program",
    ["exec sleep 600", "trap '' TERM; while :; do sleep 600; done", "yes", "exec >&- 2>&-; sleep 600"],
    ids=["quiet", "deaf", "talkative", "closed output"],
)
def test_the_time_limit(engine: Engine, shell: Step, program: str) -> None:
    result = engine.run(replace(shell, argv=sh(program), timeout=1.5))
    assert result.timed_out
    assert result.exit_status == 137
    assert 1.5 <= result.seconds < SOON


def test_the_time_limit_is_named(engine: Engine, shell: Step) -> None:
    for limit in (1.5, 30.0):  # on a busy machine a container may not even have begun after the first one
        with pytest.raises(BuildError) as caught:
            engine.check(replace(shell, argv=sh("echo last words; sleep 600"), timeout=limit))
        assert str(caught.value) == f"probe took longer than {limit:g} s and was stopped"
        if caught.value.log:
            break
    assert caught.value.log == "last words\n"


def test_a_step_that_closes_its_output_and_goes_on(engine: Engine, shell: Step, tmp_path: Path) -> None:
    mounts = (Mount(tmp_path, "/qcase/build", read_only=False),)
    step = replace(shell, argv=sh("exec >&- 2>&-; sleep 1; touch /qcase/build/done; exit 5"), mounts=mounts)
    assert engine.run(step).exit_status == 5
    assert (tmp_path / "done").exists()


def test_what_is_left_in_the_background_ends_with_the_step(engine: Engine, shell: Step) -> None:
    result = engine.run(replace(shell, argv=sh("sleep 600 & echo done")))
    assert result.exit_status == 0
    assert result.output == "done\n"


def test_no_such_program(engine: Engine, shell: Step) -> None:
    with pytest.raises(BuildError) as caught:
        engine.check(replace(shell, argv=("no-such-program",)))
    assert caught.value.hint == "a command was not found in the image"
    assert "no-such-program" in caught.value.log


def test_no_such_image(engine: Engine, shell: Step) -> None:
    with pytest.raises(InfraError) as caught:
        engine.run(replace(shell, image="sha256:" + "0" * 64))
    assert "No such image" in str(caught.value)
    assert "removed meanwhile" in caught.value.hint


# --- output -------------------------------------------------------------------------------------------------------------


def test_a_flood_of_output_is_cut(engine: Engine, shell: Step, tmp_path: Path) -> None:
    program = "echo first; head -c 40M /dev/zero | tr '\\0' '.'; echo; echo last"
    result = engine.check(replace(shell, argv=sh(program), log=tmp_path / "log"))
    written = (tmp_path / "log").read_bytes()
    assert step.LOG_LIMIT < len(written) < step.LOG_LIMIT + 100
    assert written.startswith(b"first\n.")
    assert written.endswith(b".\nlast\n")
    assert f"[qcase: {40 * MIB + 12 - step.LOG_LIMIT} bytes of output were cut out here]".encode() in written
    assert result.output.endswith("last\n")
    assert len(result.output) <= 2 * step.TAIL_LIMIT


def test_steps_at_once_keep_their_outputs_apart(engine: Engine, shell: Step) -> None:
    results: dict[int, str] = {}

    def one(number: int) -> None:
        step = replace(shell, argv=sh(f"for n in $(seq 200); do echo {number}; done"))
        results[number] = engine.check(step).output

    threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: f"{number}\n" * 200 for number in range(4)}


# --- every ending removes the container ---------------------------------------------------------------------------------


def once_there(path: Path, then: Any) -> threading.Thread:
    """Call `then` in a thread once a file is there, which a step makes when it runs."""

    def watch() -> None:
        deadline = time.monotonic() + SOON
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        then()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.fixture
def sleeper(shell: Step, tmp_path: Path) -> Step:
    """A step that makes the file `running` in `tmp_path` and then sleeps."""
    mounts = (Mount(tmp_path, "/qcase/build", read_only=False),)
    return replace(shell, argv=sh("echo begun; touch /qcase/build/running; sleep 600"), mounts=mounts, timeout=600)


def test_control_c_while_a_step_runs(engine: Engine, sleeper: Step, tmp_path: Path) -> None:
    thread = once_there(tmp_path / "running", lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        engine.run(sleeper)
    thread.join()
    assert (tmp_path / "running").exists()
    assert containers_of(engine, process.run_id()) == []


def test_control_c_while_the_container_is_being_created(engine: Engine, sleeper: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    create = engine.api.create_container_from_config
    under_way: list[threading.Thread] = []

    def interrupted(*args: Any, **kwargs: Any) -> None:
        with Engine.connect() as other:
            other.facts  # noqa: B018 - connected, so that the request itself is all that is left to do
        thread = threading.Thread(target=create, args=args, kwargs=kwargs)
        thread.start()
        under_way.append(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(engine.api, "create_container_from_config", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.run(sleeper)
    under_way[0].join()
    assert containers_of(engine, process.run_id()) == []


def test_cancel_from_another_thread(sleeper: Step, tmp_path: Path) -> None:
    with Engine.connect() as engine:
        thread = once_there(tmp_path / "running", engine.cancel)
        with pytest.raises(InfraError, match="because the run ends"):
            engine.run(sleeper)
        thread.join()
        with pytest.raises(InfraError, match="because the run ends"):
            engine.run(sleeper)


KILLED = """
import sys
from pathlib import Path
from qcase.containers.engine import Engine
from qcase.containers.step import Mount, Step
from qcase.host import process

image, folder = sys.argv[1:]
print(process.run_id(), flush=True)
mounts = (Mount(Path(folder), "/qcase/build", read_only=False),)
argv = ("sh", "-c", "touch /qcase/build/running; sleep 600")
Engine.connect().run(Step(image=image, argv=argv, mounts=mounts, timeout=600, name="sleep"))
"""


@pytest.mark.alone  # five seconds are what was promised
def test_kill_9_leaves_no_container(engine: Engine, image: str, tmp_path: Path) -> None:
    argv = [sys.executable, "-c", KILLED, image, str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        run_id = child.stdout.readline().strip()
        once_there(tmp_path / "running", lambda: None).join()
        assert len(containers_of(engine, run_id)) == 1
        child.kill()
    deadline = time.monotonic() + 5
    while containers_of(engine, run_id) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert containers_of(engine, run_id) == []


# --- an engine that goes away -------------------------------------------------------------------------------------------


class Relay:
    """A unix socket before the engine's own, which can be cut: the engine dies, or has a hiccup."""

    def __init__(self, path: Path, engine: str) -> None:
        self.path = path
        self.drop = 0  # so many of the next connections
        self.dropped = 0
        self._engine = engine
        self._alive = True
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while self._alive:
            ends = [end for pair in self._pairs for end in pair]
            ready, _, _ = select.select([self._listener, self._woken, *ends], [], [])
            for one in ready:
                if one is self._woken:
                    break
                if one is self._listener:
                    self._accept()
                    continue
                pair = next((pair for pair in self._pairs if one in pair), None)
                if pair is None:
                    continue
                other = pair[1] if one is pair[0] else pair[0]
                with contextlib.suppress(OSError):
                    if data := one.recv(1 << 16):
                        other.sendall(data)
                        continue
                self._close(pair)
        for pair in list(self._pairs):
            self._close(pair)
        self._listener.close()

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        if self.drop > 0:
            self.drop -= 1
            self.dropped += 1
            client.close()
            return
        server = socket.socket(socket.AF_UNIX)
        server.connect(self._engine)
        self._pairs.append((client, server))

    def _close(self, pair: tuple[socket.socket, socket.socket]) -> None:
        self._pairs.remove(pair)
        for end in pair:
            end.close()

    def cut(self) -> None:
        self._alive = False
        self._wake.close()
        self._thread.join()
        self._woken.close()


@pytest.fixture
def relay(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    relay = Relay(tmp_path / "relay.sock", engine.socket)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{relay.path}")
    yield relay
    relay.cut()


# The docker package leaves a socket to the garbage collector when it cannot connect.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_engine_that_dies_during_a_step(engine: Engine, sleeper: Step, relay: Relay, tmp_path: Path) -> None:
    events: list[Event] = []
    with Engine.connect() as mortal:
        thread = once_there(tmp_path / "running", relay.cut)
        with pytest.raises(InfraError) as caught:
            mortal.run(sleeper, events.append, "normal/smoke")
        thread.join()
    assert "the engine went away" in str(caught.value)
    assert str(relay.path) in caught.value.hint
    [warned] = [event for event in events if isinstance(event, Warned)]
    assert "a container may be left" in warned.message
    assert warned.case == "normal/smoke"
    [left] = containers_of(engine, process.run_id())
    engine.api.remove_container(left, force=True)
    del caught, mortal
    gc.collect()  # here, where the warning is expected


def test_a_hiccup_of_the_engine_is_waited_out(shell: Step, relay: Relay) -> None:
    with Engine.connect() as engine:
        engine.facts  # noqa: B018 - so that it is the step that meets the hiccup
        engine.api.close()
        relay.drop = 2
        assert engine.check(replace(shell, argv=("echo", "done"))).output == "done\n"
    assert relay.dropped == 2
