"""A kernel's reports of itself: which text is one, whose text it is, and what becomes of a case that has one."""

from __future__ import annotations

import random
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qcase.arch import Arch
from qcase.console.group import Group
from qcase.console.judge import Judge
from qcase.console.rules import Limits, Rules, Ruling
from qcase.console.trouble import BLOCK_LINES, KEPT, TroubleWatch
from qcase.inputs.lint import names_trouble
from qcase.model import KernelTrouble, Verdict
from qcase.run import boot_plan

PROMPT = "root@qcase:/root# "

# Kind, and the line that begins a report, as Linux 5.10 to 6.19 write it on x86_64, aarch64, riscv64 and loongarch64.
LINES = [
    ("oops", "BUG: kernel NULL pointer dereference, address: 0000000000000008"),
    ("oops", "BUG: unable to handle page fault for address: ffffc90000a00000"),
    ("oops", "Oops: 0002 [#1] PREEMPT SMP PTI"),
    ("oops", "Oops: Oops: 0000 [#1] SMP NOPTI"),
    ("oops", "general protection fault, probably for non-canonical address 0xdead000000000100: 0000 [#1] SMP"),
    ("oops", "Oops: general protection fault, probably for non-canonical address 0xdead000000000100: 0000 [#1] SMP"),
    ("oops", "invalid opcode: 0000 [#1] PREEMPT SMP NOPTI"),
    ("oops", "divide error: 0000 [#1] PREEMPT SMP"),
    ("oops", "BUG: TASK stack guard page was hit at 00000000d6f3d3a4 (stack is 00000000c6b7e0b2..0000000093a5e5a4)"),
    ("oops", "Unable to handle kernel NULL pointer dereference at virtual address 0000000000000008"),
    ("oops", "Unable to handle kernel paging request at virtual address ffff800081234000"),
    ("oops", "Internal error: Oops: 0000000096000004 [#1] PREEMPT SMP"),
    ("oops", "Internal error: Oops - BUG: 00000000f2000800 [#1] SMP"),
    ("oops", "Internal error: synchronous external abort: 0000000096000410 [#1] SMP"),
    ("oops", "Insufficient stack space to handle exception!"),
    ("oops", "Oops [#1]"),
    ("oops", "Oops - illegal instruction [#1]"),
    ("oops", "CPU 0 Unable to handle kernel paging request at virtual address 0000000000000000, era == 9000000000e1c2a4"),
    ("oops", "Oops[#1]:"),
    ("oops", "Kernel BUG [#1]"),
    ("bug", "kernel BUG at mm/slub.c:4015!"),
    ("bug", "BUG: Bad page state in process sh  pfn:03c1a"),
    ("bug", "BUG: using smp_processor_id() in preemptible [00000000] code: sh/71"),
    ("bug", "BUG kmalloc-64 (Not tainted): Redzone overwritten"),
    ("atomic", "BUG: scheduling while atomic: sh/71/0x00000002"),
    ("atomic", "BUG: sleeping function called from invalid context at kernel/locking/mutex.c:580"),
    ("warning", "WARNING: CPU: 0 PID: 71 at kernel/softirq.c:362 __local_bh_enable_ip+0x6c/0x80"),
    ("warning", "WARNING: kernel/softirq.c:362 at __local_bh_enable_ip+0x6c/0x80, CPU#0: sh/71"),
    ("warning", "WARNING: at foo+0x1/0x2, CPU#0: sh/71"),
    ("soft-lockup", "watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [sh:71]"),
    ("hard-lockup", "NMI watchdog: Watchdog detected hard LOCKUP on cpu 0"),
    ("hard-lockup", "watchdog: CPU0: Watchdog detected hard LOCKUP on cpu 0"),
    ("workqueue-lockup", "BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 41s!"),
    ("rcu-stall", "rcu: INFO: rcu_preempt self-detected stall on CPU"),
    ("rcu-stall", "rcu: INFO: rcu_sched detected stalls on CPUs/tasks:"),
    ("rcu-stall", "rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 0-... } 26 jiffies s: 1"),
    ("rcu-stall", "rcu: rcu_preempt kthread starved for 5250 jiffies! g1 f0x0 RCU_GP_WAIT_FQS(5) ->state=0x0 ->cpu=0"),
    ("hung-task", "INFO: task sh:71 blocked for more than 120 seconds."),
    ("hung-task", "INFO: task my program:71 blocked in I/O wait for more than 122 seconds."),
    ("kasan", "BUG: KASAN: slab-out-of-bounds in kmalloc_oob_right+0x1/0x2"),
    ("kfence", "BUG: KFENCE: use-after-free read in test_use_after_free_read+0xb3/0x143"),
    ("kcsan", "BUG: KCSAN: data-race in foo / bar"),
    ("kmsan", "BUG: KMSAN: uninit-value in foo+0x1/0x2"),
    ("ubsan", "UBSAN: array-index-out-of-bounds in drivers/foo.c:12:3"),
    ("lockdep", "WARNING: possible circular locking dependency detected"),
    ("lockdep", "WARNING: possible recursive locking detected"),
    ("lockdep", "WARNING: inconsistent lock state"),
    ("lockdep", "WARNING: suspicious RCU usage"),
    ("lockdep", "WARNING: bad unlock balance detected!"),
    ("lockdep", "WARNING: SOFTIRQ-safe -> SOFTIRQ-unsafe lock order detected"),
    ("lockdep", "[ BUG: Invalid wait context ]"),
    ("lockdep", "INFO: trying to register non-static key."),
    ("out-of-memory", "sh invoked oom-killer: gfp_mask=0x140cca(GFP_HIGHUSER_MOVABLE|__GFP_COMP), order=0, oom_score_adj=0"),
    ("out-of-memory", "Out of memory: Killed process 71 (sh) total-vm:1234kB, anon-rss:12kB, file-rss:0kB"),
    ("out-of-memory", "Memory cgroup out of memory: Killed process 71 (sh) total-vm:1234kB, anon-rss:12kB, file-rss:0kB"),
    ("out-of-memory", "modprobe: page allocation failure: order:5, mode:0x40cc0(GFP_KERNEL|__GFP_COMP), nodemask=(null)"),
    ("list-corruption", "list_add corruption. next->prev should be prev (ffff888003c1a000), but was 0000000000000000."),
    ("refcount", "refcount_t: underflow; use-after-free."),
    ("netdevice", "unregister_netdevice: waiting for eth0 to become free. Usage count = 2"),
    ("netdevice", "NETDEV WATCHDOG: eth0 (virtio_net): transmit queue 0 timed out"),
    ("memory-leak", "kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)"),
    ("dma", "DMA-API: e1000 0000:00:03.0: device driver frees DMA memory with different size"),
    ("irq", 'irq 9: nobody cared (try booting with the "irqpoll" option)'),
    ("page-table", "mm/pgtable-generic.c:50: bad pgd 0000000012345678(00000000deadbeef)"),
    ("file-system", "VFS: Busy inodes after unmount of vda. Self-destruct in 5 seconds.  Have a nice day..."),
]
# What kernels and programs say when all is well.
HARMLESS = [
    "Linux version 6.12.0 (builder@host) (gcc 14.2.0) #1 SMP",
    "Kernel command line: console=ttyS0 root=/dev/vda panic=-1 hung_task_panic=0 softlockup_panic=0",
    "DMA-API: preallocated 65536 debug entries",
    "DMA-API: debugging enabled by kernel config",
    "kmemleak: Kernel memory leak detector initialized (mem pool available: 15679)",
    "rcu: Preemptible hierarchical RCU implementation.",
    "rcu: \tRCU event tracing is enabled.",
    "NMI watchdog: Enabled. Permanently consumes one hw-PMU counter.",
    "INFO: NMI handler (perf_event_nmi_handler) took too long to run: 3.210 msecs",
    "Spectre V2 : WARNING: Unprivileged eBPF is enabled with eIBRS on, data leaks possible via Spectre v2 BHB attacks!",
    "sh[71]: segfault at 0 ip 0000000000401136 sp 00007ffd1c2b3a40 error 6 in sh[401000+1000]",
    "traps: sh[71] general protection fault ip:401136 sp:7ffd1c2b3a40 error:0 in sh[401000+1000]",
    "sh[71]: unhandled signal 11 code 0x1 at 0x0000000000000000",
    "clocksource: timekeeping watchdog on CPU0: Marking clocksource 'tsc' as unstable because the skew is too large:",
    "sched: RT throttling activated",
    "test: the fix for BUG: 12 works",
    "x86/bugs: Mitigation: PTI",
    "EXT4-fs (vda): mounted filesystem with ordered data mode. Quota mode: none.",
    "oom_reaper: reaped process 71 (sh), now anon-rss:0kB",
    "hung_task: khungtaskd started",
]
WARN = [
    "------------[ cut here ]------------",
    "refcount_t: underflow; use-after-free.",
    "WARNING: CPU: 0 PID: 71 at lib/refcount.c:28 refcount_warn_saturate+0xba/0x110",
    "Modules linked in: virtio_blk",
    "CPU: 0 PID: 71 Comm: sh Not tainted 6.12.0 #1",
    "RIP: 0010:refcount_warn_saturate+0xba/0x110",
    "Call Trace:",
    " <TASK>",
    " foo+0x1/0x2",
    " </TASK>",
    "---[ end trace 0000000000000000 ]---",
]


