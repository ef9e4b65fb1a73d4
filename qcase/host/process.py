"""The one gateway to child processes.

Every child gets its arguments as a list, an environment from an allow-list, no standard input unless asked for, a session
of its own, and ends when its owner is done with it: TERM to the process group, KILL after a grace period, then wait.

A child also carries `QCASE_RUN_ID` in its environment. A *guardian*, a small process of its own that is started with the
first child, sees by the end of its standard input that qcase is gone, however it went, and kills every process that carries
the mark (see `qcase.host.crash_cleanup`). Nothing needs to be registered for that, so there is no moment at which a child is not
covered.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from qcase.errors import InfraError, StoppedError
from qcase.host import crash_cleanup

RUN_ID_VARIABLE = "QCASE_RUN_ID"

# Variables of our environment that a child may see, as shell patterns. All others have to be passed by name.
ALLOWED_ENVIRONMENT = ("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "XDG_*", "TERM")

TERM_GRACE = 2.0  # seconds between TERM and KILL


@dataclass(frozen=True)
class Deadline:
    """A point in monotonic time. `None` never comes."""

    at: float | None

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        return cls(None if seconds is None else time.monotonic() + seconds)

    def remaining(self) -> float | None:
        """Seconds left, never negative; None for a deadline that never comes."""
        return None if self.at is None else max(0.0, self.at - time.monotonic())

    @property
    def passed(self) -> bool:
        return self.at is not None and time.monotonic() >= self.at


class OverdueError(InfraError):
    """A command that took longer than it may."""


@dataclass(frozen=True)
class Completed:
    """Result of a child that has ended. `returncode` is negative for a signal, as `subprocess` has it."""

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: bytes

    @property
    def output(self) -> str:
        """Return the child's output, both streams, for a message."""
        return (self.stdout + self.stderr).decode(errors="replace").strip()


def environment(extra: Mapping[str, str] | None = None, allow: Sequence[str] = ()) -> dict[str, str]:
    """Build the environment of a child: variables that match `ALLOWED_ENVIRONMENT` or `allow` (shell patterns), then `extra`."""
    patterns = (*ALLOWED_ENVIRONMENT, *allow)
    passed = {k: v for k, v in os.environ.items() if any(fnmatch.fnmatchcase(k, p) for p in patterns)}
    return {**passed, "LC_ALL": "C.UTF-8", **(extra or {})}


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    allow: Sequence[str] = (),
    cwd: Path | None = None,
    timeout: float | None = None,
    check: bool = True,
    hint: str = "",
) -> Completed:
    """Run a command to its end and return its output.

    Raises `InfraError` if it cannot be started, or, with `check`, does not exit with 0; `OverdueError` after `timeout` seconds.
    """
    import tempfile  # 3 ms, which `qcase --help` does not need

    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with spawn(argv, env=env, allow=allow, cwd=cwd, stdout=out, stderr=err, hint=hint) as child:
            try:
                returncode = child.wait(timeout)
            except subprocess.TimeoutExpired:
                raise OverdueError(f"took longer than {timeout:g} s", where=shlex.join(argv), hint=hint) from None
        done = []
        for stream in (out, err):
            stream.seek(0)
            done.append(stream.read())
    completed = Completed(tuple(argv), returncode, done[0], done[1])
    if check and returncode != 0:
        tail = "\n".join(completed.output.splitlines()[-12:])
        raise InfraError(f"ended with status {returncode}\n{tail}".strip(), where=shlex.join(argv), hint=hint)
    return completed


@contextmanager
def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    allow: Sequence[str] = (),
    cwd: Path | None = None,
    stdin: int | IO[bytes] | None = None,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    pass_fds: Sequence[int] = (),
    grace: float = TERM_GRACE,
    hint: str = "",
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a child in a session of its own, and end its whole process group at the end of the `with`. `grace`: see `end`.

    Raises `InfraError` if it cannot be started, `StoppedError` after `stop`.
    """
    check_stopped()
    guard()
    full = {**environment(env, allow), RUN_ID_VARIABLE: run_id()}
    try:
        child = subprocess.Popen(
            list(argv),
            env=full,
            cwd=cwd,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.DEVNULL if stdout is None else stdout,
            stderr=subprocess.DEVNULL if stderr is None else stderr,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise InfraError(f"{argv[0]} is not installed", where=shlex.join(argv[:1]), hint=hint) from None
    except OSError as error:
        raise InfraError(f"cannot start: {error.strerror}", where=shlex.join(argv[:1]), hint=hint) from None
    with _lock:
        _children.add(child)
    try:
        check_stopped()  # `stop` may have looked for children a moment ago
        yield child
    finally:
        end(child, grace)
        with _lock:
            _children.discard(child)


def end(child: subprocess.Popen[bytes], grace: float = TERM_GRACE) -> None:
    """End a child's whole process group, with processes that outlived the child: TERM, KILL after `grace` seconds, then wait."""
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
        if not _signal_group(child.pid, number):
            break
        deadline = Deadline.after(patience)
        while not deadline.passed:
            child.poll()  # reaps the leader, so that the group can become empty
            if not _signal_group(child.pid, 0):
                break
            time.sleep(0.005)
    child.wait()
    for pipe in (child.stdin, child.stdout, child.stderr):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:
                continue  # unwritten data for a child that has ended


