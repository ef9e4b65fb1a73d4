"""Whole runs: what is built, stored, booted and said, the first time and the second."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from qcase.arch import Arch
from tests.vm import workspaces
from tests.vm.workspaces import Outcome, Workspace, c_program, plain, run, run_on_terminal, says

pytestmark = pytest.mark.vm

LARGE = 1 << 20  # bytes: qcase itself writes no larger file on a hit
MULTILINE = "x=4\ntest $x = 4 &&\necho lines"


def fill(workspace: Workspace) -> None:
    """One case of each pipeline, and those whose sources are wrong."""
    workspace.case("plain", shell_init_cmd="echo hel''lo", success_regex=["^hello$"])
    workspace.case(
        "script",
        {"sh/hello": "#!/bin/sh\necho hello\n"},
        shell_init_cmd="echo x >/root/x; sync; hello",
        success_regex=["^hello$"],
        # Which would have the guest write into the stored image, were it not taken away.
        args=[*workspaces.ARGS[Arch.AARCH64], "-drive", "id=disk0,if=none,format=raw,file=disk.img,snapshot=off"],
    )
    workspace.case("program", c_program(says("hello")), shell_init_cmd="prog", success_regex=["^hello$"])
    workspace.case(
        "broken",
        c_program("int main(void) { return not_declared_anywhere; }\n"),
        shell_init_cmd="prog",
        success_regex=["^hello$"],
    )
    workspace.case(
        "group",
        {
            **c_program("int main(int n, char **v) { return n > 1 ? 3 : 0; }\n", "good", "good/c"),
            **c_program("int main(void) { return }\n", "bad", "bad/c"),
        },
        test_commands=["good", "bad --now", "good and fail", MULTILINE, "echo it''s last"],
        timeout=120,
    )
    workspace.case(
        "group-of-which-one-does-not-build",
        {**c_program(says("first"), "first", "first/c"), **c_program("int main(void) { return }\n", "bad", "bad/c")},
        test_commands=["bad", "first"],
    )
    workspace.case(
        "group-that-passes",
        {**c_program(says("one"), "one", "one/c"), **c_program(says("two"), "two", "two/c")},
        test_commands=["one", "two"],
    )


@dataclass(frozen=True)
class Twice:
    """The same run, done two times. `between`: what was on disk before the second; `digests`: of the entries' content."""

    workspace: Workspace
    store: Path
    first: Outcome
    second: Outcome
    between: dict[Path, tuple[int, int]]
    digests: dict[Path, str]

    @property
    def places(self) -> tuple[Path, ...]:
        """Where qcase might write: the workspace, the store, the guests, the folder for temporary files."""
        temporary = self.workspace.root.parent / f"{self.workspace.root.name}.outside" / "tmp"
        return self.workspace.root, self.store / "v2", (self.store / "guests").resolve(), temporary


