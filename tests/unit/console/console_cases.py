"""Small guests that a judge of consoles got wrong, or could, each with the verdict that is right.

Found by `make fuzz` and made small by hand, or after a report. The author of each write is for the oracle; the judge sees the
bytes and the times alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.fuzz.log import By, Script, Wants, Write

PROMPT = "root@x:/# "
ASKS = Wants(prompt="root@x:/#", command="./t", success=("^PASS$",), fail=("FAIL",), whole=20.0)
READS = Wants(success=("^PASS$",), fail=("FAIL",), whole=20.0)
AHEAD = replace(ASKS, command="./a\n./b")


@dataclass(frozen=True)
class Case:
    name: str
    right: str
    script: Script


def out(at: float, text: str) -> Write:
    return Write(at, By.OUT, text.encode("utf-8", errors="surrogateescape"))


def kernel(at: float, text: str) -> Write:
    return Write(at, By.KERNEL, text.encode())


def shell(at: float) -> Write:
    return Write(at, By.PROMPT, PROMPT.encode())


def echo(at: float, text: str) -> Write:
    return Write(at, By.ECHO, text.encode())


def panic(at: float, text: str) -> Write:
    return Write(at, By.PANIC, text.encode())


def crate(at: float, text: str) -> Write:
    return Write(at, By.CRATE, text.encode())


def case(name: str, right: str, wants: Wants, *writes: Write, ends: float | None = None) -> Case:
    return Case(name, right, Script(wants, writes, ends))


OOPS = "Kernel panic - not syncing: Attempted to kill init!\r\n"
END = "---[ end Kernel panic - not syncing: Attempted to kill init! ]---\r\n"
ANY = replace(READS, success=("PASS",))
COUNT = replace(READS, success=(r"^passed \d+, failed 0$",))
HEARD = (shell(1.0), echo(1.1, "./t"), echo(1.12, "\r\n"))

TYPING = [
    case(
        "a service's fail line before the first key's echo",
        "fail",
        ASKS,
        shell(1.0),
        out(1.05, "FAILED: db\r\n"),
        echo(1.2, "./t\r\n"),
        out(1.3, "PASS\r\n"),
    ),
    case(
        "a service's fail line between key and echo",
        "fail",
        ASKS,
        shell(1.0),
        out(1.15, "\r\nFAILED: db\r\n"),
        echo(1.6, "./t\r\n"),
        out(1.7, "PASS\r\n"),
    ),
    case("a fail behind the prompt, no line end", "fail", ASKS, shell(1.0), out(1.15, "FAIL"), out(3.0, "\r\nPASS\r\n")),
    case(
        "a fail during a late echo",
        "fail",
        ASKS,
        shell(1.0),
        out(3.0, "\r\nFAILED: db\r\n"),
        echo(4.0, "./t\r\n"),
        out(4.1, "PASS\r\n"),
    ),
    case("a service's PASS while qcase types", "pass", ASKS, shell(1.0), out(1.15, "\r\nPASS\r\n"), echo(1.2, "./t\r\n")),
    case("a panic while qcase types", "panic", ASKS, shell(1.0), panic(1.15, "\r\n" + OOPS)),
    case(
        "fail in the echo alone",
        "timeout",
        replace(ASKS, command="./t || echo FAIL"),
        shell(1.0),
        echo(1.1, "./t || echo FAIL\r\n"),
        shell(1.5),
    ),
    case(
        "PASS in the echo alone",
        "timeout",
        replace(ASKS, command="./t\nPASS"),
        shell(1.0),
        echo(1.1, "./t\r\nPASS\r\n"),
        shell(1.5),
    ),
    case(
        "a panic's words in a late echo",
        "timeout",
        replace(ASKS, command="grep 'panicked at ' log"),
        shell(1.0),
        echo(4.0, "grep 'panicked at ' log\r\n"),
        shell(4.1),
    ),
    case(
        "a typed letter at the end of a word",
        "timeout",
        replace(ASKS, command="cat <<E\n./t\nE", fail=(r"\bFAIL\b",)),
        shell(1.0),
        echo(1.1, "cat <<E\r\n"),
        out(1.2, "FAILE\r\n"),
    ),
]

UNFINISHED = [
    case(
        "a number goes on after a silence",
        "timeout",
        replace(READS, success=("^COUNT 4$",)),
        out(1.0, "COUNT 4"),
        out(4.0, "2\r\n"),
    ),
    case("an unfinished line is no success yet", "fail", ANY, out(1.0, "PASS"), out(4.0, "ED 1, FAILED 2\r\n")),
    case("an unfinished line when the time is up", "pass", READS, out(1.0, "PASS")),
    case("an unfinished line when QEMU ends", "pass", READS, out(1.0, "PASS"), ends=3.0),
    case("an unfinished fail line when QEMU ends", "fail", replace(READS, fail=("^fail 1$",)), out(1.0, "fail 1"), ends=3.0),
    case("the prompt is back behind an unfinished line", "pass", ASKS, *HEARD, out(2.0, "PASS"), shell(2.0)),
    case("a fail whose number goes on", "timeout", replace(READS, fail=("^fail 1$",)), out(1.0, "fail 1"), out(3.0, "0\r\n")),
    case("a login prompt", "pass", replace(READS, success=("login:",)), out(1.0, "x login: ")),
    case(
        "a login prompt that is no prompt",
        "fail",
        replace(READS, success=("login:",)),
        out(1.0, "x login"),
        out(1.2, ": FAIL\r\n"),
    ),
]

TORN = [
    case(
        "a kernel's line tears a fail text",
        "fail",
        READS,
        out(1.0, "FAI"),
        kernel(1.0, "[    2.040000] eth0: up\r\n"),
        out(1.1, "L: mem\r\nPASS\r\n"),
    ),
    case(
        "a kernel's line tears a fail text of two lines",
        "fail",
        replace(READS, fail=("BAD\nEND",)),
        out(1.0, "BAD\r\n"),
        kernel(1.0, "<4>[    2.04] x\r\n"),
        out(1.1, "END\r\nPASS\r\n"),
    ),
    case(
        "a kernel's line tears a success",
        "pass",
        READS,
        out(1.0, "PA"),
        kernel(1.0, "[    2.040000] eth0: up\r\n"),
        out(1.1, "SS\r\n"),
    ),
    case(
        "an echo tears a fail text",
        "fail",
        AHEAD,
        shell(1.0),
        echo(1.1, "./a\r\n"),
        out(1.13, "FAI"),
        echo(1.14, "./b\r\n"),
        out(1.2, "L\r\nPASS\r\n"),
    ),
    case(
        "a kernel's line behind a fail text",
        "fail",
        READS,
        out(1.0, "FAIL"),
        kernel(1.0, "[    2.040000] x\r\n"),
        out(1.1, "\r\nPASS\r\n"),
    ),
]

SCREEN = [
    case("a counter is overwritten", "timeout", COUNT, out(1.0, "passed 1, failed 0\rpassed 2, failed 1\r\n")),
    case("a counter ends well", "pass", COUNT, out(1.0, "passed 1, failed 1\rpassed 2, failed 0\r\n")),
    case("a fail is overwritten", "fail", READS, out(1.0, "FAIL\rPASS\r\n")),
    case("a success is erased", "timeout", READS, out(1.0, "PASS\x1b[2K\r\n")),
    case("a success is erased from its start", "timeout", ANY, out(1.0, "PASS\r\x1b[Kx\r\n")),
    case("a success is erased by backspaces", "timeout", ANY, out(1.0, "PASS\b \b\b \b\r\n")),
    case("a success is corrected", "pass", READS, out(1.0, "PAX\bSS\r\n")),
    case("a fail is corrected away", "fail", READS, out(1.0, "FAIL\b\b\b\bPASS\r\n")),
    case("a fail that is overstruck", "fail", READS, out(1.0, "F\bFA\bAI\bIL\bL\r\nPASS\r\n")),
    case("a success that is overstruck", "pass", READS, out(1.0, "P\bPA\bAS\bSS\bS\r\n")),
    case("a fail made by a backspace", "fail", READS, out(1.0, "FAIX\bL\r\nPASS\r\n")),
    case(
        "a fail by cursor movement",
        "fail",
        READS,
        out(1.0, "AIL\rF\x1b[1C\r\n\x1b[4Gx\r\n"),
        out(1.1, "xxxx\rFA\x1b[2CX\x1b[3GIL\r\nPASS\r\n"),
    ),
    case("a success in the alternate screen", "timeout", READS, out(1.0, "\x1b[?1049hPASS\r\n\x1b[?1049l")),
    case("a fail in the alternate screen", "fail", READS, out(1.0, "\x1b[?1049hFAIL\x1b[?1049lPASS\r\n")),
    case("a fail in a title", "fail", READS, out(1.0, "\x1b]0;x FAIL x\x07PASS\r\n")),
    case("a fail in a device control string", "fail", READS, out(1.0, "\x1bP1$r x FAIL x\x1b\\PASS\r\n")),
    case("a success in a title", "timeout", ANY, out(1.0, "\x1b]0;PASS\x07x\r\n")),
    case("a fail behind a vertical tab", "fail", replace(READS, fail=("^FAIL",)), out(1.0, "x\vFAIL\r\nPASS\r\n")),
    case("a fail behind a form feed", "fail", replace(READS, fail=("^FAIL",)), out(1.0, "x\fFAIL\r\nPASS\r\n")),
    case("a concealed success", "timeout", ANY, out(1.0, "\x1b[8mPASS\x1b[0m\r\n")),
    case("a coloured success", "pass", READS, out(1.0, "\x1b[1;3"), out(1.6, "2mPA\x1b[0mSS\x1b[K\r\n")),
    case("a success that the cursor goes up to", "timeout", READS, out(1.0, "PASS\r\n\x1b[A\r\x1b[2Kx\r\n")),
    case("the screen is cleared behind a success", "timeout", READS, out(1.0, "PASS\r\n"), out(1.2, "\x1b[H\x1b[2J")),
]

PANICS = [
    case(
        "a panic behind the prompt, no time stamp",
        "panic",
        ASKS,
        *HEARD,
        out(1.2, "PASS\r\n"),
        shell(1.2),
        panic(1.3, OOPS + "Call Trace:\r\n" + END),
    ),
    case("a panic behind an unfinished line", "panic", READS, out(1.0, "PASS\r\nx"), panic(1.1, OOPS + "Call Trace:\r\n" + END)),
    case("a panic behind an unfinished line, and nothing more", "panic", READS, out(1.0, "x"), panic(1.1, OOPS)),
    case("a panic with a time stamp in a line", "panic", READS, out(1.0, "PASS\r\nx"), panic(1.1, "[    3.040000] " + OOPS)),
    case(
        "a thread of a program panics",
        "pass",
        READS,
        crate(1.0, "thread 'main' panicked at src/main.rs:2:5:\r\n"),
        out(1.1, "PASS\r\n"),
    ),
    case(
        "a numbered thread of a program panics",
        "pass",
        READS,
        crate(1.0, "thread 'main' (42) panicked at src/main.rs:2:5:\r\n"),
        out(1.1, "PASS\r\n"),
    ),
    case(
        "half a thread's words before a kernel's",
        "panic",
        READS,
        out(1.0, "thread '"),
        panic(1.1, "panicked at src/trap.rs:10:5:\r\nx\r\n"),
    ),
    case(
        "a panic's words in the echo",
        "pass",
        replace(ASKS, command="grep 'Kernel panic - not syncing' log"),
        shell(1.0),
        echo(1.12, "grep 'Kernel pan"),
        echo(1.14, "ic - not syncing"),
        echo(1.16, "' log"),
        echo(1.18, "\r\n"),
        out(1.3, "PASS\r\n"),
    ),
]

PANIC_WORDS = replace(ASKS, command="./t; grep -c 'panicked at ' log; echo Kernel panic - not syncing")
NOT_OK = replace(ASKS, command="./t | tee log # not ok 3", fail=(r"not ok \d+",))
HERE = replace(ASKS, command="cat <<Q\nPASS\nQ")
OR_FAIL = replace(ASKS, command="./t && echo PASS || echo FAIL")

SECOND = [
    case(
        "another number than the one that was typed",
        "fail",
        NOT_OK,
        shell(1.0),
        out(1.15, "\r\nnot ok 1\r\n"),
        echo(1.6, "./t | tee log # not ok 3\r\n"),
        out(2.0, "PASS\r\n"),
    ),
    case(
        "letters that nobody typed between those that somebody did",
        "fail",
        replace(ASKS, command="grep -c x log; echo Kernel", fail=("größer",)),
        shell(1.0),
        out(1.15, "\r\ngrößer\r\n"),
        echo(1.6, "grep -c x log; echo Kernel\r\n"),
        out(2.0, "PASS\r\n"),
    ),
    case(
        "a letter more than what was typed",
        "fail",
        OR_FAIL,
        shell(1.0),
        out(1.15, "\r\nFAILv\r\n"),
        echo(2.2, "./t && echo PASS || echo FAIL\r\n"),
        out(2.5, "PASS\r\n"),
    ),
    case(
        "a fail behind the prompt that came back",
        "fail",
        replace(ASKS, command="FAIL=1 ./t"),
        shell(1.0),
        echo(1.1, "FAIL=1 ./t\r\n"),
        out(1.3, "PASS\r\n"),
        shell(1.3),
        out(1.7, "FAIL"),
    ),
    case(
        "an unfinished success while qcase types, no echo",
        "pass",
        replace(ASKS, command="FAIL=1 ./t"),
        shell(1.0),
        out(1.3, "\nPASS"),
    ),
    case(
        "a kernel's line behind an unfinished success, and the time is up",
        "pass",
        READS,
        out(1.0, "PASS"),
        kernel(1.0, "[    2.040000] x\r\n"),
    ),
    case(
        "a kernel's line behind an unfinished success, and QEMU ends",
        "pass",
        READS,
        out(1.0, "PASS"),
        kernel(1.0, "[    2.040000] x\r\n"),
        ends=4.0,
    ),
    case(
        "a line that is typed ahead comes back twice",
        "timeout",
        HERE,
        shell(1.0),
        echo(1.11, "cat <<Q\r\n"),
        echo(1.5, "PASS\r\n"),
        echo(1.6, "PASS\r\n"),
        echo(1.8, "Q\r\n"),
    ),
    case(
        "the echo comes behind an output that is like it",
        "timeout",
        replace(HERE, success=(r"\bPASS\b",)),
        shell(1.0),
        echo(1.11, "cat <<Q\r\n"),
        out(1.15, "PASS2\r\n"),
        echo(1.6, "PASS\r\n"),
        echo(1.7, "Q\r\n"),
    ),
    case(
        "a success in an echo that comes twice",
        "timeout",
        replace(ASKS, command="echo \tPASS\x01", success=("PASS",)),
        shell(1.0),
        echo(1.2, "echo \tPASS^A"),
        echo(1.3, "echo \tPASS^A"),
    ),
    case(
        "a success in an echo in capitals",
        "timeout",
        replace(ASKS, command="echo pass", success=("PASS",)),
        shell(1.0),
        echo(1.2, "ECHO PASS"),
        echo(1.4, "\r\n"),
    ),
    case(
        "an echo loses characters twice",
        "timeout",
        replace(ASKS, command="FAIL=1 ./t"),
        shell(1.0),
        echo(1.2, "FAIL=1 /t"),
        echo(2.2, "\b \b" * 10),
        echo(2.6, "FAIL=1 ./t"),
        echo(3.0, "\r\n"),
    ),
    case(
        "a panic in the middle of a word",
        "panic",
        READS,
        out(1.0, "4"),
        panic(1.0, "panicked at src/main.rs:10:5:\r\nindex out of bounds\r\n"),
    ),
    case(
        "a kernel's panic behind a thread's unfinished one",
        "panic",
        READS,
        crate(1.0, "thread 'main' panicked at src/main.rs:2:5:"),
        panic(1.1, "[ 12.345678 0:2 axruntime::lang_items:5] panicked at modules/x.rs:1:2:\r\noops\r\n"),
    ),
    case(
        "a panic while its words are typed",
        "panic",
        PANIC_WORDS,
        shell(1.0),
        panic(1.15, OOPS + "Call Trace:\r\n" + END),
        ends=4.0,
    ),
    case(
        "a panic at the prompt while its words are typed",
        "panic",
        PANIC_WORDS,
        shell(1.0),
        panic(1.9, "panicked at src/main.rs:10:5:\r\nindex out of bounds\r\n"),
    ),
    case(
        "a line over another at the top of the screen",
        "timeout",
        replace(READS, success=("DONE\nPASS",)),
        out(1.0, "xxxxxxxxxxx\x1b[HDONE\nPASS\r\n"),
    ),
    case(
        "the prompt behind an unfinished line at the prompt",
        "pass",
        replace(ASKS, success=(r"\bPASS\b",)),
        shell(1.0),
        out(1.02, "PASS"),
        shell(2.5),
    ),
    case(
        "concealed in one write, shown in the next",
        "pass",
        READS,
        out(1.0, "\x1b[8m"),
        out(1.1, "x\x1b[m\r\n"),
        out(1.2, "PASS\r\n"),
    ),
    case("an unfinished success is erased to the end of the screen", "timeout", READS, out(1.0, "PASS\r\x1b[J")),
    case("an unfinished success is erased to the end of the line", "timeout", READS, out(1.0, "PASS\r\x1b[K")),
    case(
        "the prompt is back behind an unfinished line, no echo",
        "pass",
        replace(ASKS, success=("^COUNT 4$",)),
        shell(1.0),
        out(2.0, "\nCOUNT 4"),
        shell(4.0),
    ),
    case(
        "an unfinished fail text of two words while qcase types",
        "fail",
        replace(
            ASKS,
            command="echo 'test result: ok. 5 passed'; echo fail 1; ./very/long/path/to/a/program --with",
            fail=("assertion .* failed",),
        ),
        shell(1.0),
        out(1.8, "assertion  failed"),
        out(3.5, " x\r\nPASS\r\n"),
    ),
    case(
        "a fail text of two lines while qcase types",
        "fail",
        replace(ASKS, fail=("BAD\nEND",)),
        shell(1.0),
        out(1.6, "BAD\nEND"),
        out(3.0, "\nPASS\n"),
    ),
    case(
        "a line that begins with what was typed",
        "fail",
        replace(ASKS, command="FAIL=1 ./t", success=("ok",)),
        shell(1.0),
        out(1.6, "FAILtest result: ok\n"),
    ),
    case(
        "a fail text in the middle of an echo",
        "fail",
        replace(PANIC_WORDS, fail=(r"not ok \d+",)),
        shell(1.0),
        echo(1.2, "./t; grep -c 'pa"),
        out(1.2, "xnot ok 1\n"),
        echo(1.5, "nicked at ' log;"),
        out(3.0, "PASS\n"),
    ),
    case("a success is erased in the next write, and the time is up", "timeout", ANY, out(1.0, "PASS\r"), out(1.1, "\x1b[J")),
    case("a line end that comes a while behind its CR", "pass", READS, out(1.0, "PASS\r"), out(1.6, "\n"), out(1.7, "x\r\n")),
    case(
        "the prompt is back behind what came before the first key",
        "pass",
        replace(ASKS, success=("^COUNT 4$",)),
        shell(1.0),
        out(1.01, "\nCOUNT 4"),
        shell(4.0),
    ),
    case(
        "an unfinished success while a long line is typed, and QEMU ends",
        "pass",
        replace(
            ASKS,
            command="echo 'test result: ok. 5 passed'; echo fail 1; ./very/long/path/to/a/program --with",
            success=("DONE\nPASS",),
        ),
        shell(1.0),
        out(2.3, "DONE\nPASS"),
        ends=3.9,
    ),
    case(
        "an echo that lost characters, and the time is up",
        "timeout",
        OR_FAIL,
        shell(1.0),
        echo(1.2, "./t && echo PASS"),
        echo(1.3, " || cho FAIL"),
    ),
    case(
        "a fail text at the prompt while output is drained",
        "fail",
        replace(OR_FAIL, success=("PASS",), fail=("Segmentation fault",)),
        kernel(0.9, "[    2.040000] PASS\r\n"),
        shell(1.0),
        out(1.2, "Segmentation fault"),
    ),
    case(
        "an unfinished line that looks like a prompt behind the match",
        "fail",
        replace(ANY, fail=("failed",)),
        out(1.0, "PASS:"),
        out(3.0, " 3, failed 1\r\n"),
    ),
    case(
        "a blank before a fail text that somebody typed",
        "timeout",
        replace(ASKS, command="echo PASS", fail=("^FAIL",)),
        shell(1.0),
        out(1.4, "\n FAIL"),
    ),
    case(
        "a panic in the middle of an echo",
        "panic",
        replace(OR_FAIL, whole=30.0),
        shell(1.0),
        echo(1.2, "./t && echo PASS"),
        panic(1.3, OOPS + "Call Trace:\r\n" + END),
    ),
    case(
        "a fail text that an echo goes on behind",
        "fail",
        replace(
            ASKS,
            command="echo 'test result: ok. 5 passed'; echo fail 1; ./very/long/path/to/a/program --with",
            fail=("assertion .* failed",),
        ),
        shell(1.0),
        out(1.3, "assertion  failed"),
        echo(1.5, "echo 'test resul"),
        out(1.5, "DONE\n"),
        out(3.0, "PASS\n"),
    ),
    case(
        "a panic's words in an echo behind a kernel's line",
        "timeout",
        PANIC_WORDS,
        shell(1.85),
        echo(2.75, "./t;"),
        echo(2.95, " grep -c 'pa"),
        echo(3.15, "nicked at ' log;"),
        echo(3.35, " echo Kernel pan"),
        echo(3.55, "ic - not syncing"),
        kernel(4.278, "[    0.000000] eth0: link becomes ready\r\n"),
        echo(4.65, "\r\n"),
        shell(4.95),
    ),
    case(
        "a near miss of what is typed next",
        "timeout",
        HERE,
        shell(0.0),
        echo(0.3, "cat <<Q"),
        out(0.418, "xPASS\r\n"),
        echo(0.5, "\r\nPASS\r\nQ"),
        out(0.501, "level: 5$"),
        echo(0.7, "\r\n"),
    ),
    case(
        "a panic's words in a late echo, and the prompt is back",
        "pass",
        replace(PANIC_WORDS, success=("PASS",), from_prompt=True),
        shell(0.2),
        echo(2.5, "./t; gre"),
        echo(2.7, "p -c 'pa"),
        echo(2.9, "nicked at ' log;"),
        echo(3.1, " echo Kernel pan"),
        echo(3.3, "ic - not syncing"),
        echo(3.5, "\r\n"),
        out(3.6, "PA"),
        out(3.8, "SS"),
        out(4.0, "\r\n"),
        shell(4.2),
    ),
    case(
        "a panic's words in an echo that is erased and typed again",
        "timeout",
        replace(PANIC_WORDS, whole=30.0),
        shell(0.4),
        echo(1.3, "./t; gr"),
        echo(1.7, "ep -c 'panicked at ' log; echo Kernel p"),
        echo(3.5, "anic - not syncing"),
        echo(3.9, "\b \b" * 80),
        echo(5.5, "./t; grep -c 'pa"),
        echo(5.9, "nicked at ' log;"),
        echo(6.3, " echo Kernel pan"),
        echo(6.5, "ic - not syncing"),
        echo(7.6, "\r\n"),
        out(8.0, "x\r\n"),
        shell(8.5),
    ),
]

COUNTS = Wants(prompt="root@x:/#", command="cat <<Q\nPASS\nQ", success=("PASS",), fail=("^fail 1$",), whole=20.0)
TOLD = Wants(prompt="root@x:/#", command="FAIL=1 ./t", success=("^OK$",), fail=("FAIL",), whole=20.0)
SAYS = replace(ASKS, command="echo PASS", success=("PASS",))
AGAIN = (
    shell(0.4),
    echo(1.1, "echo PASS"),
    out(1.442, "BAD\r\n\r\nEND\r\nok 1 - first\r\n"),
    echo(1.5, "echo PASS"),
    out(1.51, "random: crng init done"),
    echo(1.7, "\r\n"),
    out(1.71, "\n"),
)

EXPLAINED = [
    case(
        "a kernel line between the prompt and its echo, and one in a fail text behind it",
        "fail",
        replace(COUNTS, command="./t"),
        shell(0.1),
        kernel(0.15, "[    0.000000] usb 1-1: new device\r\n"),
        echo(0.3, "./t\r\n"),
        out(0.4, "f"),
        kernel(0.7, "<6>[   44.125000] x\r\n"),
        out(0.8, "ail 1\r\nPASS\r\n"),
        shell(0.9),
    ),
    case(
        "a fail text that a program prints at a prompt, which begins as the command does, where nothing is echoed",
        "fail",
        replace(TOLD, whole=15.0),
        shell(0.1),
        out(2.8, "FAI L\r\nOK\r\n"),
        shell(2.85),
        out(3.2, "FAIL\r\n\r\n\r\n"),
    ),
    case(
        "a fail text that ends where the echo of a line typed ahead begins",
        "fail",
        COUNTS,
        shell(0.1),
        echo(0.24, "cat <<Q\r\n"),
        out(0.26, "fail 1"),
        echo(0.28, "PASS\r\n"),
        echo(0.33, "Q\r\n"),
        out(1.6, "ok 1 - first\r\nPASS\r\n"),
        shell(2.0),
    ),
    case(
        "the same, overstruck",
        "fail",
        COUNTS,
        shell(0.1),
        echo(0.24, "cat <<Q\r\n"),
        out(0.26, "f\bfa\bai\bil\bl \b 1\b1"),
        echo(0.28, "PASS\r\n"),
        echo(0.33, "Q\r\n"),
        out(1.6, "ok 1 - first\r\nPASS\r\n"),
        shell(2.0),
    ),
    case(
        "a command that holds a fail text, echoed twice with a program's line end between",
        "timeout",
        TOLD,
        shell(0.1),
        echo(0.22, "FAIL=1 ./t"),
        out(0.23, "\r\n"),
        echo(0.25, "FAIL=1 ./t"),
        echo(0.27, "\r\n"),
        echo(0.3, "\r\n"),
    ),
    case(
        "a letter before the second echo of a line typed ahead, and the rest of the word behind it",
        "timeout",
        replace(AHEAD, fail=()),
        shell(0.02),
        echo(0.123, "./a"),
        echo(0.127, "./a"),
        echo(0.131, "\r\n"),
        echo(0.133, "./b"),
        echo(0.137, "\r\n"),
        out(0.138, "P"),
        echo(0.139, "./b"),
        echo(0.141, "\r\n"),
        out(0.142, "ASS"),
        echo(0.145, "\r\n"),
    ),
    case(
        "an echo typed once more, of which a kernel's line tears a fail text on a row that a break had begun",
        "timeout",
        replace(TOLD, command="sh -c './a; ./b' | tee log # not ok 3", fail=(r"not ok \d+",)),
        shell(3.0),
        echo(3.12, "sh -c './a; ./b'"),
        echo(3.14, " | t \r"),
        echo(4.34, "ee log # not ok 3"),
        echo(5.04, ("\b \b" * 16)[:-1]),
        out(5.71, "E"),
        echo(5.74, "\b \b" * 37 + "sh  \r-c './a; ./b' | tee  \rlog # not"),
        kernel(5.74, "<6>[   44.125000] clocksource: tsc\r\n"),
        echo(6.29, " ok 3"),
        echo(6.29, "\r\n"),
    ),
    case(
        "the second echo of a command that begins a row, with a program's text behind it, and a success later",
        "pass",
        SAYS,
        *AGAIN,
        out(1.91, "PASS"),
        echo(2.1, "\r\n"),
    ),
    case(
        "the same without a success",
        "timeout",
        SAYS,
        *AGAIN,
        out(1.91, "DONE"),
        echo(2.1, "\r\n"),
    ),
    case(
        "the second echo of a command, torn by a program's text",
        "timeout",
        replace(ASKS, command="echo PASS", success=("PASS",)),
        shell(0.1),
        echo(0.23, "echo PASS"),
        out(0.24, "é è"),
        echo(0.25, "ec"),
        out(0.26, " ü"),
        echo(0.27, "ho PASS"),
        out(0.28, "\r\n"),
        echo(0.29, "\r\n"),
        out(0.3, "ready\r\n"),
    ),
    case(
        "a word of a command at its prompt, and nothing else of it: what came is no echo",
        "fail",
        replace(TOLD, success=(r"^passed \d+, failed 0$",), fail=(r"\bFAIL\b",)),
        out(1.4, "passed 3, failed 0\n"),
        shell(1.4),
        out(1.655, "FAIL\n"),
    ),
    case(
        "a program's word that goes on with an echo is the end of a longer word",
        "timeout",
        replace(ASKS, command="echo 'test result: ok. 5 passed'; echo fail 1", success=(r"\bPASS\b",)),
        shell(0.445),
        echo(0.92, "echo 'test resul"),
        echo(1.14, "t: ok. 5 passed'"),
        echo(1.36, "; echo f"),
        out(1.36, "aPASS"),
        echo(1.56, "\r\n"),
        echo(1.76, "ail 1"),
    ),
    case(
        "a prompt that a kernel's line ends, behind an unfinished line that goes on with something else",
        "timeout",
        ASKS,
        shell(0.5),
        echo(0.62, "./t\r\n"),
        out(0.7, "PASS"),
        shell(0.9),
        kernel(0.9, "[    0.000000] usb 1-1: new device\r\n"),
        out(0.9, "%"),
    ),
    case(
        "a fail text that is whole only if a program's word was an echo",
        "timeout",
        replace(COUNTS, success=(r"\bPASS\b",), fail=("BAD\nEND",)),
        shell(0.1),
        echo(0.44, "cat <<Q\r\n"),
        echo(0.68, "PASS"),
        out(0.7, "BADPASS\r\n\r\nEND"),
        echo(0.92, "\r\n"),
        echo(0.94, "Q"),
        echo(1.041, "PASS\r\n"),
        echo(1.16, "\r\n"),
    ),
    case(
        "a panic behind a prompt, in words that were typed, with its end: the echo had come before it",
        "panic",
        replace(ASKS, command="./t; grep -c 'panicked at ' log; echo Kernel panic - not syncing", command_limit=8.0),
        shell(0.008),
        echo(2.112, "./t; grep -c 'pa"),
        echo(2.114, "nicked at ' log;"),
        echo(2.116, " echo Kernel panic - not syncing\r\n"),
        out(3.477, "PASS\r\n"),
        shell(3.485),
        panic(3.735, f"{OOPS}CPU: 0 PID: 1 Comm: init\r\n{END}"),
    ),
    case(
        "two rows that were written twice, and a plain one between them, are no text of two lines",
        "pass",
        replace(READS, fail=("BAD\nEND",)),
        out(0.2, "BAD\bD\r\nx\r\nEN\bND\r\nPASS\r\n"),
    ),
    case(
        "two rows that were written twice, one below the other",
        "fail",
        replace(READS, fail=("BAD\nEND",)),
        out(0.2, "BAD\bD\r\nEN\bND\r\nPASS\r\n"),
    ),
    case(
        "a program's text in the middle of the late echo of a line that is a success",
        "timeout",
        replace(COUNTS, prompt="#", fail=()),
        Write(0.4, By.PROMPT, b"# "),
        echo(2.7, "cat <<Q"),
        echo(3.1, "\r\n"),
        echo(3.5, "P"),
        out(3.5, "P"),
        echo(3.7, "ASS"),
        out(3.7, "S"),
        echo(4.25, "\r\n"),
    ),
]

CASES = [*TYPING, *UNFINISHED, *TORN, *SCREEN, *PANICS, *SECOND, *EXPLAINED]
