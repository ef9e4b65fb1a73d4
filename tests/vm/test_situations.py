"""Situations on a console and the verdicts that they must give: our own kernel plays them, in a real QEMU.

Each is one boot. They run a few at a time, since most of what they do is wait.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.console.judge import Judge
from qcase.console.rules import Limits, Rules, Ruling
from qcase.model import Verdict
from qcase.vm import arguments
from qcase.vm.console_log import ConsoleLog
from qcase.vm.machine import converse, start
from tests import kernel

pytestmark = pytest.mark.vm

PASS, FAIL, PANIC, TIMEOUT, EXITED = Verdict.PASS, Verdict.FAIL, Verdict.PANIC, Verdict.TIMEOUT, Verdict.EXITED
ENOUGH = Limits(whole=60)
SHORT = 1.5  # seconds for a case that is to run out of time


@dataclass(frozen=True)
class Situation:
    """`command` is typed at the prompt (None: nothing is); `boot` runs before the first prompt."""

    command: str | None
    expected: Verdict
    success: tuple[str, ...] = ("^PASS$",)
    fail: tuple[str, ...] = ("^FAIL",)
    boot: str = ""
    prompt: str | None = kernel.PROMPT
    match_all: bool = False
    from_prompt: bool = False
    resets: bool = False
    limits: Limits = ENOUGH
    arch: Arch = Arch.AARCH64


def raw(data: bytes | str) -> str:
    """The command that prints just these bytes."""
    return f"raw {(data.encode() if isinstance(data, str) else data).hex()}"


S = Situation
LATE = Limits(whole=60, command=SHORT)
SITUATIONS = {
    # What decides, and in which order.
    "a success": S("pass", PASS),
    "a failure": S("fail", FAIL),
    "a failure before a success": S("fail ; pass", FAIL),
    "a failure right behind a success": S("pass ; fail", FAIL),
    "a failure while the output is drained": S("pass ; sleep 250 ; fail", FAIL),
    "a failure long behind a success": S("pass ; sleep 1500 ; fail", PASS),
    "neither": S("say something else", TIMEOUT, limits=LATE),
    "every pattern, in another order": S("say two ; say one", PASS, success=("^one$", "^two$"), match_all=True),
    "one pattern of two": S("say two ; off", EXITED, success=("^one$", "^two$"), match_all=True),
    "any pattern of two": S("say two", PASS, success=("^one$", "^two$")),
    "a case without a command": S(None, PASS, success=("^qcase test kernel on ",), prompt=None),
    # Panics.
    "a Linux panic": S("panic linux", PANIC),
    "a Linux panic with its oops": S("panic oops", PANIC),
    "a Rust panic": S("panic rust", PANIC),
    "an ArceOS panic": S("panic arceos", PANIC),
    "a StarryOS panic": S("panic starry", PANIC),
    "a panic at boot": S("pass", PANIC, boot="panic linux"),
    "a panic right behind a success": S("pass ; panic linux", PANIC),
    "a panic right behind a failure": S("fail ; panic linux", PANIC),
    "a panic without a line end": S("print panicked at x ; hang", PANIC),
    "a panic in the middle of a line": S("print half a line ; panic linux", PANIC),
    "a program's panic": S("say thread 'main' panicked at src/main.rs:1:2: ; pass", PASS),
    "the orderly end of an rCore kernel": S("say [kernel] Panicked at x All applications completed! ; pass", PASS),
    "the word panic in a boot log": S("pass", FAIL, fail=(r"\bpanic\b",), boot="say Command line: panic=-1"),
    "the same where patterns look from the prompt on": S(
        "pass", PASS, fail=(r"\bpanic\b",), boot="say Command line: panic=-1", from_prompt=True
    ),
    "a success before the prompt where they do": S("off", EXITED, boot="pass", from_prompt=True),
    "a success before the prompt where they do not": S("off", PASS, boot="pass"),
    # Ends of lines.
    "LF": S("crlf off ; pass", PASS),
    "CR LF": S(raw("PASS\r\n"), PASS),
    "CR CR LF": S(raw("PASS\r\r\n"), PASS),
    "CR alone": S(raw("PASS\r"), TIMEOUT, limits=LATE),  # the prompt overwrites it
    "no line end": S("print PASS ; hang", PASS, limits=LATE),
    "no line end, and off": S("print PASS ; off", PASS),
    "a line that goes on after a pause": S("print PASS ; sleep 800 ; say ED ; off", EXITED),
    "a failure's line that goes on after a pause": S("print FAIL ; sleep 700 ; say OVER ; pass", PASS, fail=("FAIL$",)),
    "a progress bar": S(raw("10 %\r20 %\rPASS\r\n"), PASS),
    "text before it on the line": S("print not a ; say PASS ; off", EXITED),
    "text behind it on the line": S("print PASS ; say ED ; off", EXITED),
    "blanks behind it": S(raw("PASS \t \r\n"), PASS, success=(r"^PASS\s*$",)),
    "byte by byte": S("drip PASS ; nl", PASS),
    "byte by byte, and more": S("drip PASSED ; nl ; off", EXITED, success=(r"PASS\b",)),
    # Escapes and bytes that are none of text.
    "colours": S(raw("\x1b[1;32mPASS\x1b[0m\r\n"), PASS),
    "colours inside": S(raw("PA\x1b[31mSS\x1b[K\r\n"), PASS),
    "a title": S(raw("\x1b]0;title\x07PASS\r\n"), PASS),
    "a title that ends in ST": S(raw("\x1b]0;title\x1b\\PASS\r\n"), PASS),
    "a title that says so": S(raw("\x1b]0;\r\x1b]0;PASS\x07\r\n") + " ; off", EXITED, success=("PASS",)),
    "a device control string that says so": S(raw("\x1bPPASS\x1b\\\r\n") + " ; off", EXITED, success=("PASS",)),
    "a title that never ends": S(raw("\x1b]0;title\nFAIL\r\n"), FAIL),
    "bracketed paste": S(raw("\x1b[?2004hPASS\x1b[?2004l\r\n"), PASS),
    "an escape in two parts": S(f"{raw(b'PA' + bytes([0x1B, 0x5B]))} ; sleep 60 ; {raw('31mSS')} ; nl", PASS),
    "an escape that another breaks off": S(raw("\x1b[12\x1b[0mPASS\r\n"), PASS),
    "a stray escape character": S(raw("\x1b\x1b[0mPASS\r\n"), PASS),
    "UTF-8": S(raw("grün\r\n"), PASS, success=("^grün$",)),
    "UTF-8 in two parts": S(
        f"{raw(b'gr' + bytes([0xC3]))} ; sleep 60 ; {raw(bytes([0xBC]) + b'n')} ; nl", PASS, success=("^grün$",)
    ),
    "no UTF-8": S(raw(b"a\xffb\r\n"), PASS, success=("^a\ufffdb$",)),
    "NUL and BEL": S(raw("PA\0S\x07S\r\n"), PASS),
    "garbage": S("garble 64 ; nl ; pass", PASS),
    "garbage, and a failure": S("garble 64 ; nl ; fail", FAIL),
    # What is typed.
    "a pattern in the command": S("raw #PASS ; off", EXITED, success=("PASS",)),
    "a fail pattern in the command": S("raw #FAIL ; pass", PASS, fail=("FAIL",)),
    "a pattern in the command and in the output": S("raw #PASS ; pass", PASS, success=("PASS",)),
    "a guest that does not echo": S(raw("PASS\n"), PASS, success=("^qk> PASS$",), boot="echo off"),
    "a guest that does not echo, and prints the command in capitals": S(
        "pass", TIMEOUT, success=("^qk> PASS$",), boot="echo off", limits=LATE
    ),
    "a guest that does not echo, and a pattern in the command": S("raw #PASS ; off", EXITED, success=("PASS",), boot="echo off"),
    "a guest that loses a key": S("say all is well ; pass", PASS, boot="lose 7"),
    "a control character": S("say \x01 ; pass", PASS),
    "a long command": S(f"say {'x' * 300} ; pass", PASS),
    "a prompt that comes twice": S("pass", PASS, boot="prompt"),
    "a prompt that comes again": S("prompt ; prompt ; nl ; pass", PASS),
    "a prompt that never comes": S("pass", TIMEOUT, prompt="other>", limits=Limits(whole=60, boot=SHORT)),
    "a prompt at the end of a long line": S("pass", PASS, boot="line 64"),
    # Much of it.
    "a flood": S("flood 1024 ; pass", PASS),
    "a flood, and a failure": S("flood 1024 ; fail", FAIL),
    "a flood that never ends": S("flood", TIMEOUT, limits=LATE),
    "a line of 512 KiB": S("line 512 ; say PASS", PASS, success=("^x+PASS$",)),
    "the end of a line of 2.5 MiB": S("line 2560 ; say PASS ; off", EXITED, success=("^xPASS$", "^PASS")),
    "a block of 900 KiB": S("say BEGIN ; flood 900 ; say END", PASS, success=("(?s)^BEGIN$.*^END$",)),
    "a block larger than what is kept": S("say BEGIN ; flood 2600 ; say END ; off", EXITED, success=("(?s)^BEGIN$.*^END$",)),
    # Ends.
    "power off": S("off", EXITED),
    "power off right behind a success": S("pass ; off", PASS),
    "power off right behind a failure": S("fail ; off", FAIL),
    "a reset": S("reboot", EXITED),
    "a reset right behind a success": S("pass ; reboot", PASS),
    "a reset at boot": S("pass", PANIC, boot="reboot"),
    "resets without end": S("pass", PANIC, boot="reboot", resets=True),
    "a triple fault": S("fault", PANIC, arch=Arch.X86_64),
    "a triple fault right behind a success": S("pass ; fault", PANIC, arch=Arch.X86_64),
    "firmware that speaks first": S("pass", PASS, arch=Arch.X86_64),
    "a hang": S("hang", TIMEOUT, limits=LATE),
    "a busy hang": S("spin", TIMEOUT, limits=LATE),
    "silence": S("hang", TIMEOUT, limits=Limits(whole=60, idle=SHORT)),
    "a hang behind a success": S("pass ; hang", PASS),
    "a hang at boot": S("pass", TIMEOUT, boot="hang", limits=Limits(whole=60, boot=SHORT)),
}


def play(situation: Situation, kernels: Mapping[Arch, Path], image: Path) -> tuple[Ruling, bytes]:
    """Boot it and let it come to a ruling; and the console's log."""
    arch = situation.arch
    args = (*kernel.ARGS[arch], *(("-append", f"qk={situation.boot}") if situation.boot else ()))
    spec = arguments.MachineSpec(arch, args, image, kernels[arch], network="none", reset=situation.resets)
    rules = Rules(
        prompt=situation.prompt,
        command=situation.command,
        success=situation.success,
        fail=situation.fail,
        match_all=situation.match_all,
        from_prompt=situation.from_prompt,
        resets=situation.resets,
    )
    file = io.BytesIO()
    with start(arch, arguments.arguments(spec)) as machine:
        judge = Judge(rules, started=time.monotonic(), limits=situation.limits)
        converse(machine, judge, ConsoleLog(file), lambda: None)
    assert judge.ruling is not None
    return judge.ruling, file.getvalue()


@pytest.fixture(scope="module")
def played(
    kernels: Mapping[Arch, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Future[tuple[Ruling, bytes]]]]:
    image = tmp_path_factory.mktemp("situations") / "root.img"
    image.write_bytes(bytes(1 << 16))
    with ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as several:
        yield {name: several.submit(play, situation, kernels, image) for name, situation in SITUATIONS.items()}


def test_there_are_sixty_of_them() -> None:
    assert len(SITUATIONS) >= 60


@pytest.mark.parametrize("name", SITUATIONS)
def test_a_situation(name: str, played: Mapping[str, Future[tuple[Ruling, bytes]]]) -> None:
    ruling, log = played[name].result()
    assert ruling.verdict is SITUATIONS[name].expected, f"{ruling}\n{log[-2000:].decode(errors='backslashreplace')}"


def test_a_key_that_qemu_takes_for_itself_arrives_once(played: Mapping[str, Future[tuple[Ruling, bytes]]]) -> None:
    _, log = played["a control character"].result()
    assert b"qk> say ^A ; pass\r\n" in log