def stamped(lines: list[str], at: float = 2.04321, mark: str = "[{:12.6f}] ") -> str:
    return "".join(f"{mark.format(at + n / 1000)}{line}\n" for n, line in enumerate(lines))


def watched(*parts: str, booting: bool = False) -> tuple[KernelTrouble, ...]:
    watch = TroubleWatch()
    for part in parts:
        watch.feed(part.encode(), booting=booting)
    watch.finish()
    return watch.found()


@pytest.mark.parametrize("mark", ["[{:12.6f}] ", "[{:12.6f}][   T71] ", "<4>[{:12.6f}] ", "root@qcase:/# [{:12.6f}] "])
@pytest.mark.parametrize(("kind", "line"), LINES)
def test_a_line_behind_the_mark_of_a_kernel_is_a_report(kind: str, line: str, mark: str) -> None:
    (found,) = watched(stamped([line], mark=mark))
    assert (found.kind, found.block[0].endswith(line)) == (kind, True)
    assert found.line in line


@pytest.mark.parametrize("line", HARMLESS)
def test_what_is_no_report(line: str) -> None:
    assert watched(stamped([line])) == ()
    assert watched(f"{line}\n") == ()
    assert watched(f"{line}\nCall Trace:\n") == ()


@pytest.mark.parametrize(("kind", "line"), LINES)
def test_where_the_kernel_writes_time_stamps_a_line_without_one_is_a_programs(kind: str, line: str) -> None:
    watch = TroubleWatch()
    watch.feed(stamped(["Linux version 6.12.0"], 0.0).encode(), booting=True)
    watch.feed("\n".join([line, *WARN, ""]).encode())
    watch.finish()
    assert watch.found() == ()


