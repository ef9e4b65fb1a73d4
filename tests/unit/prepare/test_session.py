"""What cases share while many of them run at once."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qcase import events
from qcase.arch import Arch
from qcase.disk import image_digest
from qcase.errors import ConfigError, InfraError, Problem, StoppedError
from qcase.host import process
from qcase.model import CaseResult, Fault, Verdict
from qcase.prepare.session import Session
from qcase.run import run_case, run_cases
from qcase.run.run_cases import Plan
from qcase.store.policy import Policy
from qcase.store.store import Store
from qcase.suite import cases, discover
from qcase.suite.cases import BrokenCase

TARGET = Arch.AARCH64.default_target


def session(root: Path, emit: events.Emit = events.ignore, toml: str = "") -> Session:
    (root / "qcase.toml").write_text(toml)
    store = Store(root / "store", writes=Policy(images=False, overlays=False))
    return Session(cases.Workspace.open(root), Arch.AARCH64, TARGET, store, emit)


def at_once(count: int, call: Callable[[int], object]) -> list[object]:
    """What calls from so many threads gave, all begun at the same moment."""
    gate = threading.Barrier(count)

    def one(number: int) -> object:
        gate.wait()
        try:
            return call(number)
        except InfraError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_what_is_shared_is_made_once(tmp_path: Path) -> None:
    shared = session(tmp_path)
    made: list[int] = []
    waiting = threading.Event()

    def make() -> int:
        waiting.wait(0.2)  # long enough for the others to come
        made.append(1)
        return 7

    assert at_once(8, lambda _: shared.once.get("thing", make)) == [7] * 8
    assert made == [1]


def test_a_fault_of_something_shared_is_met_once_and_told_to_all(tmp_path: Path) -> None:
    shared = session(tmp_path)
    tries: list[int] = []

    def make() -> int:
        tries.append(1)
        raise InfraError("qemu-img is not installed", hint="install it")

    told = at_once(6, lambda _: shared.once.get("thing", make))
    assert [str(error) for error in told] == ["qemu-img is not installed"] * 6
    assert tries == [1]


def test_who_needs_one_thing_does_not_wait_for_another(tmp_path: Path) -> None:
    shared = session(tmp_path)
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> str:
        begun.set()
        assert go_on.wait(60)
        return "slow"

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(shared.once.get, "slow", slow)
        assert begun.wait(60)
        assert shared.once.get("fast", lambda: "fast") == "fast"
        go_on.set()
        assert future.result(60) == "slow"


def test_a_base_image_that_was_written_just_now_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written twice within one tick of the filesystem's clock looks the same both times."""
    base = tmp_path / "base.img"
    base.write_bytes(b"one")
    shared = session(tmp_path)
    shared.once.get("guest 0", lambda: SimpleNamespace(rootfs=base))
    looks = base.stat()
    monkeypatch.setattr(image_digest, "facts_of", lambda _: looks)
    before = shared.base_guest.digest
    base.write_bytes(b"two")
    assert shared.base_guest.digest == image_digest.digest(base) != before
    monkeypatch.setattr(image_digest, "is_young", lambda _: False)
    assert shared.base_guest.digest == image_digest.digest(base)
    monkeypatch.setattr(image_digest, "remembered_digest", None)  # from here on it is known
    assert shared.base_guest.digest == image_digest.digest(base)


