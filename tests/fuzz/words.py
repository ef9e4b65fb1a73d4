"""What random guests say: patterns with texts that match them and texts that nearly do, commands, kernel lines, panics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """A pattern, texts with a match, and near misses. A text may be of several lines."""

    pattern: str
    hits: tuple[str, ...]
    misses: tuple[str, ...]


SUCCESS = (
    Words("PASS", ("PASS", "all PASS here", "PASS: 3"), ("PAS", "PA SS", "P ASS", "pass")),
    Words("^PASS$", ("PASS",), ("PASSED", "xPASS", "PASS 1", "PAS")),
    Words(r"\bPASS\b", ("PASS", "x PASS y", "(PASS)"), ("PASSED", "aPASS", "PASS2")),
    Words(
        r"^passed \d+, failed 0$", ("passed 3, failed 0", "passed 12, failed 0"), ("passed 2, failed 1", "passed 1, failed 01")
    ),
    Words(r"(?m)^COUNT 4$", ("COUNT 4",), ("COUNT 42", "COUNT 3", " COUNT 4x")),
    Words(r"test result: ok\. \d+ passed", ("test result: ok. 5 passed",), ("test result: FAILED", "test result: ok. none")),
    Words("DONE\nPASS", ("DONE\nPASS", "x DONE\nPASSED"), ("DONE\n\nPASS", "DONEPASS", "DONE")),
    Words("prüf: ok", ("prüf: ok",), ("pruf: ok", "prü\nf: ok")),
    Words("^all done: 日本$", ("all done: 日本",), ("all done: 日", "all done: 日本x")),
)
FAIL = (
    Words("FAIL", ("FAIL", "x FAIL: memory", "FAILED: service db"), ("FAI L", "fail", "FAI")),
    Words(r"\bFAIL\b", ("FAIL", "a FAIL b", "FAIL:"), ("FAILED", "xFAIL", "FAIL_1")),
    Words("^FAIL", ("FAIL", "FAILED: x"), (" FAIL", "x FAIL")),
    Words("^fail 1$", ("fail 1",), ("fail 10", "fail 1 x", "no fail 1")),
    Words(r"not ok \d+", ("not ok 7", "x not ok 12 y"), ("not ok", "ok 7")),
    Words("assertion .* failed", ("assertion x == y failed",), ("assertion x == y", "failed assertion")),
    Words("BAD\nEND", ("BAD\nEND", "x BAD\nENDED"), ("BAD\n\nEND", "BADEND")),
    Words("Segmentation fault", ("Segmentation fault", "sh: Segmentation fault (core dumped)"), ("Segmentation", "fault")),
    Words("größer", ("größer",), ("grosser",)),
)
NOISE = (
    "loading modules",
    "x",
    "ok 1 - first",
    "running 3 tests",
    "10%",
    "random: crng init done",
    "",
    "a b c",
    "é è ü",
    "-----",
    "thread '",
    "level: 5$",
    "ready>",
    "50% 60%",
)
PROMPTS = (("root@x:/#", "root@x:/# "), ("#", "# "), ("starry:~$", "starry:~$ "), ("root@x:/#", "\x1b[1mroot@x:/# \x1b[0m"))
COMMANDS = (
    "echo PASS",
    "/usr/bin/t",
    "cd /t && ./run --all && echo PASS || echo FAIL",
    "sh -c './a; ./b' | tee log # not ok 3",
    "printf 'COUNT 4\\n'",
    "reboot",
    "echo 'test result: ok. 5 passed'; echo fail 1; ./very/long/path/to/a/program --with --many=options and words",
    "./a\n./b",
    "cat <<Q\nPASS\nQ",
    "echo prüf: ok",
    "echo \tPASS\x01",
    "./t; grep -c 'panicked at ' log; echo Kernel panic - not syncing",
    "FAIL=1 ./t",
)
KERNEL = (
    "eth0: link becomes ready",
    "random: crng init done",
    "PASS",
    "usb 1-1: new device",
    "test FAIL",
    "clocksource: tsc",
    "x",
)
STAMPS = ("[    2.040000] ", "[   12.000001][   T45] ", "<4>[    3.1] ", "[    0.000000] ", "<6>[   44.125000] ")
PANICS = (
    "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100",
    "Kernel panic - not syncing: VFS: Unable to mount root fs",
)
LINUX_REST = ("CPU: 0 PID: 1 Comm: init", "Call Trace:", " dump_stack+0x1/0x2")
RUST_PANICS = (
    "panicked at src/main.rs:10:5:\r\nindex out of bounds",
    "[kernel] Panicked at src/trap.rs:10 page fault",
    "[ 12.345678 0:2 axruntime::lang_items:5] panicked at modules/x.rs:1:2:\r\noops",
)
CRATES = ("thread 'main' panicked at src/main.rs:2:5:\r\n", "thread 'worker 1' (42) panicked at t.rs:1:1:\r\n")