@pytest.mark.parametrize(("kind", "line"), [one for one in LINES if not one[1].startswith(("INFO: trying", "rcu: rcu_"))])
def test_without_time_stamps_a_report_is_one_that_a_kernels_lines_follow(kind: str, line: str) -> None:
    (found,) = watched(f"PASS 1\n{line}\nCPU: 0 PID: 71 Comm: sh Not tainted 6.12.0 #1\nCall Trace:\n foo+0x1/0x2\nPASS\n")
    assert found.kind == kind
    assert found.block[0] == line
    assert "Call Trace:" in found.block


@pytest.mark.parametrize(
    "text",
    [
        "BUG: x\nPASS\n",
        "WARNING: x\nCall it a day\n",
        "BUG: KASAN: slab-out-of-bounds in foo\nis what KASAN says\n",
        'unreferenced object 0xffff888003c1a000 (size 64):\n  comm "sh", pid 71, jiffies 4294877777\n  backtrace:\n',
        "Oops, something went wrong\n",
        "grep: BUG: no such file\n",
        "panic and INFO: task x\n",
        "------------[ cut here ]------------\nis how a report begins\n",
    ],
)
def test_what_programs_print_is_no_report(text: str) -> None:
    assert watched(text) == ()
    assert watched(stamped(["Linux version 6.12.0"], 0.0), text, booting=True) == ()


