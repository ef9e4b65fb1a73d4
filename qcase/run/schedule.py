"""Schedule of a run: the order of the cases, the limit of parallel cases, and the distribution over several machines.

    order     longest first, by the times of the last run, so that no long case starts last
    Budget    capacity of this machine; a case starts when its processors and memory are free
    shard     the part of a suite that one of several machines runs

A guest needs a host processor for each of QEMU's guest threads, and memory for its `-m` plus QEMU itself. With `-j N` each case
needs one of N slots instead, whatever its size.
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

from qcase import parsing
from qcase.config.fields import TcgThreads
from qcase.errors import UsageError
from qcase.model import labelled
from qcase.suite.cases import BrokenCase, Case

OVERHEAD = 256 << 20  # bytes of QEMU besides the guest's memory: its code and its translation cache
SHARE = 0.8  # usable share of the free memory
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Need:
    """Resources that a case uses on a machine: processors, memory in bytes, ports and sockets."""

    processors: int
    memory: int
    exclusive_resources: frozenset[str] = frozenset()  # ports and sockets of the host, usable by one QEMU at a time


def need(case: Case | BrokenCase, tcg_threads: TcgThreads = "auto") -> Need:
    """Return the resources of a running case. Its build, which runs before, stays within them on average."""
    if isinstance(case, BrokenCase):
        return Need(0, 0)
    # See `qcase.vm.arguments`: TCG then runs all processors of a guest in one thread.
    single = tcg_threads == "single" or (tcg_threads == "auto" and case.arch.spec.tcg_single_thread)
    threads = 1 if single else case.config.smp
    return Need(threads, case.config.memory + OVERHEAD, exclusive_resources(case.config.args))


_PORT = re.compile(r"hostfwd=(tcp|udp):[^:,]*:(\d+)-|\b(tcp|udp|telnet|websocket):[^:,]*:(\d+)")
_SOCKET = re.compile(r"\bunix:([^,]+)|\bsocket,(?:[^,]+,)*?path=([^,]+)")


def exclusive_resources(args: Sequence[str]) -> frozenset[str]:
    """Return the host ports and sockets in QEMU's arguments. Port 0 means any free port and is left out."""
    found = set()
    for arg in args:
        for match in _PORT.finditer(arg):
            kind, port = match[1] or match[3], match[2] or match[4]
            if int(port):
                found.add(f"{'udp' if kind == 'udp' else 'tcp'} {int(port)}")
        found |= {match[1] or match[2] for match in _SOCKET.finditer(arg)}
    return frozenset(found)


class Budget:
    """Limit of parallel cases. `jobs`: a fixed number of cases, whatever their size; None: the capacity of `machine`."""

    def __init__(self, jobs: int | None, machine: Need) -> None:
        self.slots = jobs if jobs is not None else machine.processors
        self._bound = jobs is None
        self._machine = machine
        self._running: list[Need] = []

    def take(self, case: Case | BrokenCase, tcg_threads: TcgThreads = "auto") -> Need | None:
        """Reserve the resources of a case until `give`, and return them. Return None if they are not free now."""
        wanted = need(case, tcg_threads)
        if any(wanted.exclusive_resources & one.exclusive_resources for one in self._running):
            return None
        if self._running and (len(self._running) >= self.slots or (self._bound and not self._fits(wanted))):
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
    """Return the capacity of this machine or of our container: processors, and `SHARE` of the free memory in bytes."""
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


def order(names: Sequence[str], seconds: Mapping[str, float]) -> list[int]:
    """Return positions in `names` in start order: cases without a measured time first, then longest first."""
    return sorted(range(len(names)), key=lambda at: (-seconds.get(names[at], float("inf")), at))


# --- shards -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shard:
    """One part of several: `index` of `count`, from 1."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_shard(text: str) -> Shard:
    """Parse a shard such as `2/5`. Raises `UsageError` for other text."""
    index, slash, count = text.partition("/")
    if not (slash and index.isascii() and index.isdigit() and count.isascii() and count.isdigit()):
        raise UsageError(f"{text!r} is no shard", where="--shard", hint='write "i/n", such as 2/5: the second of five')
    if not 1 <= int(index) <= int(count):
        raise UsageError(f"there is no shard {index} of {count}", where="--shard", hint="they count from 1")
    return Shard(int(index), int(count))


def partition(names: Sequence[str], count: int, seconds: Mapping[str, float]) -> list[list[str]]:
    """Split names into `count` parts of about equal duration: each name, longest first, goes to the part with the least time.

    The result depends only on names and times, so machines with the same input get the same parts. A name without a time counts
    with the median of the known times. Without any times all parts have the same size.
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
    """Return a short hash of a partition. Shards with the same fingerprint belong to the same partition."""
    return hashlib.sha256(json.dumps([sorted(part) for part in parts]).encode()).hexdigest()[:12]


def read_times(path: Path) -> dict[str, float]:
    """Read durations in seconds by label from a results file of `--json`. Raises `UsageError` if the file has no results."""
    try:
        cases = parsing.from_json(path.read_bytes())["cases"]
        ran = [case for case in cases if case["verdict"] != "skipped"]
        return {labelled(str(case["case"]), str(case.get("variant", ""))): float(case["times"]["total"]) for case in ran}
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=f"--times {path}") from None
    except (ValueError, TypeError, KeyError):
        hint = "give it the results of a whole run: qcase run --json FILE"
        raise UsageError("are no results of a run", where=f"--times {path}", hint=hint) from None
