"""Which case starts when, and on which machine.

    order     longest first, by the times of the last run: what takes long must not begin last
    Budget    what this machine can carry; a case starts when what it needs is free
    shard     the part of a suite that one of several machines runs

A guest needs a host processor for each thread that QEMU runs it with, and its `-m` plus what QEMU itself takes. With `-j N`
each case needs one of N places instead, whatever it is made of.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qcase.errors import UsageError
from qcase.model import Arch
from qcase.suite import BrokenCase, Case

OVERHEAD = 256 << 20  # bytes that a QEMU takes besides the guest's memory: its code, and what it translated
SHARE = 0.8  # of the memory that is free now
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Need:
    """What a running case takes of a machine."""

    processors: int
    memory: int
    places: frozenset[str] = frozenset()  # ports and sockets of the host, which only one QEMU at a time can have


def need(case: Case | BrokenCase) -> Need:
    """What a case takes at the same time; its build, which comes before, stays within that on average."""
    if isinstance(case, BrokenCase):
        return Need(0, 0)
    # TCG runs all processors of an x86 guest in one thread, see `qemu._accelerator`.
    threads = 1 if case.arch is Arch.X86_64 else case.config.smp
    return Need(threads, case.config.memory + OVERHEAD, places(case.config.args))


_PORT = re.compile(r"hostfwd=(tcp|udp):[^:,]*:(\d+)-|\b(tcp|udp|telnet|websocket):[^:,]*:(\d+)")
_SOCKET = re.compile(r"\bunix:([^,]+)|\bsocket,(?:[^,]+,)*?path=([^,]+)")


def places(args: Sequence[str]) -> frozenset[str]:
    """The ports and sockets of the host that QEMU's arguments ask for. Port 0 is any that is free."""
    found = set()
    for arg in args:
        for match in _PORT.finditer(arg):
            kind, port = match[1] or match[3], match[2] or match[4]
            if int(port):
                found.add(f"{'udp' if kind == 'udp' else 'tcp'} {int(port)}")
        found |= {match[1] or match[2] for match in _SOCKET.finditer(arg)}
    return frozenset(found)


class Budget:
    """What may run at once. `jobs`: so many cases, whatever they need; None: what this machine carries."""

    def __init__(self, jobs: int | None, machine: Need) -> None:
        self.places = jobs if jobs is not None else machine.processors
        self._bound = jobs is None
        self._machine = machine
        self._running: list[Need] = []

    def take(self, case: Case | BrokenCase) -> Need | None:
        """What the case needs, which is then not free until `give`; None where there is no room for it now."""
        wanted = need(case)
        if any(wanted.places & one.places for one in self._running):
            return None
        if self._running and (len(self._running) >= self.places or (self._bound and not self._fits(wanted))):
            return None  # a case that is too large for the machine runs alone
        self._running.append(wanted)
        return wanted

    def give(self, need: Need) -> None:
        self._running.remove(need)

    def _fits(self, wanted: Need) -> bool:
        whole = [*self._running, wanted]
        processors = sum(min(one.processors, self._machine.processors) for one in whole)
        return processors <= self._machine.processors and sum(one.memory for one in whole) <= self._machine.memory


def machine() -> Need:
    """What this machine, or the container that we are in, can give: processors, and bytes of memory that are free now."""
    processors = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        memory = int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) << 10
    with contextlib.suppress(OSError, ValueError):
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        processors = min(processors, max(1, int(quota) // int(period)))
    with contextlib.suppress(OSError, ValueError):
        limit = int((_CGROUP / "memory.max").read_text())
        memory = min(memory, limit - int((_CGROUP / "memory.current").read_text()))
    return Need(processors, int(memory * SHARE))


def order(cases: Sequence[Case | BrokenCase], seconds: Mapping[str, float]) -> list[int]:
    """Positions in `cases` in the order in which to start them: what was never measured first, then longest first."""
    return sorted(range(len(cases)), key=lambda at: (-seconds.get(cases[at].display_name, float("inf")), at))


# --- shards -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shard:
    """One part of several: `index` of `count`, from 1."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_shard(text: str) -> Shard:
    """`2/5`. Raises `UsageError` for anything else."""
    index, slash, count = text.partition("/")
    if not (slash and index.isascii() and index.isdigit() and count.isascii() and count.isdigit()):
        raise UsageError(f"{text!r} is no shard", where="--shard", hint='write "i/n", such as 2/5: the second of five')
    if not 1 <= int(index) <= int(count):
        raise UsageError(f"there is no shard {index} of {count}", where="--shard", hint="they count from 1")
    return Shard(int(index), int(count))


def partition(names: Sequence[str], count: int, seconds: Mapping[str, float]) -> list[list[str]]:
    """The names in `count` parts that take about equally long: each, longest first, goes where there is least.

    Names and times alone decide, so that every machine that is given the same ones gets the same parts. What has no time counts
    as the middle of those that have one; without any times the parts are of one size.
    """
    usual = statistics.median(seconds[name] for name in names if name in seconds) if any(n in seconds for n in names) else 1.0
    cost = {name: max(seconds.get(name, usual), 0.001) for name in names}
    parts: list[list[str]] = [[] for _ in range(count)]
    loads = [0.0] * count
    for name in sorted(names, key=lambda name: (-cost[name], name)):
        least = min(range(count), key=lambda at: (round(loads[at], 6), len(parts[at]), at))
        parts[least].append(name)
        loads[least] += cost[name]
    return parts


def fingerprint(parts: Sequence[Sequence[str]]) -> str:
    """A short name for a partition: shards that show the same one are parts of the same whole, and together all of it."""
    return hashlib.sha256(json.dumps([sorted(part) for part in parts]).encode()).hexdigest()[:12]


def read_times(path: Path) -> dict[str, float]:
    """Seconds by display name, from the results that `--json` wrote. Raises `UsageError` where there are none."""
    try:
        cases = json.loads(path.read_bytes())["cases"]
        return {str(case["case"]): float(case["times"]["total"]) for case in cases if case["verdict"] != "skipped"}
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=f"--times {path}") from None
    except (ValueError, TypeError, KeyError):
        hint = "give it the results of a whole run: qcase run --json FILE"
        raise UsageError("are no results of a run", where=f"--times {path}", hint=hint) from None