@pytest.mark.parametrize(("stamps", "count"), [(True, 0), (False, 1)])
def test_a_kernel_that_is_known_to_write_time_stamps_needs_no_boot_that_shows_it(stamps: bool, count: int) -> None:
    rules = Rules(success=("^PASS$",), time_stamps=stamps)
    judge = judged(rules, "booting quietly\n", "BUG: soft lockup - CPU#0 stuck for 22s! [sh:71]\n", "PASS\n")
    assert len(judge.kernel_trouble()) == count


def test_a_report_is_told_with_its_block_and_named_by_the_line_that_says_most() -> None:
    text = stamped(["eth0: link becomes ready"], 1.9) + stamped(WARN) + "PASS\n" + stamped(["eth0: link is down"], 2.5)
    (found,) = watched(text)
    assert (found.kind, found.line) == ("refcount", "refcount_t: underflow; use-after-free.")
    assert [line.partition("] ")[2] for line in found.block] == WARN


def test_two_reports_are_two() -> None:
    assert len(watched(stamped(WARN) + stamped(WARN, 3.0))) == 2
    assert len(watched("\n".join([*WARN, *WARN, ""]))) == 2
    assert len(watched(stamped(WARN[:4]) + stamped(WARN, 2.1))) == 2  # the first one was cut off
    assert len(watched(stamped(["Oops [#1]"]) + stamped(["INFO: task sh:71 blocked for more than 120 seconds."], 130.0))) == 2


def test_a_program_within_a_block_is_no_part_of_it() -> None:
    text = stamped(WARN[:5]) + "PASS: 1\nPASS: 2\n" + stamped(WARN[5:], 2.1)
    (found,) = watched(text)
    assert len(found.block) == len(WARN)
    assert not any("PASS" in line for line in found.block)


def test_what_dmesg_prints_again_counts_once() -> None:
    text = stamped(WARN) + stamped(["Oops [#1]"], 9.0)
    assert len(watched(text, "root@qcase:/# dmesg\n", text, "\n".join(text.splitlines()[2:5]), "\n")) == 2


def test_a_stack_dump_of_which_nothing_is_known_is_told_with_the_line_before() -> None:
    lines = [
        "sysfs: cannot create duplicate filename '/x'",
        "CPU: 0 UID: 0 PID: 71 Comm: sh Not tainted 6.12.0 #1",
        "Call Trace:",
    ]
    (found,) = watched(stamped(lines))
    assert (found.kind, found.line) == ("stack-dump", lines[0])
    assert len(found.block) == 3


def test_an_echo_is_no_report() -> None:
    command = "echo '[    2.043210] BUG: x'; true"
    watch = TroubleWatch((command,))
    watch.feed(f"{PROMPT}{command}\n".encode())
    watch.finish()
    assert watch.found() == ()


def test_however_the_text_is_split_the_reports_are_the_same() -> None:
    text = stamped(["eth0: up"], 1.0) + "PASS 1\n" + stamped(WARN) + PROMPT + stamped(["Oops [#1]"], 9.0) + "PASS\n"
    whole = watched(text)
    assert len(whole) == 2
    numbers = random.Random(1)
    for _ in range(200):
        cuts = sorted(numbers.sample(range(len(text)), 12))
        assert watched(*(text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True))) == whole
    assert watched(*text) == whole


