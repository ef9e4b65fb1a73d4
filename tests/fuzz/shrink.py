"""Make a small reproduction of a disagreement, and write it as a case of `tests/unit/console/console_cases.py`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from tests.fuzz.log import By, Log, Script, Write
from tests.fuzz.oracle_group import opinion
from tests.fuzz.play import Recorded, play
from tests.fuzz.serial import atoms

TRIES = 3000


def complaint(script: Script) -> tuple[str, Log]:
    log, _ = play(Recorded(script))
    return opinion(log).complaint(), log


def _kind(text: str) -> str:
    return text.split("'")[0]


def _joined(writes: tuple[Write, ...]) -> tuple[Write, ...]:
    """Each run of writes of one author that is no program as a single write."""
    found: list[Write] = []
    for write in writes:
        if found and write.by is found[-1].by and write.by not in (By.OUT, By.ECHO):
            found[-1] = replace(found[-1], data=found[-1].data + write.data)
        else:
            found.append(write)
    return tuple(found)


def _plausible(script: Script) -> bool:
    """Whether the authors still are who they are: whole lines of a kernel, and a shell's prompt where one is waited for."""
    kernel = b"".join(write.data if write.by is By.KERNEL else b"\0" for write in script.writes)
    lines = [line for part in kernel.split(b"\0") if part for line in part.splitlines(keepends=True)]
    if not all(line[:1] in (b"[", b"<") and line.endswith(b"\n") for line in lines):
        return False
    wanted = script.wants.prompt
    return wanted is None or wanted.encode() in _of(script, By.PROMPT)


def _of(script: Script, by: By) -> bytes:
    """All that one author wrote."""
    return b"".join(write.data for write in script.writes if write.by is by)


def _smaller(script: Script) -> Iterator[Script]:
    """Scripts with less in them: large steps first."""
    writes = script.writes
    joined = _joined(writes)
    if len(joined) < len(writes):
        yield replace(script, writes=joined)
    size = max(len(writes) // 2, 1)
    while size:
        for at in range(0, len(writes), size):
            yield replace(script, writes=writes[:at] + writes[at + size :])
        size //= 2
    for at in range(1, len(writes)):
        if writes[at].at > writes[at - 1].at and writes[at].by is not By.ECHO:  # which has to be typed first
            earlier = replace(writes[at], at=writes[at - 1].at)
            yield replace(script, writes=(*writes[:at], earlier, *writes[at + 1 :]))
        if writes[at].by is writes[at - 1].by and writes[at].at == writes[at - 1].at:
            both = replace(writes[at], data=writes[at - 1].data + writes[at].data)
            yield replace(script, writes=(*writes[: at - 1], both, *writes[at + 1 :]))
    for at, write in enumerate(writes):
        if write.by is not By.OUT:
            continue  # half a kernel's line, echo or prompt is no kernel's line, echo or prompt
        whole = set(itertools.accumulate(map(len, atoms(write.data)), initial=0))
        step = max(len(write.data) // 2, 1)
        while step and len(write.data) > 1:
            for low in range(0, len(write.data), step):
                if not {low, min(low + step, len(write.data))} <= whole:
                    continue
                data = write.data[:low] + write.data[low + step :]
                yield replace(script, writes=(*writes[:at], Write(write.at, write.by, data), *writes[at + 1 :]))
            step //= 2
    wants = script.wants
    for n in range(len(wants.fail)):
        yield replace(script, wants=replace(wants, fail=wants.fail[:n] + wants.fail[n + 1 :]))
    if wants.from_prompt:
        yield replace(script, wants=replace(wants, from_prompt=False))
    if wants.command_limit is not None:
        yield replace(script, wants=replace(wants, command_limit=None))
    if script.ends is not None:
        yield replace(script, ends=None)


def shrink(script: Script) -> tuple[Script, str]:
    """The smallest script that greedy removal finds for the same kind of complaint and the same keys typed."""
    first, log = complaint(script)
    typed = b"".join(data for _, data in log.typed)
    kind = _kind(first)
    told = _of(script, By.SCRIPT), _of(script, By.ECHO)  # half an echo is none that a guest would make
    tries = 0
    again = bool(first)
    while again:
        again = False
        for smaller in _smaller(script):
            if not _plausible(smaller) or (_of(smaller, By.SCRIPT), _of(smaller, By.ECHO)) != told:
                continue
            tries += 1
            if tries > TRIES:
                break
            said, log = complaint(smaller)
            if _kind(said) == kind and b"".join(data for _, data in log.typed) == typed:
                script, first, again = smaller, said, True
                break
    return script, first


def shown(script: Script) -> str:
    """The script as Python, for a table of cases."""
    wants = script.wants
    given = [f"{name}={value!r}" for name, value in vars(wants).items() if value not in (None, (), False, "") and name != "whole"]
    given.append(f"whole={wants.whole!r}")
    lines = [f"    Write({write.at:.3f}, By.{write.by.name}, {write.data!r})," for write in script.writes]
    ends = "" if script.ends is None else f"\n    ends={script.ends:.3f}," + (" reset=True," if script.reset else "")
    return "\n".join([f"Script(\n  Wants({', '.join(given)}),", "  (", *lines, f"  ),{ends}", ")"])