def _signal_group(group: int, number: int) -> bool:
    """Send a signal to a process group. False when there is no such group any more."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


# --- the end of a run, from another thread -------------------------------------------------------------------------------

_stopped = threading.Event()
_children: set[subprocess.Popen[bytes]] = set()


def stop() -> None:
    """Stop the run after an interrupt: set the stop flag, which wakes waiting threads, and send TERM to every child.

    No new child can be started afterwards.
    """
    with _lock:
        _stopped.set()
        for child in _children:
            _signal_group(child.pid, signal.SIGTERM)


def go_on() -> None:
    """Clear the stop flag after all workers have reacted to it."""
    _stopped.clear()


def leave_at_once() -> None:
    """Exit this process immediately, on a user's second interrupt. The guardian cleans up afterwards."""
    if os.isatty(1):
        os.write(1, b"\x1b[?25h\n")  # show the cursor, which live lines hide
    os._exit(130)


def stopped() -> bool:
    return _stopped.is_set()


def stops_within(seconds: float) -> bool:
    """Wait up to `seconds` for `stop`. Tells whether it was called."""
    return _stopped.wait(seconds)


def check_stopped() -> None:
    """Raise `StoppedError` after `stop`."""
    if _stopped.is_set():
        raise StoppedError("stopped, because the run ends")


def pause(seconds: float) -> None:
    """Sleep. Raises `StoppedError` as soon as the run is stopped."""
    _stopped.wait(seconds)
    check_stopped()


# --- the run's identity and its guardian --------------------------------------------------------------------------------

_lock = threading.RLock()  # a second guardian would take the first one's end for ours
_run_id: str | None = None
_guardian: subprocess.Popen[bytes] | None = None
_guarded_run = ""


def run_id() -> str:
    """Return the id of this run of qcase: `<pid>-<random>`. Children and containers carry it."""
    global _run_id
    with _lock:
        if _run_id is None or not _run_id.startswith(f"{os.getpid()}-"):
            _run_id = f"{os.getpid()}-{os.urandom(6).hex()}"
        return _run_id


def guard() -> None:
    """Start this run's guardian, once for each process."""
    global _guardian
    with _lock:
        if _guardian is not None and _guarded_run == run_id():
            return
        _start_guardian()


def _start_guardian() -> None:
    global _guardian, _guarded_run
    # -I -S: the guardian needs the standard library alone until the day it is needed, and starts in 10 ms.
    script = Path(__file__).with_name("crash_cleanup.py")
    _guarded_run = run_id()
    _guardian = subprocess.Popen(
        [sys.executable, "-I", "-S", str(script), _guarded_run],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )


def tell_guardian(word: str, rest: str = "") -> None:
    """Send the guardian a message: an object to clean up if qcase dies, or to forget.

    See `qcase.host.crash_cleanup` for the messages.
    """
    with _lock:
        guard()
        assert _guardian is not None
        assert _guardian.stdin is not None
        message = f"{word} {rest}" if rest else word
        assert "\0" not in message
        try:
            _guardian.stdin.write(message.encode(errors="surrogateescape") + b"\0")
            _guardian.stdin.flush()
        except BrokenPipeError:
            # The guardian was killed. This run continues without it.
            return


def guard_folder(folder: Path) -> None:
    """Make a folder with this run's mark, which the guardian removes if qcase dies. The guardian knows it before it is there."""
    tell_guardian("dir", str(folder))
    folder.mkdir(mode=0o700)
    fd = os.open(folder / crash_cleanup.MARK, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, run_id().encode())
    finally:
        os.close(fd)


@contextmanager
def temporary_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """Make a private folder of a name that nobody can guess, and remove it at the end, also if qcase is killed.

    `parent`: the folder that contains it, else the system's for temporary files. Raises `OSError` if it cannot be made.
    """
    import tempfile

    folder = (parent or Path(tempfile.gettempdir())).absolute() / f"{prefix}{os.urandom(6).hex()}"
    try:
        guard_folder(folder)
        yield folder
    finally:
        with contextlib.suppress(OSError):
            crash_cleanup.remove_tree(folder)
            release_folder(folder)


def release_folder(folder: Path) -> None:
    """Tell the guardian to forget a folder that is removed."""
    tell_guardian("drop", str(folder))


def dismiss_guardian(*, sweep: bool = False) -> None:
    """Dismiss the guardian after qcase has cleaned up.

    `sweep`: the guardian looks once more, after this process has ended. An interrupt can come between the start of a child and
    the line that would end it, and a second one during the cleanup.
    """
    global _guardian
    with _lock:
        if _guardian is None or _guardian.stdin is None:
            return
        if not sweep:
            _guardian.kill()  # it has done nothing yet, and an orderly exit would take 10 ms
        with contextlib.suppress(BrokenPipeError):
            _guardian.stdin.close()
        if not sweep:
            _guardian.wait()
        _guardian = None
