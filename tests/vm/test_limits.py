"""What a case may take: time under full load, memory in a flood; and that nothing of it is left, however it ends."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.console.judge import Judge
from qcase.console.rules import Limits, Rules
from qcase.model import Verdict
from qcase.vm import arguments
from qcase.vm.console_log import ConsoleLog
from qcase.vm.machine import converse, start
from tests import kernel
from tests.conftest import ROOT
from tests.tools import endings

pytestmark = pytest.mark.vm

LIMIT = 3.0
SLACK = 10.0  # seconds; one is promised, and a machine may have other things to do


@pytest.fixture
def full_load() -> Iterator[None]:
    """Twice as many busy processes as there are processors."""
    busy = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for child in busy:
            child.kill()
            child.wait()


@pytest.mark.alone
def test_a_timeout_comes_with_its_limit_under_full_load(full_load: None, kernels: Mapping[Arch, Path], tmp_path: Path) -> None:
    image = tmp_path / "root.img"
    image.write_bytes(bytes(1 << 16))

    def over(command: str) -> float:
        argv = arguments.arguments(
            arguments.MachineSpec(Arch.AARCH64, tuple(kernel.ARGS[Arch.AARCH64]), image, kernels[Arch.AARCH64], network="none")
        )
        rules = Rules(prompt=kernel.PROMPT, command=command, success=(r"(?s)^BEGIN$.*^END$",), fail=("^FAIL",))
        with start(Arch.AARCH64, argv) as machine:
            began = time.monotonic()
            judge = Judge(rules, started=began, limits=Limits(whole=LIMIT))
            converse(machine, judge, ConsoleLog(io.BytesIO()), lambda: None)
            assert judge.ruling is not None
            assert judge.ruling.verdict is Verdict.TIMEOUT
            took = time.monotonic() - began
        assert time.monotonic() - began - took < SLACK, "QEMU was slow to end"
        return took - LIMIT

    with ThreadPoolExecutor(4) as several:
        late = list(several.map(over, ["hang", "spin", "flood", "line 100000"]))
    assert max(late) < SLACK, late


FLOOD = """
    import io, resource, sys, time
    from qcase.arch import Arch
    from qcase.console.judge import Judge
    from qcase.console.rules import Limits, Rules
    from qcase.host import process
    from qcase.vm import machine as vm

    class Nowhere(io.RawIOBase):
        written = 0
        def write(self, data):
            self.written += len(data)
            return len(data)

    def flood(megabytes):
        script = f"yes 'a line of some output, as there are many' | head -c {megabytes * 1000000}; echo; echo PASS"
        rules = Rules(success=("^PASS$", "(?s)^BEGIN$.*^END$"), fail=("^FAIL", r"(?i)\\bpanic\\b"))
        judge = Judge(rules, started=time.monotonic(), limits=Limits(whole=300))
        sink = Nowhere()
        with vm.start(Arch.AARCH64, ["/bin/sh", "-c", script]) as machine:
            vm.converse(machine, judge, vm.ConsoleLog(sink), lambda: None)
        assert judge.ruling.verdict == "pass", judge.ruling
        assert sink.written >= megabytes * 1000000
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    few = flood(8)
    many = flood(108)
    process.dismiss_guardian()
    print(many - few)
"""


def test_a_flood_of_100_mb_takes_no_more_memory_than_a_small_one() -> None:
    """And no more than minutes: the limit within is 300 s, on a busy machine it takes ten."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(FLOOD)], capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 32 << 10, "KiB: the judge keeps up to 2 MiB of each of five readings"


def test_a_log_that_is_cut_keeps_its_beginning_and_its_end(tmp_path: Path) -> None:
    file = io.BytesIO()
    log = ConsoleLog(file, limit=1000)
    for number in range(1 << 19):
        log.write(b"%07d\n" % number)
    log.close()
    kept = file.getvalue()
    assert kept.startswith(b"0000000\n0000001\n")
    assert kept.endswith(b"0524287\n")
    assert len(kept) < 3 << 20
    assert f"[qcase: {log.cut} bytes are left out here]".encode() in kept


def test_nothing_is_left_of_simulated_endings_of_every_kind() -> None:
    """`python -m tests.tools.endings` does it ten thousand times."""
    came = endings.run_simulated(60, seed=1)
    assert set(came) == {"pass", "fail", "panic", "timeout", "exited", "error", "interrupted", "broken"}


def test_nothing_is_left_of_real_endings_of_every_kind(kernels: Mapping[Arch, Path]) -> None:
    came = endings.run_real(24, 1, kernels)
    assert set(came) == {"pass", "fail", "panic", "timeout", "exited", "error", "interrupted", "broken"}


def test_a_qemu_that_dies_says_so_with_its_own_last_words() -> None:
    script = "echo booting; sleep 0.2; echo warning >&2; echo 'qemu: fatal: no more' >&2; kill -ABRT $$"
    with start(Arch.AARCH64, ["/bin/sh", "-c", script]) as machine:
        judge = Judge(Rules(success=("^PASS$",)), started=time.monotonic())
        said = converse(machine, judge, ConsoleLog(io.BytesIO()), lambda: None)
    assert judge.ruling is not None
    assert judge.ruling.verdict is Verdict.EXITED
    assert judge.ruling.reason == "QEMU ended before a verdict, killed by SIGABRT; it said: qemu: fatal: no more"
    assert said == "warning\nqemu: fatal: no more"
