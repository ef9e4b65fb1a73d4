"""Which case starts when, and where."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcase.arch import Arch
from qcase.config import case_file
from qcase.config.case_file import CaseConfig
from qcase.errors import UsageError
from qcase.model import Pipeline
from qcase.run import schedule
from qcase.run.schedule import Budget, Need, Shard
from qcase.suite.cases import Case

MIB = 1 << 20
MACHINE = Need(processors=4, memory=4096 * MIB)


def case(name: str, args: Sequence[str] = (), arch: Arch = Arch.AARCH64) -> Case:
    found = CaseConfig(args=tuple(args), smp=case_file.smp(args), memory=case_file.memory(args))
    path = Path("/w/suite/normal") / name
    return Case(name, f"normal/{name}", "normal", "", path, arch, path / f"qemu-{arch}.toml", found, Pipeline.PLAIN)


# --- what a machine carries -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "size"),
    [
        ([], 128 * MIB),
        (["-m", "512"], 512 * MIB),
        (["-m", "1G"], 1024 * MIB),
        (["-nographic", "-m", "size=2g,slots=2,maxmem=8G"], 2048 * MIB),
        (["-m", "64M", "-m", "96M"], 96 * MIB),
        (["-m", "524288k"], 512 * MIB),
        (["-m", "lots"], 128 * MIB),
        (["-smp", "2", "-m"], 128 * MIB),
    ],
)
def test_the_memory_that_arguments_ask_for(args: list[str], size: int) -> None:
    assert case_file.memory(args) == size


def test_a_machine_carries_as_many_processors_and_as_much_memory_as_it_has() -> None:
    budget = Budget(None, MACHINE)
    two = budget.take(case("a", ["-smp", "2", "-m", "256M"]))
    assert two == Need(2, 512 * MIB)
    assert budget.take(case("b", ["-smp", "3"])) is None
    assert budget.take(case("c", ["-smp", "1", "-m", "3584M"])) is None  # with what QEMU itself takes
    assert budget.take(case("d", ["-smp", "2"])) is not None
    assert budget.take(case("e")) is None
    budget.give(two)
    assert budget.take(case("e")) is not None


def test_a_case_that_is_too_large_runs_alone() -> None:
    budget = Budget(None, MACHINE)
    assert budget.take(case("huge", ["-smp", "64", "-m", "64G"])) is not None
    assert budget.take(case("small")) is None


def test_all_processors_of_an_x86_guest_are_one_thread() -> None:
    assert schedule.need(case("a", ["-smp", "4"], Arch.X86_64)).processors == 1
    assert schedule.need(case("a", ["-smp", "4"])).processors == 4


def test_a_number_of_jobs_is_taken_at_its_word() -> None:
    budget = Budget(3, MACHINE)
    assert [budget.take(case(name, ["-smp", "8", "-m", "64G"])) is None for name in "abcd"] == [False, False, False, True]


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        (["-netdev", "user,id=net0,hostfwd=tcp::5555-:5555,hostfwd=udp:127.0.0.1:53-:53"], {"tcp 5555", "udp 53"}),
        (["-netdev", "user,id=net0,hostfwd=tcp::0-:22"], set()),
        (["-serial", "tcp:127.0.0.1:4444,server=on,wait=off", "-monitor", "telnet::4445,server"], {"tcp 4444", "tcp 4445"}),
        (["-qmp", "unix:/run/q.sock,server=on"], {"/run/q.sock"}),
        (["-chardev", "socket,id=c,server=on,path=/run/c.sock"], {"/run/c.sock"}),
        (["-nographic", "-drive", "id=disk0,if=none,format=raw,file=x"], set()),
    ],
)
def test_ports_and_sockets_that_arguments_ask_for(args: list[str], wanted: set[str]) -> None:
    assert schedule.exclusive_resources(args) == wanted


def test_two_cases_that_want_one_port_run_one_after_the_other() -> None:
    forward = ["-netdev", "user,id=net0,hostfwd=tcp::5555-:5555"]
    budget = Budget(8, MACHINE)
    first = budget.take(case("a", forward))
    assert first is not None
    assert budget.take(case("b", forward)) is None
    assert budget.take(case("c")) is not None
    budget.give(first)
    assert budget.take(case("b", forward)) is not None


def test_this_machine_has_something_to_give() -> None:
    found = schedule.machine()
    assert found.processors >= 1
    assert 64 * MIB < found.memory < 1 << 50


def test_longest_first_and_before_them_what_was_never_measured() -> None:
    cases = [case(name) for name in ("a", "b", "c", "d", "e")]
    seconds = {"normal/a": 1.0, "normal/b": 9.0, "normal/d": 4.0, "normal/e": 4.0}
    assert [cases[at].name for at in schedule.order([case.display_name for case in cases], seconds)] == ["c", "b", "d", "e", "a"]


# --- shards ---------------------------------------------------------------------------------------------------------------

NAMES = st.lists(st.text(st.characters(codec="ascii"), min_size=1, max_size=5), unique=True, max_size=40)


@given(NAMES, st.integers(1, 9), st.data())
def test_shards_are_the_whole_and_overlap_nowhere_whatever_the_order(names: list[str], count: int, data: st.DataObject) -> None:
    known = data.draw(st.dictionaries(st.sampled_from(names), st.floats(0, 1000))) if names else {}
    parts = schedule.partition(names, count, known)
    assert len(parts) == count
    assert sorted(name for part in parts for name in part) == sorted(names)
    shuffled = data.draw(st.permutations(names))
    assert schedule.fingerprint(schedule.partition(shuffled, count, known)) == schedule.fingerprint(parts)
    if not known:
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_shards_take_equally_long() -> None:
    seconds = {"long": 60.0, "a": 20.0, "b": 20.0, "c": 20.0}
    assert schedule.partition(list(seconds), 2, seconds) == [["long"], ["a", "b", "c"]]
    # What is new counts as the middle of the others.
    assert schedule.partition([*seconds, "new", "newer"], 2, seconds) == [["long", "new"], ["a", "b", "c", "newer"]]


@pytest.mark.parametrize("text", ["", "2", "0/3", "4/3", "a/b", "1/0", "-1/2", "1/2/3", "1.0/2", "²/3"])
def test_a_shard_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="--shard"):
        schedule.parse_shard(text)


def test_a_shard() -> None:
    assert schedule.parse_shard("2/5") == Shard(2, 5)
    assert str(Shard(2, 5)) == "2/5"


def test_times_come_from_the_results_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    rows = [
        {"case": "normal/a", "verdict": "pass", "times": {"total": 4.5}},
        {"case": "normal/b", "verdict": "skipped", "times": {"total": 0.0}},
    ]
    path.write_text(json.dumps({"cases": rows}))
    assert schedule.read_times(path) == {"normal/a": 4.5}
    for text in ("", "{}", "[]", '{"cases": 3}', '{"cases": [3]}'):
        path.write_text(text)
        with pytest.raises(UsageError, match="are no results of a run"):
            schedule.read_times(path)
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        schedule.read_times(tmp_path / "gone")
