"""Machines that end in every way there is, many times over: whether anything of them is left.

python -m tests.tools.endings [--simulated N] [--real N] [--seed S]      # the seed is printed

A simulated one is a small shell script in QEMU's place, a real one is our own kernel in QEMU.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from qcase.arch import Arch
from qcase.console.judge import Judge
from qcase.console.rules import Limits, Rules
from qcase.containers.engine import Engine
from qcase.errors import InfraError
from qcase.host import process
from qcase.host.crash_cleanup import marked_processes
from qcase.vm import arguments
from qcase.vm.console_log import ConsoleLog
from qcase.vm.machine import Machine, converse, start
from tests import kernel

NO_LIMITS = Limits()


class ListenerError(Exception):
    """What a listener of ours might raise in the middle of a run."""


@dataclass(frozen=True)
class Ending:
    """A way to end. `plays`: the kernel's command, or the script. `meanwhile` is called whenever the console said something."""

    plays: str
    expected: str
    limits: Limits = NO_LIMITS
    meanwhile: Callable[[Machine], None] = lambda _: None
    args: tuple[str, ...] = ()


def _kill(machine: Machine) -> None:
    if machine.heard.started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(machine.pid, signal.SIGKILL)


def _interrupt(_: Machine) -> None:
    raise KeyboardInterrupt


def _break(_: Machine) -> None:
    raise ListenerError


SOON = Limits(whole=0.05)
SIMULATED = (
    Ending("echo PASS", "pass"),
    Ending("echo FAIL", "fail"),
    Ending("echo '[ 1.0] Kernel panic - not syncing: x'", "panic"),
    Ending("echo bye", "exited"),
    Ending("echo bye; exit 3", "exited"),
    Ending("echo no such option >&2; exit 1", "error"),
    Ending("echo bye; kill -9 $$", "exited"),
    Ending("echo on; exec sleep 1000", "timeout", SOON),
    Ending("while :; do echo y; done", "timeout", SOON),
    Ending("sleep 1000 & echo left behind; wait", "timeout", SOON),
    Ending("sleep 1000 >/dev/null 2>&1 & echo PASS", "pass"),
    Ending("exec >&- 2>&-; exec sleep 1000", "exited"),
    Ending("echo on; exec sleep 1000", "interrupted", meanwhile=_interrupt),
    Ending("echo on; exec sleep 1000", "broken", meanwhile=_break),
)
REAL = (
    Ending("pass", "pass"),
    Ending("fail", "fail"),
    Ending("panic linux", "panic"),
    Ending("off", "exited"),
    Ending("reboot", "exited"),
    Ending("hang", "timeout", Limits(command=0.3)),
    Ending("flood", "timeout", Limits(command=0.3)),
    Ending("hang", "timeout", Limits(idle=0.4)),
    Ending("hang", "exited", meanwhile=_kill),
    Ending("hang", "interrupted", meanwhile=_interrupt),
    Ending("flood", "broken", meanwhile=_break),
    Ending("pass", "error", args=("-device", "no-such-device")),
)


def end(ending: Ending, argv: list[str], rules: Rules) -> str:
    """Run it to its end; the verdict, or what became of it instead."""
    try:
        with start(Arch.AARCH64, argv) as machine:
            judge = Judge(rules, started=time.monotonic(), limits=ending.limits)
            converse(machine, judge, ConsoleLog(io.BytesIO()), lambda: ending.meanwhile(machine))
            assert judge.ruling is not None
            return judge.ruling.verdict.value
    except InfraError:
        return "error"
    except KeyboardInterrupt:
        return "interrupted"
    except ListenerError:
        return "broken"


def simulated(ending: Ending, script: Path) -> str:
    return end(ending, ["/bin/sh", str(script), ending.plays], Rules(success=("^PASS$",), fail=("^FAIL",)))


def real(ending: Ending, kernels: Mapping[Arch, Path], image: Path) -> str:
    args = (*kernel.ARGS[Arch.AARCH64], *ending.args)
    argv = arguments.arguments(arguments.MachineSpec(Arch.AARCH64, args, image, kernels[Arch.AARCH64], network="none"))
    return end(ending, argv, Rules(prompt=kernel.PROMPT, command=ending.plays, success=("^PASS$",), fail=("^FAIL",)))


@contextlib.contextmanager
def nothing_left() -> Iterator[Path]:
    """A folder for temporary files; at the end no process, descriptor, file or listening socket of ours is there that was not."""
    process.guard()
    with tempfile.TemporaryDirectory(prefix="qcase-endings-") as name:
        before, tempfile.tempdir = tempfile.tempdir, name
        open_before, listening = _descriptors(), _listening()
        children = set(marked_processes(process.run_id()))
        try:
            yield Path(name)
            assert set(marked_processes(process.run_id())) - children == set(), "processes are left"
            assert [path.name for path in Path(name).iterdir() if path.suffix != ".kept"] == [], "files are left"
            assert _descriptors() == open_before, "descriptors are left"
            assert _listening() - listening == set(), "somebody still listens"
        finally:
            tempfile.tempdir = before


def _descriptors() -> list[str]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(f"{entry.name} {entry.readlink()}")
    return sorted(line for line in found if "/proc/" not in line)


def _listening() -> set[str]:
    """The inodes of sockets of ours that listen: only other processes can have some, QEMU's for one."""
    inodes = {line.split("socket:[")[1].rstrip("]") for line in _descriptors() if "socket:[" in line}
    tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    return {f[9] for table in tables for f in map(str.split, table) if f[3] == "0A" and f[9] in inodes}


def many(count: int, endings: tuple[Ending, ...], seed: int, play: Callable[[Ending], str], workers: int) -> Counter[str]:
    """Each kind in turn, then random ones; how often each came out. Raises where one came out otherwise."""
    rng = random.Random(seed)
    chosen = [*endings, *(rng.choice(endings) for _ in range(max(0, count - len(endings))))]
    came: Counter[str] = Counter()
    with ThreadPoolExecutor(workers) as several:
        for ending, got in zip(chosen, several.map(play, chosen), strict=True):
            assert got == ending.expected, f"{ending.plays}: {got}, not {ending.expected} (seed {seed})"
            came[got] += 1
    return came


def run_simulated(count: int, seed: int) -> Counter[str]:
    with nothing_left() as folder:
        script = folder / "stand-in.kept"
        script.write_text('exec sh -c "$1"\n')
        return many(count, SIMULATED, seed, lambda ending: simulated(ending, script), 8)


def run_real(count: int, seed: int, kernels: Mapping[Arch, Path]) -> Counter[str]:
    with nothing_left() as folder:
        image = folder / "root.kept"
        image.write_bytes(bytes(1 << 16))
        return many(count, REAL, seed, lambda ending: real(ending, kernels, image), 4)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--simulated", type=int, default=10_000)
    parser.add_argument("--real", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options = parser.parse_args()
    cache = Path(os.environ.get("QCASE_TEST_CACHE") or Path.home() / ".cache" / "qcase-tests")
    kernels = kernel.build(Engine.connect, cache)
    print(f"seed {options.seed}", flush=True)
    for what in ("real", "simulated"):
        began = time.monotonic()
        real_ones = what == "real"
        came = run_real(options.real, options.seed, kernels) if real_ones else run_simulated(options.simulated, options.seed)
        kinds = ", ".join(f"{number} {word}" for word, number in sorted(came.items()))
        print(f"{came.total()} {what} endings in {time.monotonic() - began:.0f} s, nothing left: {kinds}", flush=True)
    process.dismiss_guardian()


if __name__ == "__main__":
    main()