def test_listeners_hear_one_event_at_a_time(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def emit(_: events.Event) -> None:
        inside.append(1)
        most.append(len(inside))
        inside.pop()

    shared = session(tmp_path, emit)

    def speak(number: int) -> None:
        for _ in range(200):
            shared.emit(events.Progress(f"{number}"))

    at_once(8, speak)
    assert len(most) == 1600
    assert max(most) == 1


def test_a_wait_ends_when_the_run_is_stopped() -> None:
    def sleep() -> None:
        process.pause(600)

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(sleep)
        process.stop()
        try:
            with pytest.raises(StoppedError):
                waiting.result(60)
            with pytest.raises(StoppedError):
                process.run(["true"])
        finally:
            process.go_on()
    assert process.run(["true"]).returncode == 0


def test_a_start_sweeps_what_a_killed_run_was_storing(tmp_path: Path) -> None:
    """It may be large, and a run that stores nothing by itself would never come to it."""
    shared = session(tmp_path)
    staging = tmp_path / "store" / "v2" / "staging"
    staging.mkdir(parents=True)
    for name in ("image-dead-1-abc", "image-alive-1-def"):
        (staging / name).mkdir()
        (staging / name / "image.img").write_bytes(b"half")
        (staging / f"{name}.lock").touch()
    reading = replace(shared, store=Store(tmp_path / "store", readonly=True))
    with (staging / "image-alive-1-def.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        with reading:
            assert len(list(staging.iterdir())) == 4
        with shared:
            assert sorted(path.name for path in staging.iterdir()) == ["image-alive-1-def", "image-alive-1-def.lock"]


@pytest.mark.parametrize("name", ["guests", "downloads/packages"])
def test_a_run_that_only_fetched_something_tidies_up(name: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    kept = store / "downloads" / "packages" / "kept.apk"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"x")
    asked = session(tmp_path, toml='[cache]\nmax_size = "1 B"\n')
    with asked:
        pass
    with replace(asked, store=Store(store, readonly=True)):
        (store / name / "by somebody").mkdir(parents=True)
    with contextlib.suppress(KeyboardInterrupt), asked:
        (store / name / "interrupted").mkdir()
        raise KeyboardInterrupt
    assert kept.exists()
    with asked:
        (store / name / "fetched").mkdir()
    assert not kept.exists()


# --- many cases, none of which comes to boot --------------------------------------------------------------------------------


def broken(name: str) -> BrokenCase:
    error = ConfigError([Problem("is not TOML", f"suite/normal/{name}/qemu-aarch64.toml", 3)])
    return BrokenCase(name, f"normal/{name}", "normal", "", Path("/w") / name, error)


def test_results_are_in_the_order_of_the_cases(tmp_path: Path) -> None:
    said: list[events.Event] = []
    cases = [broken(f"case{number:02}") for number in range(40)]
    finished = run_cases.run_cases(cases, session(tmp_path, said.append), Plan(jobs=8))
    assert [result.case for result in finished.results] == [case.display_name for case in cases]
    assert {result.verdict for result in finished.results} == {Verdict.ERROR}
    assert finished.exit_code == 2
    assert isinstance(said[0], events.RunStarted)
    assert isinstance(said[-1], events.RunFinished)
    assert said[0].jobs == 8
    assert sum(isinstance(event, events.CaseFinished) for event in said) == 40


@pytest.mark.parametrize(("trust", "jobs"), [("suite", 4), ("sandboxed", 1)])
def test_cases_of_a_stranger_who_builds_kernels_run_one_at_a_time(trust: str, jobs: int, tmp_path: Path) -> None:
    """While one case waits for its kernel, the build could exchange a disk that another case names."""
    said: list[events.Event] = []
    kernel = '[guest.aarch64]\nrootfs = "alpine"\nkernel = { build = "make", output = "kernel", where = "c" }\n'
    one = session(tmp_path, said.append, f'[run]\ntrust = "{trust}"\n{kernel}')
    run_cases.run_cases([broken(f"case{number}") for number in range(9)], one, Plan(jobs=4))
    assert isinstance(said[0], events.RunStarted)
    assert said[0].jobs == jobs


@pytest.mark.parametrize(("limit", "ran"), [(1, 1), (3, 3), (0, 6)])
def test_after_enough_failures_nothing_new_is_started(limit: int, ran: int, tmp_path: Path) -> None:
    cases = [broken(f"case{number}") for number in range(6)]
    finished = run_cases.run_cases(cases, session(tmp_path), Plan(jobs=1, max_failures=limit))
    verdicts = [result.verdict for result in finished.results]
    assert verdicts == [Verdict.ERROR] * ran + [Verdict.SKIPPED] * (6 - ran)
    if ran < 6:
        plural = "case has" if ran == 1 else "cases have"
        assert finished.results[-1].reason == f"not run, because {ran} {plural} failed"
    assert finished.exit_code == 2


class Losing(Executor):
    """Loses what it is given, as a cluster does that scales down."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ARG002
        future: Future[Any] = Future()
        future.cancel()
        future.set_running_or_notify_cancel()
        return future


def test_a_case_that_an_executor_loses_is_an_error(tmp_path: Path) -> None:
    said: list[events.Event] = []
    finished = run_cases.run_cases([broken("a"), broken("b")], session(tmp_path, said.append), Plan(jobs=2), Losing())
    assert [result.verdict for result in finished.results] == [Verdict.ERROR] * 2
    assert [result.fault for result in finished.results] == [Fault.INFRA] * 2
    assert "cancelled" in finished.results[0].reason
    assert finished.exit_code == 3
    assert sum(isinstance(event, events.CaseFinished) for event in said) == 2


def test_every_repetition_is_a_result_of_its_own(tmp_path: Path) -> None:
    said: list[events.Event] = []
    finished = run_cases.run_cases([broken("a"), broken("b")], session(tmp_path, said.append), Plan(repeat=3))
    assert [(result.case, result.repetition) for result in finished.results] == [
        ("normal/a", 1),
        ("normal/a", 2),
        ("normal/a", 3),
        ("normal/b", 1),
        ("normal/b", 2),
        ("normal/b", 3),
    ]
    assert [event.case for event in said if isinstance(event, events.CaseStarted)][-1] == "normal/b#3"
    assert finished.results[-1].label == "normal/b#3"


def test_a_listener_that_fails_ends_the_run_with_its_own_error(tmp_path: Path) -> None:
    def emit(event: events.Event) -> None:
        if isinstance(event, events.CaseFinished):
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run_cases.run_cases([broken("a"), broken("b")], session(tmp_path, emit))


# --- interrupts ----------------------------------------------------------------------------------------------------------


def interrupt() -> None:
    """Send SIGINT to this very thread, while the main thread waits for a lock or a file."""
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)


class Interrupted(ThreadPoolExecutor):
    """Instead of a case, an interrupt that the main thread does not feel; the case ends in time only if the run is stopped."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ARG002
        return super().submit(self._one)

    def _one(self) -> CaseResult:
        asleep = 0
        while asleep < 3:  # it waits for this case to end, and for nothing else that we could hold
            time.sleep(0.02)
            state = Path(f"/proc/self/task/{threading.main_thread().native_id}/stat").read_text().rpartition(")")[2].split()[0]
            asleep = asleep + 1 if state == "S" else 0
        interrupt()
        process._stopped.wait(5.0)
        return CaseResult("normal/a", Arch.AARCH64, Verdict.TIMEOUT, Fault.CASE)


def test_an_interrupt_is_heard_though_it_wakes_nobody(tmp_path: Path) -> None:
    """One that came a moment before the main thread waited was heard when a case ended: by its timeout, and told as failed."""
    said: list[events.Event] = []
    with Interrupted(1) as executor:
        finished = run_cases.run_cases([broken("a")], session(tmp_path, said.append), Plan(), executor)
    assert finished.interrupted
    assert finished.results == ()
    assert not any(isinstance(event, events.CaseFinished) for event in said)


@pytest.mark.parametrize("retries", [0, 2])
def test_a_qemu_that_an_interrupt_ended_is_no_failure(retries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever ends a whole job sends its signal to every process, and QEMU may end before we hear of it."""
    folder = tmp_path / "test-suit/normal/a"
    folder.mkdir(parents=True)
    (folder / "qemu-aarch64.toml").write_text('success_regex = ["x"]\nargs = ["-nographic"]\n')
    exited = CaseResult("normal/a", Arch.AARCH64, Verdict.EXITED, Fault.CASE, "killed by SIGTERM")

    def stops_within(_: float) -> bool:
        interrupt()
        return process._stopped.wait(5.0)

    monkeypatch.setattr(run_case, "_attempt", lambda *_, **_k: exited)
    monkeypatch.setattr(process, "stops_within", stops_within, raising=False)
    said: list[events.Event] = []
    shared = session(tmp_path, said.append)
    (case,) = discover.discover(shared.workspace, Arch.AARCH64, TARGET).cases
    assert isinstance(case, cases.Case)
    finished = run_cases.run_cases([case], shared, Plan(retries=retries))
    assert finished.interrupted
    assert finished.results == ()
    assert not any(isinstance(event, events.CaseFinished | events.Retried) for event in said)


def test_a_case_and_what_it_needs_can_be_sent_to_another_process(tmp_path: Path) -> None:
    original = session(tmp_path, lambda _: None)
    original.once.get("thing", lambda: 7)
    case, copied = pickle.loads(pickle.dumps((broken("a"), original)))
    result = run_case.run_case(case, copied)
    assert replace(result, total=0.0) == replace(run_case.run_case(broken("a"), original), total=0.0)
    assert "is not TOML" in result.reason
    assert copied.once.get("thing", lambda: 8) == 8


def test_a_guest_that_is_damaged_during_a_run_is_not_booted(tmp_path: Path) -> None:
    said: list[events.Event] = []
    addresses = []
    for name in ("rootfs", "kernel", "initrd"):
        (tmp_path / name).write_bytes(name.encode())
        sha256 = hashlib.sha256(name.encode()).hexdigest()
        addresses.append(f'{name} = {{ url = "file://{tmp_path}/{name}", sha256 = "{sha256}" }}\n')
    (tmp_path / "w").mkdir()
    shared = session(tmp_path / "w", said.append, f"[guest.aarch64]\n{''.join(addresses)}")
    with shared:
        for _ in range(2):
            shared.base_guest.check()
            first = shared.guest
        fetched = [event for event in said if isinstance(event, events.Progress)]
        assert len(fetched) == 3
        for path in (first.rootfs, first.kernel, first.initrd):
            assert path is not None
            content = path.read_bytes()
            path.chmod(0o644)
            path.write_bytes(bytes(len(content)))
            shared.base_guest.check()
            assert shared.guest.rootfs == first.rootfs
            assert path.read_bytes() == content
            warning = [event for event in said if isinstance(event, events.Warned)][-1]
            assert str(path) in warning.message
        assert first.kernel is not None
        os.utime(first.kernel, (1, 1))  # looks different, and is not
        count = len(said)
        shared.base_guest.check()
        assert shared.guest.is_as_checked
        assert len(said) == count
