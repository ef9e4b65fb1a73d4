"""Kernel trouble short of a panic: Linux's reports about itself after which it goes on.

    text of the console ─► TroubleWatch ─► KernelTrouble(kind, line, block)

An Oops, a failed assertion, a warning, a lockup, a stall, a sanitizer's report, an OOM kill. The formats are those of Linux on
x86_64, aarch64, riscv64 and loongarch64.

A kernel's line differs from a program's by its mark: the time stamp `[   12.345678] `, also in the middle of a line, or the level
`<4>` at the start of one. A console without time stamps (`printk.time=0`) has no marks. There a report counts if its line has a
format with numbers that no program would print (`BUG: soft lockup - CPU#0 stuck for 22s! [sh:71]`), or if a line that only a
kernel writes follows (`Call Trace:`, `RIP: 0010:`, `CPU: 0 PID: 71 Comm: sh`). Where the boot shows time stamps, a report without
one is a program's text.

A flood of output costs one search by RE2 for all formats at once. Lines are examined one by one only within a report that is
kept, and only as long as that is a small part of the work: in a flood of text that looks like reports, not all reports behind the
first are counted. Before the first report, such a flood is searched only for formats that leave no doubt.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import re2

from qcase.model import KernelTrouble

KEPT: Final = 16  # reports kept with their block; further reports are only counted
BLOCK_LINES: Final = 60
LINE_SHOWN: Final = 400  # characters of a kept line
_LINE_MAX: Final = 1 << 16  # bytes searched of a line
_STRANGERS: Final = 40  # lines of programs within a block
_SPAN: Final = 2.0  # seconds of the kernel's time that a block lasts
_TO_PANIC: Final = 5.0  # maximum seconds from a report to the panic that it leads to
_COUNTED: Final = 10_000  # reports counted; after these the search ends
_LOOKS: Final = 4_000  # lines examined one by one, and one more for each _FOR_ONE bytes
_FOR_ONE: Final = 4_000
_BOOT: Final = 1 << 20  # bytes of a boot searched for time stamps
_NEAR: Final = 1 << 12  # the same as _TO_PANIC in bytes, where there are no time stamps
_REMEMBERED: Final = 4096  # lines remembered; a program such as dmesg prints reports again


class _Format(NamedTuple):
    """Patterns of one kind of report.

    `marked`: a line behind a kernel's mark. `bare`: a line without a mark that counts if a kernel's line follows. `alone`: a line
    without a mark that counts by itself.
    """

    kind: str
    marked: str
    bare: str = ""
    alone: str = ""


_DIE: Final = (
    r"(?:Oops|Internal error|general protection fault|double fault|invalid opcode|divide error|int3|stack segment|[Kk]ernel BUG)"
)
# The first format that matches a line names its kind.
FORMATS: Final = (
    _Format("kasan", r"BUG: KASAN: ", r"BUG: KASAN: [a-z-]+ in "),
    _Format("kfence", r"BUG: KFENCE: ", r"BUG: KFENCE: [a-z -]+ in "),
    _Format("kcsan", r"BUG: KCSAN: ", r"BUG: KCSAN: [a-z -]+ in "),
    _Format("kmsan", r"BUG: KMSAN: ", r"BUG: KMSAN: [a-z-]+ in "),
    _Format("ubsan", r"UBSAN: \S", r"UBSAN: [a-z-]+ in \S+:\d+"),
    _Format("soft-lockup", r"BUG: soft lockup", "", r"BUG: soft lockup - CPU#\d+ stuck for \d+s! \["),
    _Format("hard-lockup", r"Watchdog detected hard LOCKUP", "", r"Watchdog detected hard LOCKUP on cpu \d+"),
    _Format("workqueue-lockup", r"BUG: workqueue lockup", "", r"BUG: workqueue lockup - pool cpus=\d"),
    _Format(
        "rcu-stall",
        r"(?:INFO: \w+ (?:self-)?detected (?:expedited )?stall|INFO: RCU detected CPU|\w+ kthread (?:starved for|timer wakeup))",
        "",
        r"INFO: rcu\w* (?:self-)?detected (?:expedited )?stalls? on (?:CPU|tasks)",
    ),
    _Format(
        "hung-task",
        r"INFO: task [^\n]+:\d+ (?:is )?blocked ",
        "",
        r"INFO: task [^\n]+:\d+ blocked (?:for|in I/O wait for) more than \d+ seconds",
    ),
    _Format("atomic", r"BUG: scheduling while atomic", "", r"BUG: scheduling while atomic: \S+/\d+/0x[0-9a-f]+"),
    _Format("atomic", r"BUG: sleeping function called", "", r"BUG: sleeping function called from invalid context at \S+:\d+"),
    _Format(
        "oops",
        r"(?:BUG: kernel NULL|BUG: unable to handle |BUG: (?:\w+ )?stack guard page|(?:CPU \d+ )?Unable to handle kernel |"
        r"Internal error: |Oops(?:: | - |\[| \[)|general protection fault[,:]|Unhandled fault|Unexpected kernel |Bad mode in |"
        r"SError Interrupt on CPU|Insufficient stack space to handle exception|Fixing recursive fault|CFI failure at |"
        r"[^\n]*\[#\d+\](?:[ :]|$))",
        r"(?:Insufficient stack space to handle exception!|CFI failure at |BUG: unable to handle |Unexpected kernel BRK |"
        r"BUG: (?:\w+ )?stack guard page was hit)",
        rf"(?:BUG: kernel NULL pointer dereference, address: [0-9a-f]{{8}}|{_DIE}[^\n]*\[#\d+\]|Oops ?\[#\d+\]|"
        r"(?:CPU \d+ )?Unable to handle kernel [^\n]+ at virtual address [0-9a-f]{8}|"
        r"BUG: unable to handle page fault for address: [0-9a-f]{8})",
    ),
    _Format("bug", r"[Kk]ernel BUG at ", "", r"[Kk]ernel BUG at \S+:\d+!"),
    _Format("bug", r"BUG:? \S", r"BUG: (?:Bad|using|spinlock|rwlock|non-zero|key|unable|memory)\b|BUG \S+ \((?:Not t|T)ainted"),
    _Format(
        "lockdep",
        r"(?:WARNING: (?:possible|inconsistent|bad|suspicious|held lock|lock held|nested|\S+-(?:un)?safe|Nested)\b|"
        r"INFO: (?:possible|inconsistent|suspicious|trying to register non-static key)\b|"
        r"\[ (?:BUG|INFO): |DEBUG_LOCKS_WARN_ON\()",
        r"(?:WARNING: (?:possible (?:circular|recursive|irq)|inconsistent lock|bad unlock|suspicious RCU|held lock|"
        r"lock held|\S+-safe -> )|"
        r"\[ BUG: Invalid wait context \])",
    ),
    _Format(
        "warning",
        r"WARNING: (?:CPU: \d|(?:\S+:\d+ )?at \S)",
        r"WARNING: (?:CPU: \d+ PID: \d+ at |(?:\S+:\d+ )?at \S+, CPU#\d+: )",
    ),
    _Format(
        "out-of-memory",
        r"(?:[^\n\]]+ invoked oom-killer: |(?:Memory cgroup o|O)ut of memory: Killed process |"
        r"[^\n\]]+: page allocation failure: )",
        "",
        r"(?:[^\n\]]+ invoked oom-killer: gfp_mask=|(?:Memory cgroup o|O)ut of memory: Killed process \d+ \(|"
        r"[^\n\]]+: page allocation failure: order:\d+, mode:)",
    ),
    _Format("list-corruption", r"list_(?:add|del)(?: double add| corruption)", r"list_(?:add|del) corruption[.,] "),
    _Format("refcount", r"refcount_t: ", r"refcount_t: (?:underflow|overflow|addition on 0|saturated|decrement hit 0)"),
    _Format(
        "netdevice",
        r"unregister_netdevice: waiting for ",
        "",
        r"unregister_netdevice: waiting for \S+ to become free\. Usage count",
    ),
    _Format("netdevice", r"NETDEV WATCHDOG: ", r"NETDEV WATCHDOG: \S+ "),
    _Format("memory-leak", r"kmemleak: \d+ new suspected", "", r"kmemleak: \d+ new suspected memory leaks \(see "),
    _Format("dma", r"DMA-API: [^\n]+(?:device driver|cacheline tracking|exceeded )", r"DMA-API: [^\n]+: device driver "),
    _Format("irq", r"irq \d+: nobody cared", r"irq \d+: nobody cared \(try booting with "),
    _Format("page-table", r"\S+:\d+: bad (?:pgd|p4d|pud|pmd) ", "", r"mm/\S+\.c:\d+: bad (?:pgd|p4d|pud|pmd) [0-9a-f(]"),
    _Format("file-system", r"VFS: Busy inodes after unmount", "", r"VFS: Busy inodes after unmount of \S+"),
    _Format("stack-dump", r"CPU: \d+ (?:UID: \d+ )?PID: \d+ Comm: "),
)
_BEGIN: Final = r"-+\[ cut here \]-+"  # of a block whose next lines show its kind
_PANIC: Final = r"Kernel panic - not syncing"
_STAMP_MARK: Final = r"\[ *\d+\.\d+\](?:\[ *[CT]\d+\])? "
_MARK: Final = rf"(?:{_STAMP_MARK}|^<\d+>(?:{_STAMP_MARK})?)"
_BY: Final = r"(?:(?:NMI )?watchdog: (?:CPU\d+: )?|rcu: |workqueue: )?"  # parts of the kernel that prefix their name


def _any(patterns: list[str]) -> str:
    return "(?:" + "|".join(pattern for pattern in patterns if pattern) + ")"


def _compiled(pattern: str) -> Any:
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.log_errors = False
    return re2.compile(f"(?m){pattern}".encode(), options)


_KINDS: Final = [(one.kind, _compiled("^" + _BY + _any([one.marked, one.bare, one.alone]))) for one in FORMATS]
_MARKED: Final = _MARK + _BY + _any([one.marked for one in FORMATS] + [_BEGIN, _PANIC])
_ALONE: Final = "^" + _BY + _any([one.alone for one in FORMATS])
_BARE: Final = "^" + _BY + _any([one.bare for one in FORMATS] + [_BEGIN, _PANIC])
_SEARCHED: Final = _compiled(_any([_MARKED, _ALONE, _BARE]))
_SURE: Final = _compiled(_any([_MARKED, _ALONE, f"^{_PANIC}"]))
_HAS_MARKED: Final = _compiled(_MARKED)
_IS_MARKED: Final = _compiled(_MARK)
_IS_ALONE: Final = _compiled(_ALONE)
_STAMP: Final = _compiled(r"\[ *(\d+\.\d+)\](?:\[ *[CT]\d+\])? ")
_IS_BEGIN: Final = _compiled(f"^{_BEGIN}")
_IS_PANIC: Final = _compiled(f"^{_PANIC}")
_END: Final = _compiled(r"---\[ end (?:trace|Kernel panic)")
# Lines that a kernel without time stamps writes within a report, and no program does.
_FOLLOWS: Final = _compiled(
    r"^(?: ?Call [Tt]race:| ?<(?:TASK|IRQ|NMI)>|[RE]?IP: \d{4}:|CPU: \d+ [^\n]*PID: \d+ Comm: |Modules linked in:|"
    r"Hardware name: |"
    r"(?:pc|epc|lr|ra|sp) : |-+\[ end trace|Mem-Info:|ESR = 0x|ESR: 0x|status: [0-9a-f]{16} badaddr: |\[<[0-9a-f]{8,}>\])"
)
_LIKELY: Final = _compiled(r"^(?:[ \t]|[\w.()/ -]{1,24}\s?[:=] ?\S|={5,}|-{5,}|\[<|\w+ : [0-9a-f]|Code: |note: )")
# Lines of a booting kernel that show whether it writes time stamps.
_STAMPS: Final = _compiled(
    r"(?:^|\n)(?:<\d+>)?\[ *\d+\.\d{6}\](?:\[ *[CT]\d+\])? |^(?:Linux version \d|(?:Kernel c|C)ommand line: )"
)


class _Block:
    """A report that is not finished. `sure`: it is a report, whatever follows."""

    def __init__(self, marked: bool, stamp: float | None) -> None:
        self.marked = marked
        self.stamp = stamp
        self.sure = marked
        self.kind = ""
        self.line = ""
        self.lines: list[bytes] = []
        self.strangers = 0
        self.led_to_panic = False

    def add(self, line: bytes, text: bytes) -> None:
        self.lines.append(line)
        if self.line or _IS_BEGIN.search(text):
            return
        self.kind = next((kind for kind, pattern in _KINDS if pattern.search(text)), "")
        if self.kind:
            self.line = shown(text)

    def trouble(self) -> KernelTrouble:
        kept = list(self.lines)
        while not self.marked and len(kept) > 1 and not (_LIKELY.search(kept[-1]) or _FOLLOWS.search(kept[-1])):
            kept.pop()
        line = self.line or shown(_without_mark(self.lines[min(1, len(self.lines) - 1)]))
        return KernelTrouble(self.kind or "warning", line, tuple(shown(line) for line in kept))


class TroubleWatch:
    """Finds a kernel's reports in the text of one console. `typed`: texts whose echo may stand in it. `stamped`: whether the
    kernel writes time stamps; None if only its boot can show that.

    `first` is the line of the first report, as soon as it is certain; `more` counts the reports that are not kept.
    """

    def __init__(self, typed: tuple[str, ...] = (), *, stamped: bool | None = None) -> None:
        self.first = ""
        self.more = 0
        self._typed = [text.encode() for text in typed]
        self._rest = bytearray()  # an incomplete line
        self._block: _Block | None = None
        self._troubles: list[KernelTrouble] = []
        self._told: set[bytes] = set()
        self._before = b""  # the line before
        self._stamped = stamped
        self._ended_at = 0  # position (bytes) and kernel time at which the last report ended
        self._ended_stamp: float | None = None
        self._at = 0  # bytes processed
        self._looks: float = _LOOKS
        self._to_panic: int | None = None  # number of reports that did not lead to the panic

    def feed(self, data: bytes, *, booting: bool = False) -> None:
        """Process text without escapes, in pieces of any size. `booting`: no program of the case has run yet."""
        last = data.rfind(b"\n") + 1
        if last == 0:
            self._rest += data
            if len(self._rest) > 2 * _LINE_MAX:
                del self._rest[_LINE_MAX:-_LINE_MAX]
            return
        lines = bytes(self._rest) + data[:last] if self._rest else data[:last]
        self._rest[:] = data[last:]
        if booting and self._stamped is None and self._at < _BOOT and (seen := _STAMPS.search(lines)):
            self._stamped = b"[" in seen.group()
        if self.more < _COUNTED:
            self._look(lines)

    def finish(self) -> None:
        """Process the end of the text."""
        if self._rest:
            self.feed(b"\n")
        self._close()

    def found(self, *, panicked: bool = False) -> tuple[KernelTrouble, ...]:
        """Return the reports so far. `panicked`: leave out the report that led to the panic, and those that followed from it."""
        troubles = list(self._troubles)
        if self._block is not None and self._block.sure:
            troubles.append(self._block.trouble())
        return tuple(troubles[: self._to_panic] if panicked else troubles)

    # --- search --------------------------------------------------------------------------------------------------------

    def _look(self, lines: bytes) -> None:
        at = 0
        self._looks = min(_LOOKS, self._looks + len(lines) / _FOR_ONE)
        while at < len(lines):
            self._looks -= 1
            if self._block is None:
                if self._looks < 0 and self.first:
                    break
                pattern = _HAS_MARKED if self._stamped else _SEARCHED if self._looks > 0 else _SURE
                found = pattern.search(lines, at)
                if found is None:
                    break
                start = lines.rfind(b"\n", 0, found.start()) + 1
                if start:
                    self._before = lines[lines.rfind(b"\n", 0, start - 1) + 1 : start - 1]
                at = lines.find(b"\n", found.start()) + 1
                self._begin(lines[start : at - 1], found.start() - start, self._at + start)
                continue
            end = lines.find(b"\n", at)
            if self._goes_on(lines[at:end]):
                at = end + 1
                self._ended_at = self._at + at
        self._before = lines[lines.rfind(b"\n", 0, len(lines) - 1) + 1 : -1]
        self._at += len(lines)

    def _begin(self, line: bytes, at: int, position: int) -> None:
        """Begin a block with a line that has one of the formats, from `at` on."""
        mark = _HAS_MARKED.search(line)
        marked = mark is not None
        if not marked and self._stamped:
            return
        at = at if mark is None else mark.start()
        report = line[at : at + _LINE_MAX]
        text = _without_mark(report) if marked else report
        stamp = _stamp(report)
        if _IS_PANIC.match(text):
            self._panic(stamp, position)
            return
        if any(report in typed for typed in self._typed):
            return
        if stamp is not None and report in self._told:
            return  # the lines of its block that could begin a report are in there, too
        self._remember(report, stamp)
        sure = marked or bool(_IS_ALONE.search(text))
        if len(self._troubles) >= KEPT:
            self._count(stamp, text, sure=sure)
            return
        self._block = block = _Block(marked, stamp)
        if marked and text.startswith(b"CPU: ") and _IS_MARKED.search(self._before):
            block.lines.append(self._before)  # the report that caused the stack dump
            block.line, block.kind = shown(_without_mark(self._before)), "stack-dump"
        block.add(report, text)
        block.sure = sure
        self._note(block)
        self._ended_at = position + len(line) + 1

    def _count(self, stamp: float | None, text: bytes, *, sure: bool) -> None:
        """Count one more report, unless it is part of the last one."""
        last, self._ended_stamp = self._ended_stamp, stamp
        near = stamp is not None and last is not None and last <= stamp <= last + _SPAN
        if sure and (not near or _IS_BEGIN.match(text)):
            self.more += 1

    def _goes_on(self, line: bytes) -> bool:
        """Tell whether a line belongs to the open block, or stands within it. If not, close the block."""
        block = self._block
        assert block is not None
        if not block.marked:
            return self._goes_on_bare(block, line)
        found = _IS_MARKED.search(line)
        if found is None:
            block.strangers += 1
            if block.strangers > _STRANGERS:
                self._close()
            return True
        report = line[found.start() : found.start() + _LINE_MAX]
        text = _without_mark(report)
        stamp = _stamp(report)
        late = stamp is not None and block.stamp is not None and not block.stamp <= stamp <= block.stamp + _SPAN
        if late or (_IS_PANIC.match(text)) or (_IS_BEGIN.match(text) and block.line):
            self._close()
            return False
        self._remember(report, stamp)
        block.add(report, text)
        self._note(block)
        if _END.search(text) or len(block.lines) >= BLOCK_LINES:
            self._close()
        return True

    def _goes_on_bare(self, block: _Block, line: bytes) -> bool:
        if _IS_PANIC.match(line) or (_IS_BEGIN.match(line) and block.line):
            self._close()
            return False
        block.add(line[:_LINE_MAX], line[:_LINE_MAX])
        if _FOLLOWS.search(line):
            block.sure = True
        self._note(block)
        block.strangers = 0 if _LIKELY.search(line) or _FOLLOWS.search(line) else block.strangers + 1
        if _END.search(line) or len(block.lines) >= BLOCK_LINES or block.strangers > _STRANGERS // 5:
            self._close()
        return True

    def _note(self, block: _Block) -> None:
        if block.sure and block.line and not self.first:
            self.first = block.line

    def _close(self) -> None:
        block, self._block = self._block, None
        if block is None or not block.sure:
            return
        self._ended_stamp = _stamp(block.lines[-1])
        self.first = self.first or block.trouble().line
        self._troubles.append(block.trouble())

    def _panic(self, stamp: float | None, position: int) -> None:
        """Record the panic. It includes the report that led to it; reports behind it are left out."""
        if self._to_panic is not None:
            return
        if stamp is not None and self._ended_stamp is not None:
            led = self._ended_stamp <= stamp <= self._ended_stamp + _TO_PANIC
        else:
            led = position <= self._ended_at + _NEAR
        self._to_panic = len(self._troubles) - (1 if led and self._troubles and not self.more else 0)

    def _remember(self, report: bytes, stamp: float | None) -> None:
        if stamp is not None and len(self._told) < _REMEMBERED:
            self._told.add(report)


def is_trouble(line: str) -> bool:
    """Tell whether a kernel's line, without its mark, begins a report."""
    text = line.encode()
    return any(pattern.search(text) for _, pattern in _KINDS)


def shown(line: bytes) -> str:
    """Return a line as shown in reports: at most `LINE_SHOWN` characters."""
    return line[: 4 * LINE_SHOWN].decode(errors="replace")[:LINE_SHOWN].rstrip()


def _without_mark(line: bytes) -> bytes:
    found = _IS_MARKED.search(line)
    return line if found is None else line[found.end() :]


def _stamp(line: bytes) -> float | None:
    found = _STAMP.search(line)
    return None if found is None else float(found.group(1))