def test_a_flood_of_reports_is_bounded() -> None:
    watch = TroubleWatch()
    for number in range(300):
        watch.feed(stamped(["Oops [#1]", *["x" * 1000] * 300], number * 10.0).encode())
    watch.finish()
    found = watch.found()
    assert (len(found), watch.more) == (KEPT, 300 - KEPT)
    assert watch.first == "Oops [#1]"
    assert all(len(one.block) <= BLOCK_LINES and len(one.block[-1]) <= 400 for one in found)
    watch.feed(b"[" * (1 << 20))
    watch.feed(b"x" * (1 << 20))
    assert len(watch._rest) < 1 << 18


@pytest.mark.parametrize(
    "line",
    [
        "BUG: Bad page state {}",
        "[{:12.6f}] Oops [#{}]",
        "[    1.000000] Oops [#1]",
        "Oops [#{}]",
        "------------[ cut here ]------------",
        "Out of memory: Killed process {} (sh)",
        "\n".join(WARN),
        "\n".join(f"[{{:12.6f}}] {line}" for line in WARN),
    ],
)
def test_no_flood_of_reports_or_of_what_looks_like_one_takes_long(line: str) -> None:
    """Half a second, on a busy machine some; looking at each line would take a minute."""
    pieces = [
        ("\n".join(line.format(*(n * 1.5 for _ in range(20))) for n in range(at, at + 1000)) + "\n").encode()
        for at in range(0, 4000, 1000)
    ]
    watch = TroubleWatch()
    began = time.process_time()
    size = 0
    while size < 30 << 20:
        for piece in pieces:
            watch.feed(piece)
            size += len(piece)
    assert time.process_time() - began < 10
    # A flood of doubtful lines does not hide a report of which there is no doubt.
    if not watch.first:
        watch.feed(b"x\n" * 100 + stamped(WARN, 90_000.0).encode())
        watch.finish()
        assert watch.first


def test_what_led_to_a_panic_is_not_told_beside_it() -> None:
    watch = TroubleWatch()
    watch.feed((stamped(["Oops [#1]"], 1.0) + stamped(WARN, 9.0)).encode())
    watch.feed((stamped(["Kernel panic - not syncing: Fatal exception"], 9.2) + stamped(WARN, 9.3)).encode())
    watch.finish()
    assert len(watch.found()) == 3
    (kept,) = watch.found(panicked=True)
    assert kept.line == "Oops [#1]"


def test_a_panic_that_nothing_led_to_takes_no_report_away() -> None:
    watch = TroubleWatch()
    watch.feed((stamped(WARN, 9.0) + stamped(["Kernel panic - not syncing: sysrq triggered crash"], 90.0)).encode())
    assert len(watch.found(panicked=True)) == 1


@pytest.mark.parametrize(
    ("kernel", "append", "args", "file", "stamps"),
    [
        ("alpine", "", (), None, True),
        ("debian", "quiet", ("-append", "quiet"), None, True),
        ("alpine", "printk.time=0", (), None, False),
        ("alpine", "", ("-append", "printk.time=0"), None, False),
        ("alpine", "", ("-kernel", "x"), None, False),
        ("alpine", "", (), Path("x"), False),
        ("kernels/mine", "", (), None, False),
    ],
)
def test_which_kernels_are_known_to_write_time_stamps(
    kernel: str, append: str, args: tuple[str, ...], file: Path | None, stamps: bool
) -> None:
    guest = {Arch.X86_64: SimpleNamespace(kernel=kernel, append=append)}
    session: Any = SimpleNamespace(workspace=SimpleNamespace(config=SimpleNamespace(guest=guest)), kernel_file=file)
    case: Any = SimpleNamespace(arch=Arch.X86_64, config=SimpleNamespace(args=args))
    assert boot_plan._time_stamps(case, session) is stamps


# ---- the judge