def facts(*roots: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of change of every file below some folders."""
    found = {}
    for root in roots:
        for folder, _, names in os.walk(root):
            for name in names:
                status = (Path(folder) / name).lstat()
                found[Path(folder) / name] = status.st_size, status.st_mtime_ns
    return found


def content(store: Path) -> dict[Path, str]:
    """The sha256 of everything that an entry holds. The base image is read by its manifest on each use."""
    files = [path for path in facts(store / "v2/overlays", store / "v2/images") if not path.is_symlink()]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.name != "image.img"}


HITS = ("plain", "script", "program", "group-that-passes")


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory, test_cache: Path) -> Twice:
    folder = tmp_path_factory.mktemp("run")
    workspace = Workspace.make(folder / "w")
    fill(workspace)
    store = workspaces.fresh_store(folder / "store", test_cache)
    first = run(workspace, store=store)
    digests = content(store)
    half = Twice(workspace, store, first, first, {}, digests)
    between = facts(*half.places)
    return replace(half, between=between, second=run(workspace, *HITS, store=store))


def test_the_first_run(twice: Twice) -> None:
    assert twice.first.verdicts == {
        "broken": "build-error",
        "group": "fail",
        "group-of-which-one-does-not-build": "build-error",
        "group-that-passes": "pass",
        "plain": "pass",
        "program": "pass",
        "script": "pass",
    }
    assert twice.first.exit_code == 1
    made = {name: (twice.first.case(name)["pipeline"], twice.first.case(name)["cache"]) for name in twice.first.verdicts}
    assert made["plain"] == ("plain", "none")
    assert made["script"] == ("sh", "miss")
    assert made["program"] == ("c", "miss")
    assert made["group"] == made["group-that-passes"] == ("grouped", "miss")
    assert twice.workspace.runs == []


def test_sources_that_do_not_compile(twice: Twice) -> None:
    case = twice.first.case("broken")
    assert case["phase"] == "prepare"
    assert case["fault"] == "case"
    assert "main.c:1:" in case["details"]
    assert "not_declared_anywhere" in case["details"]
    assert re.search(r"(?m)^ +\| .*main\.c:1:\d+: error: .*not_declared_anywhere", twice.first.stdout)
    log = twice.workspace.root / "target/qcase/logs/aarch64/normal/broken/build.log"
    assert "not_declared_anywhere" in log.read_text()


def test_every_command_of_a_group_is_a_subtest(twice: Twice) -> None:
    tests = twice.first.case("group")["subtests"]
    assert [(test["name"], test["command"], test["status"], test["exit_status"]) for test in tests] == [
        ("good", "good", "pass", 0),
        ("bad --now", "bad --now", "fail", 127),
        ("good and fail", "good and fail", "fail", 3),
        ("x=4 ...", MULTILINE, "pass", 0),
        ("echo it''s last", "echo it''s last", "pass", 0),
    ]
    assert all(0 <= test["seconds"] < 60 for test in tests)
    assert tests[1]["reason"] == "not found; did not build: normal/group/bad"
    for name in ("good and fail (status 3)", "x=4 ..."):
        assert name in twice.first.stdout


def test_a_group_of_which_a_part_does_not_build(twice: Twice) -> None:
    case = twice.first.case("group-of-which-one-does-not-build")
    assert case["reason"] == "did not build: normal/group-of-which-one-does-not-build/bad"
    assert [test["status"] for test in case["subtests"]] == ["fail", "pass"]
    assert "main.c:1:" in case["details"]
    # A group that fails also for reasons of its own is no mere build error, and says both.
    other = twice.first.case("group")
    assert "good and fail (status 3)" in other["reason"]
    assert "did not build: normal/group/bad" in other["reason"]


def test_the_second_run_builds_nothing(twice: Twice) -> None:
    assert twice.second.verdicts == dict.fromkeys(sorted(HITS), "pass")
    assert twice.second.exit_code == 0
    times = {}
    for name in HITS:
        case = twice.second.case(name)
        assert case["cache"] == ("none" if name == "plain" else "hit")
        assert case["image"] == twice.first.case(name)["image"]
        times[name] = case["times"]["prepare"]
        assert times[name] < 1, "50 ms are the aim; this is a loaded machine's"
    print("prepare:", times)


def test_the_second_run_writes_nothing_large(twice: Twice) -> None:
    now = facts(*twice.places)
    written = {path: size for path, (size, changed) in now.items() if twice.between.get(path) != (size, changed)}
    assert any(path.name == "console.log" for path in written)
    assert max(written.values()) < LARGE
    # Nothing of it is an entry's content, or a guest's.
    assert not [path for path in written if "guests" in path.parts or path.name == "image.img" or "content" in path.parts]


def test_entries_and_guests_stay_as_they_were(twice: Twice) -> None:
    for path, digest in twice.digests.items():
        if path.name != "lock":  # touched by each reader, and empty
            assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    images = [path for path in twice.between if path.name in ("image.img", "rootfs.img")]
    assert len(images) >= 4
    for path in images:
        status = path.stat()
        assert (status.st_size, status.st_mtime_ns) == twice.between[path]
        assert not status.st_mode & 0o222
        assert status.st_size == 1 << 30
        assert status.st_blocks * 512 < 256 << 20  # what it holds, not what it could


# --- two at once ----------------------------------------------------------------------------------------------------------


def test_two_runs_of_one_case_build_it_once(tmp_path: Path, test_cache: Path) -> None:
    workspace = Workspace.make(tmp_path / "w")
    # The build waits until the other run has begun, long enough to be waited for.
    files = c_program(says("hello"), prebuild_sh="#!/bin/sh\nsleep 5\n")
    workspace.case("program", files, shell_init_cmd="prog", success_regex=["^hello$"])
    store = workspaces.fresh_store(tmp_path / "store", test_cache)
    builder = workspaces.start(workspace, store=store)
    workspaces.eventually("the build", lambda: workspaces.containers_of(builder.pid))
    waiter = workspaces.start(workspace, store=store)
    waited, built = waiter.outcome(), builder.outcome()
    for outcome in (built, waited):
        assert outcome.verdicts == {"program": "pass"}, outcome.said
        assert "Traceback" not in outcome.said
    assert re.search(rf"normal/program: waiting for .*\b{builder.pid}\b", waited.stdout), waited.stdout
    # Once the overlay is there both go on, and either of them may be the one that writes the image.
    assert "compiling" in built.stdout
    assert "waiting" not in built.stdout.partition("compiling")[0]
    assert "compiling" not in waited.stdout
    assert (built.stdout + waited.stdout).count("writing the image") == 1
    assert built.case("program")["image"] == waited.case("program")["image"]
    assert workspace.runs == []


# --- what the person sees ---------------------------------------------------------------------------------------------------


def test_a_pipe_gets_plain_lines(twice: Twice) -> None:
    for outcome in (twice.first, twice.second):
        assert "\x1b" not in outcome.said
        assert "\r" not in outcome.said
    # The longest lines are never wrapped: a path and the command that repeats the failures.
    assert re.search(r"(?m)^repeat just the failures: qcase run .*normal/broken normal/group normal/group-of", twice.first.stdout)
    lines = twice.second.stdout.splitlines()
    assert lines[0] == "4 cases on aarch64, target aarch64-unknown-none-softfloat, accel tcg"
    assert re.search(r"(?m)^pass +normal/program +c, hit +prepare \d\S+ s   boot \S+ s   command \S+ s$", twice.second.stdout)
    assert re.fullmatch(r"4 cases in .* s: 4 passed", lines[-1])


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A long name, a long reason, and a case that passes."""
    workspace = Workspace.make(tmp_path_factory.mktemp("shown") / "w")
    workspace.case("a-case-with-a-name-that-is-rather-long", shell_init_cmd="echo hel''lo", success_regex=["^hello$"])
    workspace.broken("broken", 'shell_prefx = "x"\nargs = 7\n')
    return workspace


LIVE = re.compile(r"(prepare|boot|command) +normal/")


@pytest.mark.parametrize(("columns", "env"), [(60, {}), (200, {}), (100, {"NO_COLOR": "1"})], ids=["60", "200", "no colour"])
def test_a_terminal(columns: int, env: dict[str, str], shown: Workspace, test_cache: Path) -> None:
    workspaces.provide(test_cache)
    code, raw = run_on_terminal(shown, "-j1", store=test_cache, columns=columns, env=env)
    assert code == 2
    assert "Traceback" not in raw
    colours = re.findall(r"\x1b\[(?:\d+;)*(?:3[0-7]|9[0-7]|38;[\d;]+)m", raw)
    assert bool(colours) is not bool(env)
    lines = [plain(line.rpartition("\x1b[2K")[2]).strip("\r") for line in raw.split("\r\n")]  # without what was erased
    lines = [line for line in lines if not LIVE.match(line)]  # of several live lines, all but the last end in a line end
    assert lines[0].startswith("2 cases on aarch64, target aarch64-unknown-none-softfloat,")
    result, error = (next(n for n, line in enumerate(lines) if line.startswith(word)) for word in ("pass ", "error "))
    assert "normal/a-case-with-a-name-that-is-rather-long" in lines[result]
    # Where there is no room for them the times stand below. Prose is broken between words, what is copied not at all.
    assert re.search(r" prepare \S+ s boot \S+ s command \S+ s$", " ".join(" ".join(lines[result:error]).split()))
    assert (error == result + 1) is (columns == 200)
    prose = "suite/normal/broken/qemu-aarch64.toml:2: args: must be an array of strings, not 7"
    assert prose in " ".join(" ".join(lines[error:]).split())
    assert lines[-2].startswith("repeat just the cases: qcase run ")
    assert lines[-2].endswith(" normal/broken")
    assert all(len(line) <= columns for line in lines[:-2])
    # Live lines were there, and none of them was longer than the terminal.
    live = [text for part in raw.split("\x1b[2K") if LIVE.match(text := plain(part).partition("\r\n")[0].strip("\r"))]
    assert live
    assert max(map(len, live)) <= columns
    assert raw.count("\x1b[?25l") == raw.count("\x1b[?25h")  # the cursor is back
