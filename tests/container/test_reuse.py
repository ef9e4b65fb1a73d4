"""Containers that run several steps: a step is confined as in one of its own, and meets nothing of the steps before it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from qcase.containers import reuse
from qcase.containers.engine import Engine
from qcase.containers.step import Mount, Step, StepResult, verdict_of
from qcase.errors import InfraError
from qcase.host import process
from qcase.host.trees import PlantedError, Tree

pytestmark = [pytest.mark.container, pytest.mark.timeout(300)]

MIB = 1 << 20
SOON = 60.0  # seconds
FOLDERS = ("src", "build", "overlay")
# All that a step could meet of another one, without what differs from one start to the next.
LOOK = """\
ls -lAn --time-style=+ /tmp /dev/shm /dev/mqueue /qcase /qcase/* | grep -v ' pts$'
find /tmp /dev /qcase -name pts -prune -o -print | sort
ls -lAn --time-style=+ /dev/pts
set -- /proc/[0-9]*; echo processes $#
cat /proc/sysvipc/*
id; umask; ulimit -a; env | sort; pwd
grep -E '^(Cap|NoNew|Seccomp:|Sig[BIC]|Groups|Cpus_allowed:)' /proc/self/status
readlink /proc/self/ns/net >/dev/null; tail -n +3 /proc/net/dev | cut -d: -f1; hostname
cat /proc/self/oom_score_adj
ls -l /proc/self/fd | awk '{print $9, $11}' | grep -v -e pipe: -e /proc/ | sort
"""


@dataclass
class Builds:
    """Steps of subcases, each with folders of its own."""

    engine: Engine
    image: str
    root: Path
    shared: reuse.Containers = field(init=False)
    count: int = 0

    def __post_init__(self) -> None:
        (self.root / "scratch").mkdir()
        (self.root / "staging").mkdir()
        (self.root / "staging/etc").write_text("of all")
        self.shared = reuse.Containers(lambda: self.engine, lambda: self.root / "scratch")

    def step(self, program: str, *, root: Path | None = None) -> Step:
        self.count += 1
        mounts = []
        for name in FOLDERS:
            folder = Tree((root or self.root) / f"{self.count}-{name}", what=f"the {name} folder")
            folder.mkdir(parents=False)
            mounts.append(Mount(folder, f"/qcase/{name}", False))
        (mounts[0].place / "main.c").write_text(f"source {self.count}")
        mounts.append(Mount(Tree(self.root / "staging"), "/qcase/staging", True))
        return Step(
            image=self.image,
            argv=("sh", "-euc", program),
            mounts=tuple(mounts),
            env={"OF_THE_STEP": "a b=c", "PATH": os.defpath},
            workdir="/qcase/src",
            timeout=SOON,
            memory=256 * MIB,
            name="probe",
        )

    def run(self, program: str) -> StepResult:
        return self.shared.run(self.step(program))

    def used(self) -> reuse.Containers:
        """The containers, one of which has run a step."""
        assert self.run("echo first >/qcase/overlay/first").exit_status == 0
        assert self.there == 1
        return self.shared

    @property
    def there(self) -> int:
        """How many containers there are."""
        return len(self.engine.api.containers(all=True, filters={"label": f"qcase.run={process.run_id()}"}))


@pytest.fixture
def builds(engine: Engine, image: str, tmp_path: Path) -> Iterator[Builds]:
    made = Builds(engine, image, tmp_path)
    with made.shared:
        yield made
    assert made.there == 0


def test_two_steps_run_in_one_container(builds: Builds) -> None:
    first = builds.step("cat main.c; echo one >/qcase/overlay/made; echo x >/qcase/build/left; cat /qcase/staging/etc")
    assert builds.shared.run(first).output == "source 1of all"
    second = replace(builds.step("cat main.c >/qcase/overlay/made; ls /qcase/build; echo said"), log=builds.root / "log")
    result = builds.shared.run(second)
    assert (result.exit_status, result.output, result.oom, result.timed_out) == (0, "said\n", False, False)
    assert (builds.root / "log").read_text() == "said\n"
    assert builds.there == 1
    assert (builds.root / "1-overlay/made").read_text() == "one\n"
    assert (builds.root / "2-overlay/made").read_text() == "source 2"
    assert (builds.root / "1-build/left").exists()
    assert list((builds.root / "2-build").iterdir()) == []


def test_a_step_in_a_used_container_is_as_in_one_of_its_own(builds: Builds) -> None:
    own = builds.engine.run(builds.step(LOOK)).output.splitlines()
    used = builds.used().run(builds.step(LOOK)).output.splitlines()
    assert "CapEff:\t0000000000000000" in used
    # The owner of /tmp; and two processes more: one holds the container, one waits for the step.
    known = ("drwxrwxrwt", "processes ", "process ", "HOSTNAME=")
    assert not [line for line in set(own) ^ set(used) if not line.startswith(known)]


LEAVES = {
    "files": "echo x >/tmp/x; mkdir -p /tmp/.config/a /dev/shm/b; echo x >/dev/shm/x",
    "folders that nobody may read": "mkdir -p /tmp/a/b; echo x >/tmp/a/b/c; chmod 0 /tmp/a",
    "a process": "sleep 600 & ",
    "a process that is deaf": "(trap '' TERM HUP INT; while :; do sleep 600; done) &",
    "a process in a session of its own": "setsid -f sh -c 'while :; do :; done'",
    "processes that go on making some": "b() { b & while :; do sleep 0.01 & wait; done; }; (b 2>/dev/null) & sleep 1",
    "a process behind the death of all": "setsid -f sh -c 'sleep 600'; kill -9 $PPID",
    "shared memory": "ipcmk -M 4096; ipcmk -S 3; ipcmk -Q",
    "a process with its folder open": "(cd /qcase/overlay; exec sleep 600) & cd /qcase/build; sleep 600 <. &",
    "an access list": "command -v setfacl && setfacl -d -m u:7:rwx /tmp /dev/shm; chmod 1770 /dev/shm /tmp 2>/dev/null || :",
    "a device's mode": "chmod 600 /dev/null || :; echo x >/dev/x || :",
    "the mode of what makes terminals": "chmod 600 /dev/pts/ptmx || :",
    "a name beside its folders": "chmod 755 /qcase; echo x >/qcase/x; mkdir /qcase/y",
    "a mode of its folders": "chmod 555 /qcase/overlay; chmod 0 /qcase/build",
    "a failure": "echo x >/tmp/x; sleep 600 & exit 1",
}


@pytest.mark.parametrize("leaves", LEAVES.values(), ids=LEAVES)
def test_a_step_meets_nothing_of_the_one_before(leaves: str, builds: Builds) -> None:
    """Whatever a step leaves, the next one sees what it sees in a container that no other step had."""
    expected = builds.used().run(builds.step(LOOK))
    assert expected.exit_status == 0
    began = time.monotonic()
    builds.run(f"set +e; {leaves}")
    assert builds.run(LOOK).output == expected.output
    assert time.monotonic() - began < SOON
    assert builds.there == 1


def test_process_one_is_out_of_reach(builds: Builds) -> None:
    program = "for p in $(ls /proc | grep '^[0-9]*$'); do echo $p $(stat -c %u /proc/$p) $(kill -9 $p 2>&1); done"
    others = "for p in 1 7; do kill -9 $p && echo killed; cat /proc/$p/environ && echo read; done 2>/dev/null; :"
    builds.used()
    assert builds.run(others).output == ""
    assert builds.run(program).exit_status in (0, 137)
    assert builds.run("echo fine").output == "fine\n"


def test_a_folder_that_is_not_the_steps_any_more(builds: Builds) -> None:
    step = builds.step("chmod 755 /qcase; mv /qcase/overlay /qcase/o; ln -s /etc /qcase/overlay")
    builds.used()
    with pytest.raises(PlantedError, match="overlay is not the folder that the step was given"):
        builds.shared.run(step)
    assert builds.there == 0
    assert builds.run("echo fine").output == "fine\n"


@pytest.mark.parametrize(("program", "status"), [("exit 3", 3), ("kill -9 $$", 137), ("kill -TERM $$", 143), ("no-such", 127)])
def test_a_failure_is_told(builds: Builds, program: str, status: int) -> None:
    builds.used()
    result = builds.run(f"exec 2>&1; echo said; {program}")  # the engine does not keep the order of two streams
    assert (result.exit_status, result.oom, result.timed_out) == (status, False, False)
    assert result.output == "said\n" + ("sh: 1: no-such: not found\n" if status == 127 else "")
    assert builds.there == 0


def test_the_memory_limit(builds: Builds) -> None:
    builds.used()
    step = replace(builds.step("tail /dev/zero || sleep 0.1; exit 2"))
    result = builds.shared.run(step)
    assert (result.exit_status, result.oom) == (2, True)
    assert "more than the 256 MiB" in verdict_of(step, result)[0]
    builds.used()
    result = builds.run("exec tail /dev/zero")
    assert (result.exit_status, result.oom) == (137, True)
    builds.used()
    assert not builds.run("exit 2").oom


def test_the_process_limit(builds: Builds) -> None:
    step = replace(builds.step("for n in $(seq 100); do sleep 60 & done; wait"), pids=30)
    first = replace(builds.step("echo fine"), pids=30)
    assert builds.shared.run(first).output == "fine\n"
    result = builds.shared.run(step)
    assert "more than the 30 processes" in verdict_of(step, result)[0]


@pytest.mark.parametrize("program", ["exec sleep 600", "yes", "exec >&- 2>&-; sleep 600"], ids=["quiet", "talkative", "closed"])
def test_the_time_limit(builds: Builds, program: str) -> None:
    builds.used()
    result = builds.shared.run(replace(builds.step(program), timeout=3.0))
    assert (result.timed_out, result.exit_status) == (True, 137)
    assert 3.0 <= result.seconds < SOON
    assert builds.there == 0


def test_a_step_that_closes_its_output_and_goes_on(builds: Builds) -> None:
    builds.used()
    assert builds.run("exec >&- 2>&-; sleep 1; touch /qcase/build/done; exit 5").exit_status == 5
    assert (builds.root / "2-build/done").exists()


def test_a_fork_bomb_is_stopped(builds: Builds) -> None:
    builds.used()
    step = replace(builds.step("exec bash -c 'b() { b | b & }; b 2>&-; sleep 600'"), pids=60, timeout=600)
    result = builds.shared.run(step)
    assert "as a fork bomb does" in verdict_of(step, result)[0]


@pytest.mark.parametrize("words", [("kill",), ("rm", "--force")], ids=" ".join)
def test_who_meddles_with_a_step_is_no_fault_of_it(words: tuple[str, ...], builds: Builds) -> None:
    builds.used()
    step = builds.step("touch /qcase/build/begun; sleep 60")

    def meddle() -> None:
        began = builds.root / "scratch/container-1/build/begun"
        while not began.exists():
            time.sleep(0.05)
        found = builds.engine.api.containers(filters={"label": f"qcase.run={process.run_id()}"})
        subprocess.run(["docker", *words, found[0]["Id"]], check=True, capture_output=True)

    thread = threading.Thread(target=meddle)
    thread.start()
    with pytest.raises(InfraError, match="somebody else"):
        builds.shared.run(step)
    thread.join()
    assert builds.run("echo fine").output == "fine\n"


def test_a_container_that_is_gone_is_replaced(builds: Builds) -> None:
    builds.used()
    found = builds.engine.api.containers(filters={"label": f"qcase.run={process.run_id()}"})
    subprocess.run(["docker", "rm", "--force", found[0]["Id"]], check=True, capture_output=True)
    assert builds.run("echo fine").output == "fine\n"


def test_steps_at_once_do_not_meet(builds: Builds) -> None:
    results: dict[int, StepResult] = {}
    program = "echo {} >/tmp/mine; sleep 0.3; cat /tmp/*; ls /qcase/src; cat /qcase/src/main.c"
    steps = [builds.step(program.format(number)) for number in range(1, 9)]

    def run(number: int) -> None:
        results[number] = builds.shared.run(steps[number - 1])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, result in results.items():
        assert result.output == f"{number}\nmain.c\nsource {number}"


def test_what_cannot_be_moved_has_a_container_of_its_own(builds: Builds) -> None:
    plain = replace(builds.step("echo fine"), mounts=(Mount(builds.root / "staging", "/qcase/staging", True),), workdir="/")
    assert builds.shared.run(plain).output == "fine\n"
    networked = replace(builds.step("tail -n +3 /proc/net/dev | wc -l"), network=True)
    assert builds.shared.run(networked).output == "2\n"
    assert builds.there == 0
    elsewhere = Path(f"/dev/shm/qcase-test-{os.getpid()}")
    elsewhere.mkdir()
    try:
        step = builds.step("echo fine | tee /qcase/overlay/made", root=elsewhere)
        assert builds.shared.run(step).output == "fine\n"
        assert (elsewhere / f"{builds.count}-overlay/made").read_text() == "fine\n"
    finally:
        shutil.rmtree(elsewhere)
    assert builds.there == 0


def test_the_state_of_a_container_cannot_be_made_up(builds: Builds) -> None:
    """A step that owns /dev may exchange names in it, and choose them so that a mere checksum stays the same."""
    assert builds.shared.run(builds.step("true")).exit_status == 0
    ((container,),) = builds.shared._idle.values()
    assert re.fullmatch("[0-9a-f]{64}  -", container.state)