def judged(rules: Rules, *parts: str, then: float = 30.0) -> Judge:
    """Printed a tenth of a second apart; the first is the boot with its prompt."""
    judge = Judge(rules, started=0.0, limits=Limits(whole=20.0))
    now = 0.0
    for part in parts:
        now += 0.1
        judge.feed(part.encode(), now)
        judge.input()
    until = now + then
    while judge.ruling is None and (wake := judge.next_wake()) is not None and wake <= until:
        now = max(now, wake)
        judge.tick(now)
        judge.input()
    return judge


def ruling(judge: Judge) -> Ruling:
    assert judge.ruling is not None
    return judge.ruling


def plain(kernel_trouble: str = "warn") -> Rules:
    return Rules(success=("^PASS$",), fail=("^FAIL",), kernel_trouble=kernel_trouble)


@pytest.mark.parametrize(
    ("judged_as", "verdict", "count"), [("warn", Verdict.PASS, 1), ("ignore", Verdict.PASS, 0), ("fail", Verdict.FAIL, 1)]
)
def test_what_a_case_makes_of_it(judged_as: str, verdict: Verdict, count: int) -> None:
    judge = judged(plain(judged_as), "booting\n", stamped(WARN), "PASS\n")
    assert (ruling(judge).verdict, len(judge.kernel_trouble())) == (verdict, count)
    if verdict is Verdict.FAIL:
        assert ruling(judge).reason == "the guest's kernel reported trouble: refcount_t: underflow; use-after-free."


@pytest.mark.parametrize("parts", [("PASS\n", stamped(WARN)), ("PASS\n", stamped(["Oops [#1]"])[:-1])])
def test_a_report_while_the_output_is_drained_undoes_a_pass(parts: tuple[str, ...]) -> None:
    judge = judged(plain("fail"), "booting\n", *parts)
    assert ruling(judge).verdict is Verdict.FAIL


def test_a_case_that_hangs_after_a_report_is_not_waited_for() -> None:
    judge = judged(plain("fail"), "booting\n", stamped(WARN), then=2.0)
    assert ruling(judge).verdict is Verdict.FAIL


def test_one_that_only_warns_is_waited_for_and_keeps_its_reports() -> None:
    judge = judged(plain(), "booting\n", stamped(WARN))
    assert ruling(judge).verdict is Verdict.TIMEOUT
    assert len(judge.kernel_trouble()) == 1


def test_a_panic_that_follows_wins() -> None:
    panic = stamped(["Kernel panic - not syncing: Fatal exception"], 2.1)
    judge = judged(plain("fail"), "booting\n", stamped(WARN), panic)
    assert ruling(judge).verdict is Verdict.PANIC
    assert judge.kernel_trouble() == ()
    assert any("Kernel panic" in line for line in ruling(judge).block)


def test_a_group_runs_to_its_end_and_is_a_failure() -> None:
    group = Group("B", "P", "F", "ALL", "NONE", ("a", "b"), ("a", "b"))
    rules = Rules(PROMPT, "run", ("(?m)^ALL$",), (), group=group, kernel_trouble="fail")
    judge = judged(rules, PROMPT, "", "run\n", "B: a\n", stamped(WARN), "P: a\nB: b\n", "P: b\nALL\n")
    assert [test.status.value for test in judge.subtests()] == ["pass", "pass"]
    assert ruling(judge).verdict is Verdict.FAIL
    assert ruling(judge).reason.startswith("the guest's kernel reported trouble: refcount_t")


@pytest.mark.parametrize(
    "pattern", [r"BUG:", r"Oops", r"kernel BUG", r"soft lockup", r"(?m)^\[ *\d+\.\d+\] BUG", r"Call Trace", r"cut here"]
)
def test_fail_patterns_that_lint_tells(pattern: str) -> None:
    assert names_trouble(pattern)


@pytest.mark.parametrize("pattern", ["^FAIL", "(?i)error", r"\[", "(?i)bug", "not ok", "WARNING", "panic", r"(?i)\bfault\b"])
def test_fail_patterns_that_mean_other_things_too(pattern: str) -> None:
    assert not names_trouble(pattern)
